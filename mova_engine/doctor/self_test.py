"""The self test: does this device compute what the reference computes, and does a clip survive its file?"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from mova_engine.backend.health import OK, PROBLEM, Finding
from mova_engine.config.model import ClipConfig
from mova_engine.doctor.examination import Examination
from mova_engine.ops import bind
from mova_engine.parity.builtin import operator_rows, tower_rows
from mova_engine.parity.case import CaseDevice
from mova_engine.parity.judge import ParityRow
from mova_engine.parity.runner import run_folder

DTYPES = (torch.float32, torch.bfloat16)
_TINY_CLIP = ClipConfig(frames=9, height=64, width=96)
# H.264 and AAC at write_mp4's quality lose less than half of this: of 255 steps, and of a sound that reaches 0.5.
_PIXEL_ERROR, _SOUND_ERROR = 4.0, 0.05


def _verdict(rows: Iterable[ParityRow], passed: str, do: str) -> list[Finding]:
    """A problem for each miss; one line with the worst row where there is none."""
    rows = list(rows)
    if not rows:
        return [Finding(OK, f"{passed}: there is nothing but the reference")]
    missed = [row for row in rows if not row.passed]
    if not missed:
        worst = max(rows, key=lambda row: _share(row))
        return [Finding(OK, f"{passed}: {len(rows)} compared, the worst at {_share(worst):.0%} of what is allowed")]
    found = []
    for row in missed:
        how = row.note or f"{_share(row):.3g} times the difference that is allowed"
        found.append(Finding(PROBLEM, f"{row.case}, {row.tensor}: {how}", do.format(row=row)))
    return found


def _share(row: ParityRow) -> float:
    difference = row.difference or 0.0
    return difference / row.bound if row.bound else float(difference > 0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tests' tensors are small: several threads would wait for each other for most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def examine_operators(examination: Examination) -> list[Finding]:
    """Every chosen operator, values and gradients, against its reference."""
    found = []
    with examination.backend.full_precision(), _one_thread():
        for dtype in DTYPES:
            rows = operator_rows(examination.backend, dtype)
            do = "train with --ops.{row.case} reference, and report this"
            found += _verdict(rows, f"chosen operators agree with the reference in {_name(dtype)}", do)
    return found


def examine_towers(examination: Examination) -> list[Finding]:
    """Forward and backward of a small dual tower against the same with the reference operators on the CPU."""
    found = []
    ops = bind(examination.backend)
    with examination.backend.full_precision(), _one_thread():
        for dtype in DTYPES:
            rows = tower_rows(examination.backend, ops, dtype)
            do = "run `mova ops` and `mova bench operators` on this device, and report this"
            found += _verdict(rows, f"forward and backward of both towers agree in {_name(dtype)}", do)
    return found


def examine_golden(examination: Examination) -> list[Finding]:
    """Numbers recorded from the reference model."""
    backend, folder = examination.backend, examination.golden
    if folder is None:
        what = "no recorded cases at hand (they come with a checkout); the tests above stand for them"
        return [Finding(OK, what, "--golden FOLDER names some")]
    with backend.full_precision(), _one_thread():
        machine = CaseDevice(bind(backend), backend.device())
        rows = [row for _, rows in run_folder(folder, machine) for row in rows]
    return _verdict(
        rows, "recorded numbers of the reference model are reproduced", "run `mova parity`, and report this"
    )


def examine_media(examination: Examination) -> list[Finding]:
    """Pictures and sound through an mp4 file and back."""
    # Imported late: the other checks run where PyAV is not installed.
    from mova_engine.data.media.decode import read_clip
    from mova_engine.data.media.write import write_mp4

    frames, height, width = _TINY_CLIP.frames, _TINY_CLIP.height, _TINY_CLIP.width
    time = np.arange(frames)[:, None, None]
    x, y = np.arange(width)[None, None, :], np.arange(height)[None, :, None]
    wave = np.broadcast_to(128 + 90 * np.sin((x + 2 * y + 6 * time) / 20), (frames, height, width))
    video = np.repeat(wave.round().astype(np.uint8)[..., None], 3, axis=-1)
    seconds = np.arange(_TINY_CLIP.audio_samples) / _TINY_CLIP.sample_rate
    audio = (0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, video, audio, fps=_TINY_CLIP.fps)
        clip = read_clip(path, _TINY_CLIP)
    pixels = float(np.abs(clip.pictures.astype(float) - video).mean())
    sound = float(np.sqrt(np.mean((clip.audio - audio) ** 2)))
    good = pixels < _PIXEL_ERROR and sound < _SOUND_ERROR
    what = f"a clip through H.264 and AAC and back: off by {pixels:.2f} of 255 in pictures, {sound:.4f} in sound"
    return [Finding(OK if good else PROBLEM, what, "" if good else "pip install --force-reinstall av")]
