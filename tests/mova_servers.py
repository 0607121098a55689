"""Servers of clips in processes of their own, and a model for them that makes a clip in a second."""

import json
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from running_servers import RunningServer, started

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import save_mova
from mova_engine.codecs import build_audio_codec, build_video_codec
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

TINY = MovaConfig(
    "tiny",
    VideoDiTConfig(dim=24, ffn_dim=32, num_heads=1, num_layers=2, text_dim=16, freq_dim=16),
    AudioDiTConfig(dim=24, ffn_dim=32, num_heads=1, num_layers=2, text_dim=16, freq_dim=16),
    BridgeConfig(2, 2, 24, 24, head_dim=24),
    ClipConfig(frames=25, height=48, width=64),
    text_tokens=64,
    video_codec="dct",
    audio_codec="mdct",
    text_encoder="bytes",
)


def write_tiny_model(folder: Path, config: MovaConfig = TINY) -> Path:
    """A checkpoint of `config` with random weights."""
    model = Mova(config, bind(get_backend("cpu")))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.normal_(0.0, size, generator=generator)
    save_mova(model, folder, video_codec=build_video_codec("dct"), audio_codec=build_audio_codec("mdct"))
    return folder


class MovaServer(RunningServer):
    """A running `mova serve`."""

    def answers(self) -> None:
        self.get("/health")

    @property
    def port(self) -> str:
        return self.url.rsplit(":", 1)[1]

    def workers(self) -> list[int]:
        """Process ids of the workers that it has started and that live."""
        found = []
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for process in path.read_text().split():
                if b"video_worker" in Path(f"/proc/{process}/cmdline").read_bytes():
                    found.append(int(process))
        return found

    def get(self, path: str, **headers: str):
        """(status, body): JSON is parsed."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, kind, body = answer.status, answer.headers.get_content_type(), answer.read()
        except urllib.error.HTTPError as error:
            status, kind, body = error.code, error.headers.get_content_type(), error.read()
        return status, json.loads(body) if kind == "application/json" else body

    def post(self, path: str, **fields):
        """The parsed answer to a request with these fields. AssertionError for a refusal."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(fields).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.code}: {error.read().decode()}") from None

    def videos(self) -> list[dict]:
        """All jobs, newest first."""
        return self.get("/v1/videos?limit=100")[1]["data"]


def mova_server(checkpoint: Path, store: Path, *options: str) -> AbstractContextManager[MovaServer]:
    """`mova serve`, on a free port unless the options name one."""
    port = () if "--port" in options else ("--port", "0")
    return started(["serve", "--checkpoint", str(checkpoint), "--store", str(store), *port, *options], MovaServer)
