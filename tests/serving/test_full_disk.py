"""A store on a disk that is really full: what is refused, what fails, what is left, and that all goes on when there is
room again.
"""

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from mova_servers import MovaServer, mova_server, write_tiny_model
from worker_tools import wait_for

pytestmark = pytest.mark.serving
CLIP = {"prompt": "a red ball", "num_inference_steps": 8, "seed": 1}
_BLOCK = 1 << 16


@pytest.fixture
def disk(tmp_path):
    """A disk of 24 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes what is free, to the last byte."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file:
        for size in (_BLOCK, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def refused(server: MovaServer, **fields) -> tuple[int, dict]:
    """The status and the body of a request that is refused."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + "/v1/videos", json.dumps({**CLIP, **fields}).encode(), head)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=60)
    return raised.value.code, json.loads(raised.value.read())


def ended(server: MovaServer, video: str) -> dict:
    def look():
        status, found = server.get(f"/v1/videos/{video}")
        assert status == 200, found
        return found if found["status"] in ("completed", "failed") else None

    return wait_for(look, every=0.1)


def test_a_full_disk_fails_its_job_and_the_server_goes_on_when_there_is_room(disk, tmp_path):
    model = write_tiny_model(tmp_path / "tiny")
    with mova_server(model, disk / "store") as server:
        first = server.post("/v1/videos", **CLIP)["id"]
        assert ended(server, first)["status"] == "completed"
        clip = server.get(f"/v1/videos/{first}/content")[1]
        # A job that is at work while the disk fills up, and one that waits behind it, of another size.
        caught = server.post("/v1/videos", **CLIP | {"num_inference_steps": 100, "solver": "heun"})["id"]
        waits = server.post("/v1/videos", **CLIP, size="48x64")["id"]
        wait_for(lambda: server.get(f"/v1/videos/{caught}")[1]["x_mova"]["step"] >= 1, every=0.02)
        filler = fill(disk)
        status, answer = refused(server)
        assert (status, answer["error"]["code"]) == (507, "disk_full"), answer
        assert "nothing was queued" in answer["error"]["message"]
        # What is there stays readable; all that was accepted is known.
        assert server.get(f"/v1/videos/{first}/content") == (200, clip)
        assert {video["id"] for video in server.videos()} == {first, caught, waits}
        assert server.get("/health")[0] == 200
        # It cannot be stored, nor can that it failed be written: that is tried again until there is room.
        wait_for(lambda: any("disk of the store is full" in line for line in server.lines) or None, 240, 0.1)
        workers = server.workers()
        filler.unlink()
        failed = ended(server, caught)
        assert (failed["status"], failed["error"]["code"]) == ("failed", "disk_full"), failed
        assert failed["error"]["message"] == "the disk of the server is full"
        assert ended(server, waits)["status"] == "completed"
        again = server.post("/v1/videos", **CLIP)["id"]
        assert ended(server, again)["status"] == "completed"
        assert server.get(f"/v1/videos/{again}/content")[1] == clip, "another clip than before the disk was full"
        assert server.workers() == workers, "".join(server.lines)
        # Of the clip that failed nothing is left but what was sent.
        left = {path.name for path in (disk / "store" / "videos" / caught).iterdir()}
        assert left == {"request.json"}, left
