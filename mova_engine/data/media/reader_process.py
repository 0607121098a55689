"""Runs functions that read unknown files in a separate process, so that no file can end the caller's process.

Media libraries are native code: a file can make them crash, use all memory, or never return. A function decorated with
`@in_reader_process` runs in a worker process. Whatever happens to the worker, the caller gets a result or a MovaError
that names the file.

    caller --socket--> server (imports little, never decodes) --fork--> worker (decodes one file after the other)

A server is started when it is first needed, one for each thread that reads at the same time, and ends with the caller.
It forks a new worker when the old one has died, or has met an unreadable file, which may have left it in a bad state.
Arrays are returned through shared memory. The caller logs the worker's log records again.

A file in a tar shard is read by the caller; the worker is given its bytes in shared memory, as a file without a place
on any disk, which bears the name that it has in the shard.
"""

import atexit
import contextlib
import functools
import importlib
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from mova_engine.data.helper_signals import stop_signals_held
from mova_engine.data.shard_files import FileInShard
from mova_engine.errors import MovaError

P = ParamSpec("P")
R = TypeVar("R")

# Limits for reading one file. Mainly processor time: a busy machine or a slow disk must not fail a file.
CPU_SECONDS = 300
WALL_SECONDS = 3600
MEMORY = 8 << 30
# Bytes of shared memory that a server keeps between calls: new pages for each clip take longer than the copy.
KEPT = 256 << 20

_SERVE = "import sys; from mova_engine.data.media.reader_process import serve; serve(*map(int, sys.argv[1:]))"


class FatalFileError(MovaError):
    """Reading a file crashed the process, or took too long or too much memory. reason: the message without the path."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def in_reader_process(
    function: Callable[Concatenate[str | Path, P], R], cpu_seconds: int | None = None
) -> Callable[Concatenate[str | Path | FileInShard, P], R]:
    """Decorator: run `function(path, ...)`, defined at a module's top level, in a worker process. `__wrapped__` is the
    undecorated function. cpu_seconds: its limit of processor time where it reads more than a clip.

    Arguments and results are pickled. Raises what `function` raises, and FatalFileError, which names `path`, if the
    worker dies or exceeds CPU_SECONDS, WALL_SECONDS or MEMORY; and what `FileInShard.read` raises.
    """

    call: Callable[..., R] = function

    @functools.wraps(function)
    def run(path: Any, *args: Any, **kwargs: Any) -> Any:
        if _in_worker:
            return call(path, *args, **kwargs)
        given = path.read() if isinstance(path, FileInShard) else None
        with _pool.taken() as server:
            name = path if given is None else _Given(str(path))
            return server.run(function, name, args, kwargs, given, cpu_seconds or CPU_SECONDS)

    return run


class _Given(str):
    """The name of a file whose bytes are in the shared memory."""


class _NamedFile(type(Path())):
    """The path of a file that messages call by another name."""

    shown: str

    def __str__(self) -> str:
        return self.shown

    def __fspath__(self) -> str:
        return super().__str__()


class _Server:
    """The caller's end of one server process."""

    def __init__(self) -> None:
        self._memory, self._given = _shared_memory(), _shared_memory()
        self._socket, theirs = Pipe()
        with theirs, stop_signals_held():
            fds = (theirs.fileno(), self._memory, self._given)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            )
        self.usable = True

    def run(
        self, function: Callable, path: Any, args: tuple, kwargs: dict, given: bytes | None, cpu_seconds: int
    ) -> Any:
        self.usable = False  # until the answer is there
        if given is not None:
            os.ftruncate(self._given, 0)
            _write(self._given, memoryview(given), 0)
        limits = (cpu_seconds, WALL_SECONDS, MEMORY)
        call = (function.__module__, function.__qualname__, (path, *args), kwargs)
        try:
            # Names may be relative to a folder that is not the one in which the server was started.
            self._socket.send((*call, os.getcwd(), limits))
            outcome, said, records = self._socket.recv()
        except (EOFError, OSError):
            raise FatalFileError(path, "the process that reads it has gone (out of memory?)") from None
        self.usable = True
        for name, level, text in records:
            logging.getLogger(name).log(level, "%s", text)
        if outcome == "result":
            body, sizes = said
            return pickle.loads(body, buffers=self._buffers(sizes))
        if outcome == "raised":
            raise said
        raise FatalFileError(path, said)

    def _buffers(self, sizes: list[int]) -> list[np.ndarray]:
        buffers, place = [], 0
        for size in sizes:
            buffer, done = np.empty(size, np.uint8), 0
            while done < size:
                done += os.preadv(self._memory, [buffer.data[done:]], place + done)
            buffers.append(buffer)
            place += size
        if place > KEPT:
            os.ftruncate(self._memory, 0)
        return buffers

    def close(self, ends: bool = True) -> None:
        """Close the connection, which ends the server. ends=False: in a forked process, whose parent keeps using it."""
        self._socket.close()
        os.close(self._memory)
        os.close(self._given)
        if ends:
            self._process.wait()
        else:
            self._process.returncode = 0  # not this process's child


