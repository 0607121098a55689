"""A run ends within a step of a stop signal, or of a callback that raises, in every mode; what is not finite, in its
own. Nothing half made is left, and the next run is as if there had been none before.
"""

import json
import os
import random
import signal
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mova_engine.commands.calibrate_steps import main as calibrate_command
from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import Clip
from mova_engine.data.media.write import write_mp4
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.schedule import Schedule
from mova_engine.diffusion.solvers import solver
from mova_engine.errors import MovaError
from mova_engine.inference import audio_alone, denoising
from mova_engine.inference.__main__ import main
from mova_engine.inference.audio_alone import generate_sound
from mova_engine.inference.clip_sinks import WholeClip
from mova_engine.inference.extension import Extension, extended
from mova_engine.inference.first_block import FirstBlock
from mova_engine.inference.given_clip import GivenClip, Window
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.step_calibration import calibrate
from mova_engine.inference.step_plan import StepPlan
from mova_engine.inference.unfinished import complete_clips
from mova_engine.inference.velocities import VelocityModel

# Of the stop signal's test, "fast" has more steps: it is stopped in one of the first.
SHAPE, STEPS, TEXT = ClipConfig(frames=9, height=32, width=48), 4, Guidance("text", 3.0)
# What `cancelled` and `poisoned` generate; None: all that is.
BOTH, VIDEO, AUDIO = ("video", "audio"), ("video",), ("audio",)


@dataclass(frozen=True)
class Mode:
    """Words of the command; the same in Python; which modalities are made; windows of a long clip."""

    words: str = ""
    given: Callable[[Clip], GivenClip] | None = None
    settings: SampleSettings = field(default_factory=lambda: SampleSettings(STEPS, TEXT))
    every: int = 1
    made: tuple[str, ...] = BOTH
    windows: int = 1
    source: bool = False
    how: Callable[..., Any] | None = None


def _clips(pipeline, requests, settings, mode, clip, **hooks):
    return list(pipeline.generate(requests, settings, **hooks))


def _long(pipeline, requests, settings, mode, clip, **hooks):
    extension = Extension.of(SHAPE, 0.6, 5)
    hooks["source"] = clip if mode.source else None
    return list(extended(pipeline, lambda _: WholeClip(14, 32, 48), requests, settings, extension, **hooks))


def _sound(pipeline, requests, settings, mode, clip, **hooks):
    return [Clip(None, sound) for sound in generate_sound(pipeline, requests, settings, **hooks)]


def _errors(pipeline, requests, settings, mode, clip, **hooks):
    rows = calibrate(pipeline, requests, settings, 2, **hooks)
    return [Clip(None, np.array([row[name]["guided"] for row in rows for name in BOTH]))]


def _of(words: str = "", **fields: Any) -> Mode:
    return Mode(words, settings=SampleSettings(STEPS, **{"guidance": TEXT, **fields}))


def _kept(video: Any, audio: Any) -> Callable[[Clip], GivenClip]:
    return lambda clip: GivenClip(clip, video, audio)


RETAKE, WINDOW = "--retake {clip} --window 0.15 0.25", Window(0.15, 0.25)
GIVEN_VIDEO = {"given": _kept("all", "none"), "made": AUDIO}
MODES = {
    "plain": Mode(),
    "unipc": _of("--solver unipc", solver="unipc"),
    "heun": _of("--solver heun", solver="heun"),
    "dual": _of("--guidance dual", guidance=Guidance("dual", 3.0, 2.0)),
    "sigmas": _of("--sigmas 1 0.9 0.7 0.4", sigmas=(1.0, 0.9, 0.7, 0.4)),
    "keyframe": Mode("--keyframe {picture}:0.2"),
    "video": Mode("--video {clip}", **GIVEN_VIDEO),
    "video in every second step": Mode("--video {clip} --video-passes 2", every=2, **GIVEN_VIDEO),
    "video once": Mode("--video {clip} --video-passes once", every=0, **GIVEN_VIDEO),
    "audio": Mode("--audio {clip}", _kept("none", "all"), made=VIDEO),
    "retake": Mode(RETAKE, _kept(WINDOW, WINDOW)),
    "retake of the sound": Mode(f"{RETAKE} --retake-of audio", _kept("all", WINDOW), made=AUDIO),
    "long": Mode("--seconds 0.6 --overlap 5", windows=3, how=_long),
    "extend": Mode("--extend {clip} --seconds 0.6 --overlap 5", windows=2, source=True, how=_long),
    "sound alone": Mode("--audio-alone", made=AUDIO, how=_sound),
    "cache": replace(
        _of("--cache 1.3 --cache-file {cache}", cache=StepPlan((2,), STEPS, 3, 4, 0.0, 0.0)),
    ),
    "adaptive cache": _of("--cache adaptive:0.3", cache=FirstBlock(0.3)),
    "fast": _of("--fast", solver="unipc"),
    "calibrate": Mode("calibrate", how=_errors),
}


