"""Worlds of gloo processes that tests send work to: one set of processes per world size serves a whole session.

Run as a program it is one of those processes: `world.py ADDRESS RANK`.
"""

import importlib
import os
import socket
import subprocess
import sys
import traceback
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

KEY = b"parallel tests"
# A step of these sizes takes seconds; a rank that waits longer waits in vain.
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

    def __init__(self, size: int) -> None:
        self.size, self.connections = size, []
        environment = {
            **os.environ,
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
        }
        with Listener(("127.0.0.1", 0), authkey=KEY) as listener:
            address = f"{listener.address[0]}:{listener.address[1]}"
            self.processes = [
                subprocess.Popen(
                    [sys.executable, str(Path(__file__)), address],
                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
                for rank in range(size)
            ]
            found = [listener.accept() for _ in range(size)]
        self.connections = [c for _, c in sorted(((c.recv(), c) for c in found), key=lambda pair: pair[0])]

    def run(self, name: str, **arguments) -> list:
        for connection in self.connections:
            connection.send((name, arguments))
        results = []
        for rank, connection in enumerate(self.connections):
            if not connection.poll(PATIENCE):
                self.close()
                raise TimeoutError(f"rank {rank} of {self.size} did not answer within {PATIENCE} s")
            error, result = connection.recv()
            if error:
                self.close()
                raise AssertionError(f"rank {rank} of {self.size}: {error}")
            results.append(result)
        return results

    @property
    def alive(self) -> bool:
        return bool(self.connections) and all(process.poll() is None for process in self.processes)

    def close(self) -> None:
        """End the processes."""
        for connection in self.connections:
            connection.close()
        self.connections = []
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def serve(connection: Connection) -> None:
    """Answer calls until the other side hangs up."""
    checks = importlib.import_module("parallel.checks")
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((None, getattr(checks, name)(**arguments)))
        except Exception:
            connection.send((traceback.format_exc(), None))


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    # The script's own folder would hide the package of its name.
    sys.path.remove(str(Path(__file__).resolve().parent))
    host, port = sys.argv[1].split(":")
    with Client((host, int(port)), authkey=KEY) as connection:
        connection.send(int(os.environ["RANK"]))
        serve(connection)
    sys.stdout.flush()
    # Threads of the process group may outlive it for a moment; nothing here waits for them.
    os._exit(0)


if __name__ == "__main__":
    main()