def _shared_memory() -> int:
    """The descriptor of an anonymous file."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clips", 0)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Pool:
    """The servers of this process, of which the idle ones are reused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Server] = []
        self._all: list[_Server] = []

    @contextlib.contextmanager
    def taken(self) -> Iterator["_Server"]:
        with self._lock:
            server = self._idle.pop() if self._idle else None
        if server is None:
            server = _Server()
            self._all.append(server)
        try:
            yield server
        finally:
            if server.usable:
                self._idle.append(server)
            else:
                self._all.remove(server)
                server.close()

    def close(self, ends: bool = True) -> None:
        self._lock = threading.Lock()  # a thread that held it may not exist any more
        for server in self._all:
            server.close(ends)
        self._idle, self._all = [], []


_pool = _Pool()
_in_worker = False
os.register_at_fork(after_in_child=lambda: _pool.close(ends=False))
atexit.register(_pool.close)


def read_here() -> None:
    """From now on read files in this process: for a process whose parent expects that a file may end it."""
    global _in_worker
    _in_worker = True


def serve(socket: int, memory: int, given: int) -> None:
    """The server's loop: pass requests to a worker and send back its answer, or how it died, until the caller closes
    the socket.
    """
    read_here()
    caller = Connection(socket)
    worker: Connection | None = None
    pid = 0  # of the worker; 0: it has ended
    while True:
        try:
            request = caller.recv()
        except (EOFError, OSError):  # the caller has ended; killed, it resets the connection
            break
        module, *_, (cpu, wall, space) = request
        importlib.import_module(module)  # once, for all workers to come
        if worker is None:
            worker, pid = _fork(caller, memory, given, space)
        with contextlib.suppress(OSError):
            worker.send((request[:-1], cpu))
        ready = wait([caller, worker], timeout=wall)
        if worker in ready:
            try:
                answer, spoilt = worker.recv()
            except (EOFError, OSError):
                answer, spoilt = ("died", _cause(os.waitpid(pid, 0)[1], cpu), []), True
                pid = 0
        else:  # the caller has gone, or the time is over
            answer, spoilt = ("died", f"reading it takes more than {wall} s", []), True
        if spoilt:
            worker.close()
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            worker = None
        try:
            caller.send(answer)
        except OSError:
            break
    if worker is not None:
        os.kill(pid, signal.SIGKILL)


def _cause(status: int, cpu: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"reading it ends the process that does, with status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    if number in (signal.SIGPROF, signal.SIGXCPU):
        return f"reading it takes more than {cpu} s of processor time"
    killed = " (out of memory?)" if number == signal.SIGKILL else ""
    return f"reading it crashes the media library ({signal.Signals(number).name}{killed})"


def _fork(caller: Connection, memory: int, given: int, space: int) -> tuple[Connection, int]:
    ours, theirs = Pipe()
    pid = os.fork()
    if pid:
        theirs.close()
        return ours, pid
    # Whatever happens, a worker must never return from here and act as a second server.
    try:
        ours.close()
        caller.close()
        # Messages of the C library would appear on the terminal without the file's name.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (space if most < 0 else min(space, most), most))
        _work(theirs, memory, given, space)
    finally:
        os._exit(1)


def _work(server: Connection, memory: int, given: int, space: int) -> None:
    records: list[tuple[str, int, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.name, record.levelno, record.getMessage()))
    logging.getLogger().addHandler(handler)
    while True:
        try:
            (module, name, args, kwargs, folder), cpu = server.recv()
        except (EOFError, OSError):
            os._exit(0)
        records.clear()
        signal.setitimer(signal.ITIMER_PROF, cpu)
        try:
            os.chdir(folder)
            function = getattr(importlib.import_module(module), name).__wrapped__
            with _as_file(args[0], given) as path:
                answer, spoilt = ("result", _stored(function(path, *args[1:], **kwargs), memory)), False
        except MemoryError:
            answer, spoilt = ("died", f"reading it takes more than {space >> 30} GiB of memory"), True
        except Exception as error:
            if not isinstance(error, MovaError):
                error.add_note(traceback.format_exc())
            answer, spoilt = ("raised", error), True
        signal.setitimer(signal.ITIMER_PROF, 0)
        server.send(((*answer, list(records)), spoilt))


@contextlib.contextmanager
def _as_file(path: Any, given: int) -> Iterator[Any]:
    """Yield `path`, or for _Given a path under which the bytes in the shared memory `given` can be opened."""
    if not isinstance(path, _Given):
        yield path
        return
    place = f"/proc/self/fd/{given}"
    with tempfile.NamedTemporaryFile() if not os.path.exists(place) else contextlib.nullcontext() as copy:
        if copy is not None:
            # Systems without such names: macOS.
            _write(copy.fileno(), memoryview(os.pread(given, os.fstat(given).st_size, 0)), 0)
            place = copy.name
        file = _NamedFile(place)
        file.shown = str(path)
        yield file


def _write(file: int, data: memoryview, place: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], place + done)


def _stored(result: Any, memory: int) -> tuple[bytes, list[int]]:
    """Write the arrays of a result into the shared memory; return the pickled rest and the arrays' sizes in bytes."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    sizes, place = [], 0
    for buffer in buffers:
        view = buffer.raw()
        _write(memory, view, place)
        sizes.append(len(view))
        place += len(view)
    return body, sizes