# Of modes that differ little from another one, the long tests have both.
LONG = ("dual", "sigmas", "keyframe", "video in every second step", "audio", "retake of the sound", "extend", "cache")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in MODES])
def mode(request):
    return MODES[request.param]


@pytest.fixture
def draw(request):
    return random.Random(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope="module")
def clip() -> Clip:
    generator = np.random.default_rng(0)
    pictures = np.repeat(np.repeat(generator.integers(0, 255, (9, 4, 6, 3), np.uint8), 8, 1), 8, 2)
    return Clip(pictures, (0.4 * np.sin(np.arange(SHAPE.audio_samples) / 20)).astype(np.float32))


@pytest.fixture
def ran(pipeline, mode, clip):
    """Make the mode's clip with these hooks: its pictures and sound."""
    # The expert of high noise has three of the steps.
    pipeline.schedule = Schedule(boundary=0.6)
    pipeline.options = replace(pipeline.options, video_every=mode.every)
    request = Request("rain", 3, given=None if mode.given is None else mode.given(clip))

    def run(**hooks):
        (made,) = (mode.how or _clips)(pipeline, [request], mode.settings, mode, clip, **hooks)
        return [x for x in (made.video, made.audio) if x is not None]

    return run


class Cancel(Exception):
    pass


def test_a_callback_that_raises_ends_the_run_and_leaves_no_trace(ran, mode, draw):
    whole, seen, last = ran(), [], draw.randrange(mode.windows * STEPS)

    def stepped(step):
        seen.append(step.index)
        if len(seen) == last + 1:
            raise Cancel

    with pytest.raises(Cancel):
        ran(on_step=stepped)
    assert len(seen) == last + 1
    assert all(np.array_equal(x, y) for x, y in zip(ran(), whole, strict=True))


def test_what_is_not_finite_is_found_in_the_step_where_it_arises(ran, mode, draw, monkeypatch):
    each = solver(mode.settings.solver).evaluations(STEPS)
    for number, name in enumerate(BOTH):
        if name not in mode.made:
            continue
        spoilt, count, steps = draw.randrange(mode.windows * len(each)), [0], []

        def poisoned(real, number=number, spoilt=spoilt, count=count):
            def spoiling(*args):
                found = real(*args)
                count[0] += 1
                if count[0] == spoilt + 1:
                    found = {b: tuple(v * torch.nan if i == number else v for i, v in enumerate(pair))
                             for b, pair in found.items()}  # fmt: skip
                return found

            return spoiling

        with monkeypatch.context() as patched:
            if mode.how is _errors:
                patched.setattr(VelocityModel, "evaluate", poisoned(VelocityModel.evaluate))
            else:
                for name_of in ("evaluate", "evaluate_audio"):
                    patched.setattr(VelocityModel, name_of, poisoned(getattr(VelocityModel, name_of)))
            window, within = divmod(spoilt, len(each))
            step = next(e.completes for e in each[within:] if e.completes is not None)
            with pytest.raises(MovaError, match=f"latents that are not finite in step {step + 1};"):
                ran(on_step=lambda s, steps=steps: steps.append(s.index))
        assert len(steps) == window * STEPS + step


@pytest.fixture(scope="module")
def files(tmp_path_factory, clip, saved_run):
    folder = tmp_path_factory.mktemp("given")
    write_mp4(folder / "clip.mp4", clip.pictures, clip.audio[: round(SHAPE.duration * SHAPE.sample_rate)])
    Image.fromarray(clip.pictures[4]).save(folder / "frame.png")
    words = {**_COMMON, "--checkpoint": saved_run, "--out": folder / "cache.json"}
    assert calibrate_command([str(word) for pair in words.items() for word in pair]) == 0
    return {"clip": folder / "clip.mp4", "picture": folder / "frame.png", "cache": folder / "cache.json"}


_COMMON = {"--prompt": "rain", "--device": "cpu", "--steps": STEPS, "--guidance": "text", "--text-scale": 3}


@pytest.fixture
def command(saved_run, tmp_path, files):
    """Run the command of a mode; returns its exit status."""

    def run(words, *more):
        given = {**_COMMON, "--checkpoint": saved_run, "--out": tmp_path / "out"}
        for stated, dropped in (
            ("--sigmas", ("--steps",)),
            ("--fast", ("--steps",)),
            ("--guidance", ("--guidance", "--text-scale")),
        ):
            if stated in words:
                given = {option: value for option, value in given.items() if option not in dropped}
        calibrating = words == "calibrate"
        own = [] if calibrating else [word.format(**files) for word in words.split()]
        try:
            return (calibrate_command if calibrating else main)(
                [*(str(word) for pair in given.items() for word in pair), *own, *more]
            )
        except SystemExit as stop:
            return stop.code

    return run


