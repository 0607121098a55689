"""Many jobs and many pollers on a running `mova serve`: what is lost, how fast statuses come, what memory does.

python tests/server_load.py [JOBS] [POLLERS]
"""

import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mova_servers import MovaServer, mova_server, write_tiny_model

# Seconds between two calls of a poller, and after which no more is waited for.
_EVERY_S, _MOST_S = 0.25, 1500.0
_BODY = {"prompt": "a red ball", "num_inference_steps": 8, "guidance": "none"}


@dataclass
class LoadFigures:
    """answers: calls for a job's status, by HTTP status. ends: jobs by how they ended. seconds: of each of these calls.
    memory: resident bytes of server and worker when nothing was asked yet, when half was made, and at the end. wall_s:
    from the first job to the last.
    """

    answers: Counter = field(default_factory=Counter)
    ends: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    wall_s: float = 0.0

    def percentile(self, share: float) -> float:
        """Seconds within which this share of calls was answered."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def _resident(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def _memory(server: MovaServer) -> tuple[int, int]:
    workers = sum(_resident(each) for each in server.workers())
    return _resident(server.process.pid), workers


class _Poller(threading.Thread):
    """Asks for the statuses of jobs, one after the other, until it is told to stop."""

    def __init__(self, port: int, videos: list[str], ended: dict[str, str], seed: int) -> None:
        super().__init__(daemon=True)
        self._port, self._videos, self._ended, self._random = port, videos, ended, random.Random(seed)
        self.answers, self.seconds, self.stop = Counter(), [], threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self.stop.wait(_EVERY_S * self._random.uniform(0.5, 1.5)):
            video = self._random.choice(self._videos)
            begun = time.perf_counter()
            try:
                connection.request("GET", f"/v1/videos/{video}")
                answer = connection.getresponse()
                found = json.loads(answer.read())
            except (OSError, http.client.HTTPException) as error:
                self.answers[type(error).__name__] += 1
                connection.close()
                continue
            self.seconds.append(time.perf_counter() - begun)
            self.answers[answer.status] += 1
            if found.get("status") in ("completed", "failed"):
                self._ended[video] = found["status"]


def load(checkpoint: Path, store: Path, jobs: int, pollers: int, *options: str) -> LoadFigures:
    """Queue so many jobs for one worker, and let so many threads ask for them until all have ended."""
    figures = LoadFigures()
    with mova_server(checkpoint, store, "--workers", "1", *options) as server:
        # What the first clip alone needs is there before anything is measured.
        first = server.post("/v1/videos", **_BODY, seed=0)["id"]
        while server.get(f"/v1/videos/{first}")[1]["status"] != "completed":
            time.sleep(0.05)
        figures.memory.append(_memory(server))
        begun, ended = time.monotonic(), dict[str, str]()
        videos = [server.post("/v1/videos", **_BODY, seed=seed)["id"] for seed in range(1, jobs + 1)]
        asking = [_Poller(int(server.port), videos, ended, seed) for seed in range(pollers)]
        for each in asking:
            each.start()
        while len(ended) < jobs and time.monotonic() - begun < _MOST_S:
            time.sleep(0.2)
            if len(figures.memory) == 1 and len(ended) >= jobs // 2:
                figures.memory.append(_memory(server))
        figures.wall_s = time.monotonic() - begun
        for each in asking:
            each.stop.set()
        for each in asking:
            each.join(60)
            figures.answers += each.answers
            figures.seconds += each.seconds
        figures.memory.append(_memory(server))
        figures.ends = Counter(ended.get(video, "not ended") for video in videos)
    return figures


if __name__ == "__main__":
    count, askers = (int(each) for each in [*sys.argv[1:3], *("200", "50")[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as place:
        found = load(write_tiny_model(Path(place) / "tiny"), Path(place) / "store", count, askers)
    print(f"{count} jobs in {found.wall_s:.0f} s, by how they ended: {dict(found.ends)}")
    print(f"{len(found.seconds)} calls for a status by {askers} pollers, by HTTP status: {dict(found.answers)}")
    for share in (0.5, 0.99, 1.0):
        print(f"{100 * share:g} % of them within {1000 * found.percentile(share):.0f} ms")
    for when, (server_bytes, worker_bytes) in zip(("start", "half", "end"), found.memory, strict=True):
        print(f"memory at the {when:5}: server {server_bytes / 1e6:.0f} MB, worker {worker_bytes / 1e6:.0f} MB")
