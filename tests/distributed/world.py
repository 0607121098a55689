"""Worlds of gloo processes that tests send work to: one set of processes per world size serves a whole session.

For each call they meet anew, and part after it: the threads of a process group never sleep, and those of the meshes of
a whole session would take a good part of a small machine.

Run as a program, `world.py ADDRESS`, it imports what the processes need and forks them: importing takes longer than
most checks do.
"""

import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from types import ModuleType

import torch.distributed as dist

KEY = b"parallel tests"
# The environment variable that tells a world's processes their device.
DEVICE = "MOVA_WORLD_DEVICE"
# A step of these sizes takes seconds, in eight processes on a busy core many; a rank that waits longer waits in vain.
PATIENCE = 150


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class World:
    """`size` processes. `run(name, ...)` calls `parallel.checks.NAME(...)` in all of them at once and returns what each
    returned, by rank. An error in one is raised here, and the processes end.
    """

    def __init__(self, size: int, device: str = "cpu") -> None:
        """device: what the processes compute on; "standin" puts them under the guard (`parallel.guard`)."""
        self.size, self.connections = size, []
        environment = {
            **os.environ,
            "WORLD_SIZE": str(size),
            DEVICE: device,
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            # What fourteen processes would keep for their next step does not fit in a small machine.
            "MOVA_KEEP_MEMORY": "0",
        }
        with Listener(("127.0.0.1", 0), authkey=KEY) as listener:
            address = f"{listener.address[0]}:{listener.address[1]}"
            command = [sys.executable, str(Path(__file__)), address]
            self.program = subprocess.Popen(command, env=environment, start_new_session=True)
            found = [listener.accept() for _ in range(size)]
        self.connections = [c for _, c in sorted(((c.recv(), c) for c in found), key=lambda pair: pair[0])]

    def run(self, name: str, **arguments) -> list:
        port = free_port()
        for connection in self.connections:
            connection.send((name, arguments, port))
        results = {}
        while len(results) < self.size:
            waiting = [c for rank, c in enumerate(self.connections) if rank not in results]
            ready = wait(waiting, PATIENCE)
            if not ready:
                missing = [rank for rank in range(self.size) if rank not in results]
                self.close()
                raise TimeoutError(f"ranks {missing} of {self.size} did not answer within {PATIENCE} s")
            for connection in ready:
                rank = self.connections.index(connection)
                try:
                    error, results[rank] = connection.recv()
                except (EOFError, ConnectionResetError):
                    error = "died"
                if error:
                    self.close()
                    raise AssertionError(f"rank {rank} of {self.size}: {error}")
        return [results[rank] for rank in range(self.size)]

    def train(self, clips: Path, out: Path, function: str = "run_shared", **settings) -> list:
        """A run of the trainer; by default two processes share each clip, and all the weights."""
        if self.size > 1:
            settings = {"parallel": {"shard": True, "context_parallel": 2}, **settings}
        return self.run(function, clips=str(clips), out=str(out), **settings)

    @property
    def alive(self) -> bool:
        return bool(self.connections) and self.program.poll() is None

    def close(self) -> None:
        """End the processes."""
        for connection in self.connections:
            connection.close()
        self.connections = []
        try:
            self.program.wait(5)
        except subprocess.TimeoutExpired:
            # A rank that waits for another does not notice that nobody listens any more.
            os.killpg(self.program.pid, signal.SIGKILL)
            self.program.wait()


def serve(connection: Connection, checks: ModuleType) -> None:
    """Answer calls until the other side hangs up."""
    while True:
        try:
            name, arguments, port = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        os.environ["MASTER_PORT"] = str(port)
        try:
            answer = None, getattr(checks, name)(**arguments)
            if dist.is_initialized():
                dist.destroy_process_group()
        except Exception:
            answer = traceback.format_exc(), None
        # Models are cycles of objects; idle processes have no reason to keep one.
        gc.collect()
        connection.send(answer)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    # The script's own folder would hide the package of its name.
    sys.path.remove(str(Path(__file__).resolve().parent))
    if os.environ[DEVICE] == "standin":
        importlib.import_module("distributed.guard").install()
    checks = importlib.import_module("distributed.checks")
    # Which optimizers and checkpoints would import in every process on their first use.
    importlib.import_module("torch._dynamo")
    # The collector would visit all of it in every process, and so have every page of it copied.
    gc.freeze()
    host, port = sys.argv[1].split(":")
    children = []
    for rank in range(int(os.environ["WORLD_SIZE"])):
        children.append(os.fork())
        if children[-1]:
            continue
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with Client((host, int(port)), authkey=KEY) as connection:
            connection.send(rank)
            serve(connection, checks)
        # Threads of the process group may outlive it for a moment; nothing here waits for them.
        os._exit(0)
    for rank, child in enumerate(children):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            sys.stderr.write(f"rank {rank} of {len(children)} ended with {status} (below 0: by that signal)\n")
    # Without tidying up what was imported, which takes seconds.
    os._exit(0)


if __name__ == "__main__":
    main()
