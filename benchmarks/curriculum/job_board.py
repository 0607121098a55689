"""Runs jobs as processes, several at once; what is finished is not run again. Prints progress and the time left."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.curriculum.stages import CurriculumJob
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic

# Seconds between two looks at the jobs, and between two lines about those that run.
_LOOK, _TELL = 0.5, 60.0
_TAIL = 12
_STEP = re.compile(r"step (\d+/\d+)")


def _copy(source: Path, target: Path) -> None:
    """A copy of a folder, whole or not at all, unless there is one."""
    if not target.exists():
        aside = target.with_name(f".{target.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        aside.rename(target)


class JobBoard:
    """jobs: in an order in which each comes after what it needs. folder: for their logs, and for what is finished."""

    def __init__(self, jobs: Sequence[CurriculumJob], folder: Path, at_once: int) -> None:
        """Raises MovaError where a finished job was another command."""
        self._jobs, self._folder, self._at_once = jobs, folder, at_once
        self._names = [job.name for job in jobs]
        folder.mkdir(parents=True, exist_ok=True)
        self._seconds = {job.name: taken for job in jobs if (taken := self._finished(job)) is not None}
        self._running: dict[str, tuple[CurriculumJob, subprocess.Popen[bytes], float]] = {}
        # Of the jobs of this process: seconds they took, and those that were expected.
        self._taken, self._expected = 0.0, 0.0
        # A job is worth as much as the longest way from it to the end.
        self._ahead = {job.name: job.seconds for job in jobs}
        for job in reversed(jobs):
            for name in job.needs:
                expected = next(each.seconds for each in jobs if each.name == name)
                self._ahead[name] = max(self._ahead[name], expected + self._ahead[job.name])

    @property
    def seconds(self) -> dict[str, dict[str, float]]:
        """What each job took: {"wall": seconds, "cpu": seconds of processor time, its processes together}."""
        return dict(self._seconds)

    def run(self) -> None:
        """Run what is not finished. Raises MovaError where a job fails, with the end of its log; the others end too."""
        if self._seconds:
            self._say(f"{len(self._seconds)} of {len(self._jobs)} jobs are finished already")
        told = time.monotonic()
        with self._ended():
            while len(self._seconds) < len(self._jobs):
                self._start_ready()
                time.sleep(_LOOK)
                for job, process, since in list(self._running.values()):
                    ended, status, used = os.wait4(process.pid, os.WNOHANG)
                    if ended:
                        process.returncode = os.waitstatus_to_exitcode(status)
                        self._end(job, process, time.monotonic() - since, used.ru_utime + used.ru_stime)
                if time.monotonic() - told >= _TELL and self._running:
                    told = time.monotonic()
                    self._say(f"{', '.join(self._place(name) for name in self._running)}; {self._left()}")

    def _start_ready(self) -> None:
        waiting = [job for job in self._jobs if job.name not in self._seconds and job.name not in self._running]
        ready = [job for job in waiting if all(name in self._seconds for name in job.needs)]
        for job in sorted(ready, key=lambda job: -self._ahead[job.name])[: self._at_once - len(self._running)]:
            if job.copied:
                _copy(*job.copied)
            # One thread each: two jobs on two cores are faster than one on both.
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with open(self._log(job.name), "ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "mova_engine", *job.words], stdout=log, stderr=log, env=environment
                )
            self._running[job.name] = job, process, time.monotonic()

    def _end(self, job: CurriculumJob, process: subprocess.Popen[bytes], seconds: float, cpu: float) -> None:
        del self._running[job.name]
        if process.returncode:
            raise MovaError(
                f"{job.name} ended with status {process.returncode}: mova {' '.join(job.words)}\n"
                + "\n".join(self._lines(job.name)[-_TAIL:])
            )
        self._seconds[job.name] = {"wall": round(seconds, 1), "cpu": round(cpu, 1)}
        self._taken, self._expected = self._taken + seconds, self._expected + job.seconds
        done = {"command": job.words, "seconds": self._seconds[job.name]}
        write_atomic(self._folder / f"{job.name}.json", json.dumps(done).encode())
        self._say(f"{job.name} took {seconds:.0f} s; {len(self._seconds)} of {len(self._jobs)} jobs; {self._left()}")

    def _finished(self, job: CurriculumJob) -> dict[str, float] | None:
        path = self._folder / f"{job.name}.json"
        if not path.is_file():
            return None
        done = json.loads(path.read_text())
        if done["command"] != list(job.words):
            raise MovaError(
                f"{path}: {job.name} was run with other settings (mova {' '.join(done['command'])}): give another "
                "folder, or remove this one"
            )
        return done["seconds"]

    def _left(self) -> str:
        """About how long what is left takes: all of it by so many at once, or the longest chain alone."""
        if not self._expected:
            return "the time left is not known yet"
        gone = {name: time.monotonic() - since for name, (_, _, since) in self._running.items()}
        slower = self._taken / self._expected
        rest = {
            job.name: max(0.0, job.seconds * slower - gone.get(job.name, 0.0))
            for job in self._jobs
            if job.name not in self._seconds
        }
        longest = max((self._ahead[name] * slower - gone.get(name, 0.0) for name in rest), default=0.0)
        minutes = max(longest, sum(rest.values()) / self._at_once) / 60
        return f"about {max(1, round(minutes))} min left"

    def _place(self, name: str) -> str:
        found = _STEP.findall("\n".join(self._lines(name)[-3:]))
        return f"{name} (step {found[-1]})" if found else name

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _lines(self, name: str) -> list[str]:
        return self._log(name).read_text(errors="replace").splitlines()

    def _say(self, line: str) -> None:
        sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
        sys.stdout.flush()

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """However it ends, nothing goes on running; a training run saves a checkpoint, from which it goes on."""
        try:
            yield
        finally:
            for _, process, _ in self._running.values():
                process.terminate()
            for _, process, _ in self._running.values():
                process.wait()
