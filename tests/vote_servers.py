"""Servers of votes in processes of their own, and clips for them."""

import json
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from running_servers import RunningServer, started

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


class VoteServer(RunningServer):
    """A running server of votes."""

    def answers(self) -> None:
        self.call("/")

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


def serving(study: Path, store: Path, *options: str) -> AbstractContextManager[VoteServer]:
    """`mova eval vote serve` on a free port."""
    return started(["eval", "vote", "serve", str(study), "--store", str(store), "--port", "0", *options], VoteServer)