@pytest.fixture
def signalled(monkeypatch):
    """Send this process a signal after a step; returns the list of steps that were completed."""

    def prepare(number, after):
        steps = []
        real = denoising.check_finite

        def counted(state, step):
            real(state, step)
            steps.append(step)
            if len(steps) == after + 1:
                signal.raise_signal(number)

        for module in (denoising, audio_alone):
            monkeypatch.setattr(module, "check_finite", counted)
        return steps

    # Ignored, as under nohup, it stays ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield prepare
    signal.signal(signal.SIGHUP, before)


def test_a_stop_signal_ends_the_command_within_a_step(command, mode, draw, signalled, tmp_path, capsys):
    number, after = draw.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), draw.randrange(mode.windows * STEPS)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    steps = signalled(number, after)
    assert command(mode.words) == 128 + number
    assert len(steps) == after + 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped by")]
    assert said.startswith(f"stopped by {number.name}: no")
    assert list(tmp_path.rglob("*")) == []
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_a_listing_is_divided_at_line_ends_alone(tmp_path):
    """A caption may hold U+2028, which other readers take for the end of a line."""
    rows = [{"video_path": f"{i}.mp4", "caption": "one\u2028two", "run": "ours"} for i in range(2)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert complete_clips(tmp_path / "x.jsonl", "ours") == rows


def test_the_same_command_goes_on_after_the_clips_that_are_complete(command, signalled, tmp_path, capsys, monkeypatch):
    words, out = "--batch 1 --count 3", tmp_path / "out"
    steps = signalled(signal.SIGTERM, STEPS + 1)
    assert command(words) == 143
    assert len(steps) == STEPS + 2
    assert [row["video_path"] for row in rows(out)] == ["000.mp4"]
    assert sorted(path.name for path in out.iterdir()) == [
        ".mova_written.jsonl",
        "000.json",
        "000.mp4",
        "metadata.jsonl",
    ]
    said = " ".join(capsys.readouterr().err.split())
    assert f"the clips that {out / 'metadata.jsonl'} lists are complete; the same command goes on from there" in said
    first = (out / "000.mp4").stat()
    # Not the same command: other settings, or other weights.
    for other in ("--batch 1 --count 3 --seed 1", "--batch 1 --count 2", "--batch 1 --count 3 --solver unipc"):
        with pytest.raises(MovaError, match="already holds samples"):
            command(other)
    monkeypatch.undo()
    # Nor without the clip.
    (out / "000.mp4").rename(tmp_path / "aside.mp4")
    with pytest.raises(MovaError, match="already holds samples"):
        command(words)
    (tmp_path / "aside.mp4").rename(out / "000.mp4")
    assert command(words) == 0
    assert "1 clip of a run of this command that was stopped stay" in " ".join(capsys.readouterr().err.split())
    after = (out / "000.mp4").stat()
    assert (after.st_ino, after.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert [row["seed"] for row in rows(out)] == [0, 1, 2]
    gone_on = [(out / row["video_path"]).read_bytes() for row in rows(out)]
    assert command(words, "--overwrite") == 0
    assert [(out / row["video_path"]).read_bytes() for row in rows(out)] == gone_on
    with pytest.raises(MovaError, match="already holds samples"):
        command(words)


@pytest.mark.parametrize("names", [["000.json"], ["000.json", "000.mp4"]])
def test_a_signal_while_a_clip_is_written_leaves_no_part_of_it(names, command, monkeypatch, tmp_path):
    replaced, real = [], os.replace

    def stopped(source, target):
        # Digests and keys that are kept for the user are written too.
        if target.parent == tmp_path / "out":
            replaced.append(target)
            if target.name == names[-1]:
                signal.raise_signal(signal.SIGINT)
        real(source, target)

    monkeypatch.setattr("mova_engine.files.atomic.os.replace", stopped)
    assert command("") == 130
    monkeypatch.undo()
    assert [path.name for path in replaced] == names
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".mova_written.jsonl"]
    assert command("") == 0 and len(rows(tmp_path / "out")) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_loses_in_a_finalizer_is_obeyed_after_the_step(command, signalled, monkeypatch):
    steps = signalled(signal.SIGTERM, 1)
    real = signal.raise_signal

    class Finalized:
        def __del__(self):
            real(signal.SIGTERM)

    monkeypatch.setattr(signal, "raise_signal", lambda _: Finalized() and None)
    assert command("") == 143
    assert len(steps) == 2
