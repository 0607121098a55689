"""What reaches the metrics of a file: which frames at which rate, and sound through ffmpeg's conversion."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import description, every
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recorded_media import media_file
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores.features import frame_choice
from mova_engine.scores.features.converted_sound import averaged_stereo_32k, convert_sound, unit_floats

IMAGEBIND_RATE, SYNCHFORMER_RATE = Fraction(1, 2), Fraction(25)
_SOUND = re.compile(r"in\.sound\.(.+)_(\d+)k")
_FRAMES = re.compile(r"frames ((?:\d+, )*\d+) at")
_LEVEL = "level_of_a_mono_source_in_IS_and_CLAP"


def run_decoding(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Frame indices of every recorded source; sounds and pictures of the recorded ones."""
    tensors: dict[str, torch.Tensor] = {}
    levels = {}
    for stored in case.tensors:
        if not (stated := _SOUND.fullmatch(stored)):
            continue
        name, rate, samples = stated[1], _sample_rate(int(stated[2])), case.tensors[stored].numpy()
        through_stereo = averaged_stereo_32k(samples, rate)
        fine = f"out.sound.{name}.44k_mono"
        at_44k = convert_sound(samples, rate, 44100, sample_format="flt")
        tensors |= {
            f"out.sound.{name}.16k_mono": torch.from_numpy(convert_sound(samples, rate, 16000)),
            f"out.sound.{name}.32k_via_stereo": torch.from_numpy(through_stereo),
            fine: torch.from_numpy(at_44k[:: every(case, fine, "samples")].copy()),
        }
        if samples.ndim == 1 and _LEVEL not in levels:
            plain = unit_floats(np.asarray(convert_sound(samples, rate, 32000), np.int16))
            levels[_LEVEL] = float(np.sqrt(np.square(through_stereo).mean() / np.square(plain).mean()))
    absent = {}
    recorded = {name.split(".")[1] for name in case.tensors if name.startswith("out.")}
    for name in recorded - {"sound"}:
        try:
            tensors |= _pictures(case, media_file(case.case, f"{name}.mp4"), name)
        except MovaError as error:
            absent[f"out.{name}.*"] = str(error)
    values = {
        "frame_indices": [_indices(entry) for entry in case.values["frame_indices"]],
        **levels,
    }
    return EvaluationOutcome(tensors, values, absent)


def _sample_rate(thousands: int) -> int:
    """Hz of a rate that a name states in kHz: 44k is 44100."""
    return {11: 11025, 22: 22050, 44: 44100, 88: 88200}.get(thousands, 1000 * thousands)


def _indices(entry: dict[str, Any]) -> dict[str, Any]:
    rate, count = Fraction(entry["source_fps"]), entry["source_frames"]
    times = [i / rate for i in range(count)]
    wanted = [int(float(each) * entry["seconds"]) for each in (IMAGEBIND_RATE, SYNCHFORMER_RATE)]
    imagebind, synchformer = (frame_choice.fps_filter(times, each) for each in (IMAGEBIND_RATE, SYNCHFORMER_RATE))
    lip_sync = frame_choice.constant_rate(times, SYNCHFORMER_RATE, 1 / rate)
    fall_back = [
        frame_choice.by_duration(each, float(rate), float(target), count)
        for each, target in zip(wanted, (IMAGEBIND_RATE, SYNCHFORMER_RATE), strict=True)
    ]
    return {
        "source_fps": entry["source_fps"],
        "source_frames": count,
        "seconds": entry["seconds"],
        "imagebind_0.5fps": imagebind[: wanted[0]],
        "synchformer_25fps": frame_choice.padded(synchformer, wanted[1]),
        "imagebind_after_padding": frame_choice.padded(imagebind, wanted[0]),
        "synchformer_frames_decoded": len(synchformer[: wanted[1]]),
        "decord_fallback_imagebind": fall_back[0],
        "decord_fallback_synchformer_first_60": fall_back[1][:60],
        "lip_sync_25fps_count": len(lip_sync),
        "lip_sync_25fps_first_40_last_5": lip_sync[:40] + lip_sync[-5:],
    }


def _pictures(case: StatedCase, path: Path, name: str) -> dict[str, torch.Tensor]:
    """Thinned pixels of the recorded frames of one file, by ffmpeg's own conversion to RGB."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        # The stream's memory goes with its container.
        time_base = Fraction(stream.time_base or 1)
        frames = list(container.decode(stream))
    stamps = [frame.pts or 0 for frame in frames]
    times = [(stamp - stamps[0]) * time_base for stamp in stamps]
    tensors = {}
    for metric, rate in (("imagebind", IMAGEBIND_RATE), ("synchformer", SYNCHFORMER_RATE)):
        kept = f"out.{name}.{metric}"
        if kept not in case.tensors:
            continue
        stated = _FRAMES.search(description(case, kept))
        numbers = list(map(int, stated[1].split(", "))) if stated else list(range(len(case.tensors[kept])))
        indices = frame_choice.padded(frame_choice.fps_filter(times, rate), max(numbers) + 1)
        step = every(case, kept, "rows"), every(case, kept, "columns")
        tensors[kept] = torch.stack([_thinned(frames[indices[i]], *step) for i in numbers])
    return tensors


def _thinned(frame: av.VideoFrame, rows: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(frame.to_ndarray(format="rgb24")[::rows, ::columns].transpose(2, 0, 1).copy())


CASE = CaseRunner(
    run_decoding,
    {
        "out.sound.*.16k_mono": Bound(2, "absolute"),
        "out.sound.*": Bound(1e-4, "absolute"),
        "out.*": Bound(2, "absolute"),
        "values.level_of_a_mono_source_in_IS_and_CLAP": Bound(1e-3, "absolute"),
    },
    dict.fromkeys(("values.torchaudio_with_torio", "values.ffmpeg"), "what the case was recorded with"),
)
