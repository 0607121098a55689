"""Worlds of gloo processes that tests send work to: one set of processes per world size serves a whole session.

For each call they meet anew, and part after it: the threads of a process group never sleep, and those of the meshes of
a whole session would take a good part of a small machine.

Run as a program it imports what the processes need and forks those of every world that is asked for: importing takes
longer than most checks do.
"""

import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
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


@functools.cache
def _program() -> subprocess.Popen:
    """The program that forks processes for each line that it reads."""
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        # What fourteen processes would keep for their next step does not fit in a small machine.
        "MOVA_KEEP_MEMORY": "0",
    }
    command = [sys.executable, str(Path(__file__))]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True, start_new_session=True)


def end_program() -> None:
    """End the program that forks; another starts where one is needed."""
    if _program.cache_info().currsize:
        program = _program()
        assert program.stdin is not None
        program.stdin.close()
        program.wait(30)
    _program.cache_clear()


class World:
    """`size` processes. `run(name, ...)` calls `parallel.checks.NAME(...)` in all of them at once and returns what each
    returned, by rank. An error in one is raised here, and the processes end.
    """

    def __init__(self, size: int, device: str = "cpu") -> None:
        """device: what the processes compute on; "standin" puts them under the guard (`parallel.guard`)."""
        self.size = size
        with Listener(("127.0.0.1", 0), authkey=KEY) as listener:
            stdin = _program().stdin
            assert stdin is not None
            stdin.write(json.dumps({"size": size, "device": device, "address": listener.address}) + "\n")
            stdin.flush()
            accepted = [listener.accept() for _ in range(size)]
        found = sorted(((*c.recv(), c) for c in accepted), key=lambda each: each[0])
        self.pids = [pid for _, pid, _ in found]
        self.connections = [connection for *_, connection in found]

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
        return bool(self.connections)

    def close(self) -> None:
        """End the processes."""
        for connection in self.connections:
            connection.close()
        self.connections = []
        # A rank that waits for another does not notice that nobody listens any more.
        until = time.monotonic() + 5
        while any(map(_lives, self.pids)) and time.monotonic() < until:
            time.sleep(0.01)
        for pid in filter(_lives, self.pids):
            os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    """Whether a process is there; one that has ended is not, for the program reaps it at once."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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
        except BaseException:  # the end of a program is an answer too
            answer = traceback.format_exc(), None
        # Models are cycles of objects; idle processes have no reason to keep one.
        gc.collect()
        connection.send(answer)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    # The script's own folder would hide the package of its name.
    sys.path.remove(str(Path(__file__).resolve().parent))
    checks = importlib.import_module("distributed.checks")
    importlib.import_module("mova_engine.config.model").PRESETS["nano"] = importlib.import_module("one_layer").nano()
    # Which optimizers and checkpoints would import in every process on their first use.
    importlib.import_module("torch._dynamo")
    # The collector would visit all of it in every process, and so have every page of it copied.
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    for line in sys.stdin:
        wanted = json.loads(line)
        for rank in range(wanted["size"]):
            if os.fork() == 0:
                _be(rank, wanted, checks)
    # Without tidying up what was imported, which takes seconds.
    os._exit(0)


def _be(rank: int, wanted: dict, checks: ModuleType) -> None:
    """What a forked process does until its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.close(sys.stdin.fileno())
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": wanted["size"], DEVICE: wanted["device"]}
    os.environ |= {name: str(value) for name, value in names.items()}
    if wanted["device"] == "standin":
        importlib.import_module("distributed.guard").install()
    with Client(tuple(wanted["address"]), authkey=KEY) as connection:
        connection.send((rank, os.getpid()))
        serve(connection, checks)
    # Threads of the process group may outlive it for a moment; nothing here waits for them.
    os._exit(0)


def _reap(*_) -> None:
    """Say how processes have ended that did not end well."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if code := os.waitstatus_to_exitcode(status):
            sys.stderr.write(f"process {pid} of a world ended with {code} (below 0: by that signal)\n")


if __name__ == "__main__":
    main()
