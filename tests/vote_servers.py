"""Servers of votes in processes of their own, and clips for them."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mova_engine.data.media.write import encode_mp4

# Names that must reach no browser.
SYSTEMS = ("mova-zebra", "rival-quokka", "third-ocelot")
SECONDS = 1.5


def write_study(folder: Path, prompts: int = 4, size: tuple[int, int] = (90, 160)) -> Path:
    """A folder of systems' folders: short clips with a moving square and a tone that is each system's own."""
    rate, fps = 48000, 24
    for number, system in enumerate(SYSTEMS):
        (folder / system).mkdir(parents=True)
        for prompt in range(prompts):
            frames = round(SECONDS * fps)
            pictures = np.full((frames, *size, 3), 40 + 30 * prompt, np.uint8)
            for n in range(frames):
                pictures[n, 20:50, 3 * n : 3 * n + 30] = (250, 60 + 80 * number, 80)
            times = np.arange(round(SECONDS * rate)) / rate
            sound = 0.2 * np.sin(2 * np.pi * (300 + 200 * number) * times).astype(np.float32)
            (folder / system / f"p{prompt}.mp4").write_bytes(encode_mp4("x", pictures, sound, fps, rate))
    rows = [{"id": f"p{n}", "caption": f"a square moves on grey {n}"} for n in range(prompts)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Server:
    """A running server. url: its address."""

    def __init__(self, process: subprocess.Popen, lines: list[str]) -> None:
        self.process, self.lines = process, lines
        self.url = re.search(r"http://\S+?:\d+", lines[-1])[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def call(self, path: str, sent=None, rater: str | None = "", method: str | None = None, **headers):
        """(status, headers, body): JSON is parsed."""
        data = None if sent is None else sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        names = headers if rater is None else {"X-Rater": rater, **headers}
        request = urllib.request.Request(self.url + path, data, names, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, head, body = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            status, head, body = error.code, error.headers, error.read()
        return status, head, json.loads(body) if head.get("Content-Type") == "application/json" else body

    def join(self, name: str) -> str:
        return self.call("/api/join", {"name": name})[2]["rater"]


@contextmanager
def serving(study: Path, store: Path, *options: str):
    """Start `mova eval vote serve` on a free port."""
    command = [
        sys.executable,
        "-m",
        "mova_engine",
        "eval",
        "vote",
        "serve",
        str(study),
        "--store",
        str(store),
        "--port",
        "0",
    ]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("serving on"):
                break
        else:
            raise AssertionError("".join(lines))
        server, deadline = Server(process, lines), time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                server.call("/")
                break
            except OSError:
                time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        process.stdout.close()
