"""Work for the engines that needs no films: what their tests and the benchmark of their overhead run."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from mova_engine.curation.engine_work import StopRunError
from mova_engine.errors import MovaError


@dataclass(frozen=True)
class Squares:
    """n to n * n, after `seconds` of computing. Opening it leaves a file in `folder`."""

    folder: Path
    seconds: float = 0.0

    def opened(self):
        (self.folder / f"opened-{os.getpid()}").touch()
        return self._run

    def _run(self, number, beat):
        beat("squaring")
        until = time.process_time() + self.seconds
        while time.process_time() < until:
            pass
        return number * number


@dataclass(frozen=True)
class Accidents:
    """Items are words: what happens. Each attempt leaves a line in `folder`/ITEM; "KIND until N" ends well from the
    N-th attempt on.
    """

    folder: Path

    def opened(self):
        return self._run

    def _run(self, item, beat):
        with open(self.folder / item, "a") as file:
            file.write("tried\n")
        kind, _, number = item.partition(" until ")
        if number and (self.folder / item).read_text().count("tried") >= int(number):
            return f"{kind} after {number}"
        match kind:
            case "refused":
                raise MovaError("cannot be read")
            case "fault":
                raise ValueError("a fault\nof two lines")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(3)
            case "hangs":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                time.sleep(600)
            case "grows":
                held = []
                while True:
                    held.append(bytearray(os.urandom(1 << 20)) * 16)
                    time.sleep(0.01)
            case "disk full":
                raise StopRunError("no space left")
        return item


@dataclass(frozen=True)
class Stored:
    """Each item takes a minute, of which what was done so far is stored where it is interrupted."""

    folder: Path

    def opened(self):
        return self._run

    def _run(self, item, beat):
        done = 0
        try:
            (self.folder / f"{item} begun").touch()
            while done < 600:
                done += 1
                time.sleep(0.1)
        finally:
            (self.folder / f"{item} stored").write_text(str(done))
