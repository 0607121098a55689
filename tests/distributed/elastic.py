"""A run under torchrun's elastic launch loses a machine, goes on with what is left, and takes a spare one in.

    python tests/distributed/elastic.py

Two agents of two processes each stand for two machines (`--nnodes 1:2`). The second one is killed (SIGKILL) with its
processes: the first must go on alone from the newest whole checkpoint. Then a third agent joins: the processes must
save a checkpoint after the step they are in, and go on with four from there. Every step is counted once in the end, and
losses are those of a run that nobody disturbed, up to the rounding of other numbers of processes.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distributed.kill import LOOK, losses, run_command, start, steps_done, trainers
from distributed.world import free_port

from mova_engine.data.synthetic.bounce import generate

STEPS = 24
PATIENCE = 300
# Seconds after which an agent that says nothing is gone, and for which a round waits for more agents.
QUICK = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3"


def agent(clips: Path, out: Path, port: int, log: Path) -> subprocess.Popen:
    """A machine of two processes."""
    launch = ["--nnodes", "1:2", "--nproc-per-node", "2", "--max-restarts", "5", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "job", "--rdzv-conf", QUICK]
    launch += ["--shutdown-timeout", "60"]
    # Without it, an agent that joins later waits in vain for the address of the store (torch 2.13).
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with log.open("w") as file:
        return subprocess.Popen(
            run_command(launch, clips, out, STEPS), env=environment, stdout=file, stderr=file, start_new_session=True
        )


def until(condition, first: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert first.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(LOOK)


def end(launcher: subprocess.Popen) -> None:
    """What is left of a machine that lost its power."""
    processes = trainers(launcher) if launcher.poll() is None else []
    for process in (launcher.pid, *processes):
        os.kill(process, signal.SIGKILL)
    launcher.wait()


def lose_and_gain(folder: Path) -> str:
    """Run all of it; returns what the first machine said. AssertionError for a run that ends otherwise."""
    clips, whole, out = (folder / name for name in ("clips", "whole", "out"))
    generate(clips, 8, seed=3)
    said, _ = start(clips, whole, 4, STEPS).communicate()
    assert "done:" in said, said
    port, log = free_port(), folder / "first.log"
    agents = [agent(clips, out, port, log)]
    try:
        # Who hosts the store of the launch must not be the one that is lost.
        time.sleep(2)
        agents.append(agent(clips, out, port, folder / "second.log"))
        until(lambda: steps_done(out) >= 7, agents[0], log)
        end(agents[1])
        until(lambda: "\n2 processes" in log.read_text(), agents[0], log)
        until(lambda: "\nstep 9/" in log.read_text(), agents[0], log)
        agents.append(agent(clips, out, port, folder / "third.log"))
        assert agents[0].wait(PATIENCE) == 0 and agents[2].wait(PATIENCE) == 0, log.read_text()
    finally:
        for each in agents:
            if each.poll() is None:
                end(each)
    text = log.read_text()
    assert re.findall(r"^(\d) processes", text, re.MULTILINE) == ["4", "2", "4"], text
    stopped = re.search(r"stopped by request after step (\d+)", text)
    assert stopped is not None and f"going on from {out}/checkpoints/step-{int(stopped[1]):06d}" in text, text
    found, expected = losses(out), losses(whole)
    assert [step for step, *_ in found] == list(range(1, STEPS + 1)), found
    worst = max(
        abs(a - b) / abs(b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)
    )
    print(f"4, 2 and 4 processes: losses and norms differ by {worst:.1e} at most from those of 4 throughout")
    assert worst < 1e-4
    return text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        lose_and_gain(Path(place))
