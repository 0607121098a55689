"""Signals at every moment of a run's life: obeyed, with a checkpoint of what was trained and the right exit status."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from mova_engine.distributed.stop_signals import SAME_REQUEST_S, STOPS, Stopped, StopRequest
from mova_engine.train import assembly, trainer
from mova_engine.train.trainer import Trainer
from mova_engine.train.training_state import checkpoints_of
from mova_engine.train.validation import Validator

STEPS = 6


@pytest.fixture(autouse=True)
def _as_at_a_terminal():
    """A suite that runs in the background or under nohup inherits signals that are set aside."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int = signal.SIGTERM) -> None:
    """To this process; Python runs the handler before the next line."""
    os.kill(os.getpid(), number)
    time.sleep(0)


def at(monkeypatch, place, name: str, number: int = signal.SIGTERM, call: int = 1, before: bool = True) -> None:
    """Send a signal when `place.name` is called for the `call`-th time."""
    right, calls = getattr(place, name), []

    def called(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and before:
            send(number)
        result = right(*args, **kwargs)
        if len(calls) == call and not before:
            send(number)
        return result

    monkeypatch.setattr(place, name, called)


def steps_of(run) -> list[int]:
    return [step for step, _ in checkpoints_of(run.config.folder)]


def test_a_signal_while_processes_agree_is_kept_for_the_next_step():
    class Others:
        def all_reduce_max(self, number: int) -> int:
            send()
            return number

    with StopRequest() as stop:
        assert not Trainer._asked_to_stop(stop, Others()) and stop.signal == signal.SIGTERM
        assert Trainer._asked_to_stop(stop, Others()) and stop.exit_code == 143


@pytest.mark.parametrize("later", [0.0, 1.5 * SAME_REQUEST_S])
def test_a_signal_that_reaches_this_process_after_all_have_agreed_is_the_same_request(monkeypatch, later):
    """A signal to all processes does not reach them at once: some learn of it from the others first."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Others:
        def all_reduce_max(self, number: int) -> int:
            return 1 + signal.SIGINT

    with StopRequest() as stop:
        assert Trainer._asked_to_stop(stop, Others())
        now[0] += later
        send(signal.SIGINT)  # as ever it would raise KeyboardInterrupt
        assert stop.exit_code == 130
        now[0] += 1.5 * SAME_REQUEST_S
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_save_asked_for_while_processes_agree_is_kept_too():
    class Others:
        def all_reduce_max(self, number: int) -> int:
            send(signal.SIGUSR1)
            return number

    class Quiet:
        def all_reduce_max(self, number: int) -> int:
            return number

    with StopRequest() as stop:
        assert not Trainer._asked_to_stop(stop, Others()) and not stop.save
        assert not Trainer._asked_to_stop(stop, Quiet()) and stop.save
        assert not Trainer._asked_to_stop(stop, Quiet()) and stop.save, "until it is met"
        assert stop.take_save() and not stop.take_save()


def test_what_any_process_was_asked_all_do():
    class Asked:
        def all_reduce_max(self, number: int) -> int:
            return max(number, 1 + signal.SIGHUP)

    with StopRequest() as stop:
        send(signal.SIGUSR1)  # a stop saves anyway
        assert Trainer._asked_to_stop(stop, Asked()) and stop.exit_code == 129 and not stop.save


def test_a_stop_in_a_step_saves_that_step(small, ran, monkeypatch):
    assert signal.SIGHUP in STOPS
    at(monkeypatch, trainer.Updater, "step", signal.SIGHUP, call=2)
    done = ran(small(steps=STEPS))
    assert (done.status, steps_of(done)) == (129, [2])
    assert "stopped by request after step 2" in done.said


@pytest.mark.parametrize("place, name", [(assembly, "build_codecs"), (assembly, "build_model")])
def test_a_stop_before_the_first_step_ends_at_once(small, ran, monkeypatch, place, name):
    at(monkeypatch, place, name)
    done = ran(small(steps=STEPS))
    assert (done.status, steps_of(done)) == (143, []) and "before the first step" in done.said
    monkeypatch.undo()
    assert ran(small(steps=1)).status == 0


@pytest.mark.long
def test_a_stop_between_start_up_and_the_first_step_saves_nothing_twice(small, ran, monkeypatch):
    ran(small(steps=2))
    at(monkeypatch, trainer, "MetricsLog")
    before = {path: path.stat().st_mtime_ns for path in small().folder.glob("checkpoints/*/training/*")}
    done = ran(small(steps=STEPS))
    assert (done.status, steps_of(done)) == (143, [2])
    assert before == {path: path.stat().st_mtime_ns for path in small().folder.glob("checkpoints/*/training/*")}


def test_a_stop_in_a_save_is_obeyed_after_it(small, ran, monkeypatch):
    at(monkeypatch, trainer, "save_checkpoint")
    done = ran(small(steps=STEPS, checkpoint={"every": 2}))
    assert (done.status, steps_of(done)) == (143, [2])


@pytest.mark.long
def test_a_stop_in_the_last_save_finds_the_run_done(small, ran, monkeypatch):
    at(monkeypatch, trainer, "save_checkpoint")
    at(monkeypatch, trainer, "loss_curve")
    done = ran(small(steps=2))
    assert (done.status, steps_of(done)) == (0, [2]) and "done: 2 steps" in done.said


def test_a_stop_in_the_validation_breaks_its_samples_off(small, ran, clips, monkeypatch):
    config = {"validation": {"every": 2, "data": clips, "clips": 2}}
    at(monkeypatch, Validator, "sample")
    done = ran(small(steps=STEPS, **config))
    assert (done.status, steps_of(done)) == (143, [2]) and "samples of step 2 are not complete" in done.said


@pytest.mark.long
def test_a_validation_put_off_by_a_stop_is_made_up_for(small, ran, clips, monkeypatch):
    config = {"validation": {"every": 2, "data": clips, "clips": 2, "samples": 0}}
    whole = ran(small("whole", steps=3, **config))
    at(monkeypatch, trainer.Updater, "step", call=2, before=False)
    assert ran(small("broken", steps=3, **config)).status == 143
    monkeypatch.undo()
    broken = ran(small("broken", steps=3, **config))
    rows = [[(row["step"], row.get("loss"), row.get("heldout/video")) for row in run.rows] for run in (whole, broken)]
    assert rows[0] == rows[1] and len(rows[0]) == 4


def test_sigusr1_saves_and_goes_on(small, ran, monkeypatch):
    at(monkeypatch, trainer.Updater, "step", signal.SIGUSR1, call=2)
    done = ran(small(steps=4))
    assert (done.status, steps_of(done)) == (0, [2, 4]) and "saving step 2 by request" in done.said


def test_a_second_signal_acts_as_ever_and_a_repeated_one_does_not(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopRequest() as stop:
        send(signal.SIGINT)
        now[0] = 0.5 * SAME_REQUEST_S
        send(signal.SIGINT)  # the terminal's and the launcher's
        assert stop.signal == signal.SIGINT
        now[0] = 1.5 * SAME_REQUEST_S
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_signal_that_python_dropped_is_not_lost():
    # Suppressed, as Python does in a finalizer.
    with StopRequest() as stop, pytest.raises(Stopped), stop.at_once(), suppress(Stopped):
        send()


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_the_program_ends_does_not_change_its_status():
    code = (
        "import atexit, os, signal\nfrom mova_engine.errors import run_cli\n"
        "atexit.register(lambda: [os.kill(os.getpid(), n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)])\n"
        "run_cli(lambda: 143)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 143
