"""AV-Align: onsets of sound, peaks of motion and how many meet, from stored clips and from whole files."""

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import every
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recorded_media import media_file
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import av_align
from mova_engine.scores.features.converted_sound import convert_sound, unit_floats

# Names state the frames whose picture and flow are stored, and other hops for the onsets.
_GREY, _FLOW = re.compile(r"mid\.first_clip\.gray(\d+)"), re.compile(r"mid\.first_clip\.flow_(\d+)_(\d+)")
_HOP = re.compile(r"audio_onsets_s_with_hop_(\d+)")
_STATED_FLOW = "Farneback(pyr_scale 0.5, levels 3, winsize 15, iterations 3, poly_n 5, poly_sigma 1.2, flags 0)"


def run_av_align(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Every recorded clip, file and pair of lists of times."""
    case.require("sample_rate", av_align.SAMPLE_RATE)
    case.require("min_flow", av_align.LEAST_FLOW)
    case.require("flow", f"{_STATED_FLOW} on grey frames")
    case.describes("onset")
    tensors: dict[str, torch.Tensor] = {}
    clips: dict[str, Any] = {}
    for i, (name, recorded) in enumerate(case.values["clips"].items()):
        greys = [av_align.grey(frame[..., ::-1]) for frame in case.tensors[f"in.{name}.frames"].numpy()]
        sound = unit_floats(case.tensors[f"in.{name}.samples"].numpy())
        found, measured = _clip(greys, sound, recorded["fps"])
        for hop in (int(stated[1]) for key in recorded if (stated := _HOP.fullmatch(key))):
            other = av_align.onset_times(av_align.onset_strength(sound, hop=hop), hop=hop)
            found[f"audio_onsets_s_with_hop_{hop}"] = other
        clips[name] = found
        tensors |= {f"mid.{name}.{key}": torch.from_numpy(value) for key, value in measured.items()}
        if i == 0:
            tensors |= _first_clip(case, greys)
    lists = [
        entry | {"AV_Align": av_align.intersection_over_union(entry["audio"], entry["video"], entry["fps"])}
        for entry in case.values["iou"]
    ]
    files, absent = {}, {}
    for name in case.values.get("whole_files", {}):
        stem = Path(name).stem
        try:
            path = media_file(case.case, name)
        except MovaError as error:
            absent |= dict.fromkeys((f"mid.file.{stem}.*", f"values.whole_files.{name}.*"), str(error))
            continue
        files[name], flow = _file(path)
        tensors[f"mid.file.{stem}.flow"] = torch.from_numpy(flow)
    return EvaluationOutcome(tensors, {"clips": clips, "iou": lists, "whole_files": files}, absent)


def _first_clip(case: StatedCase, greys: list[np.ndarray]) -> dict[str, torch.Tensor]:
    found = {}
    for name in case.tensors:
        if stated := _GREY.fullmatch(name):
            found[name] = torch.from_numpy(greys[int(stated[1])])
        elif stated := _FLOW.fullmatch(name):
            step = every(case, name, "rows and columns")
            flow = av_align.flow_between(greys[int(stated[1])], greys[int(stated[2])])
            found[name] = torch.from_numpy(flow[::step, ::step].copy())
    return found


def _clip(greys: Any, sound: np.ndarray, fps: float) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    strength, flow = av_align.onset_strength(sound), av_align.mean_flow(greys)
    onsets, peaks = av_align.onset_times(strength), av_align.motion_peaks(flow, fps)
    score = av_align.intersection_over_union(onsets, peaks, fps)
    found = {"fps": fps, "audio_onsets_s": onsets, "video_peaks_s": peaks, "AV_Align": score}
    return found, {"onset_strength": strength, "flow": flow}


def _file(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """A file's own frames at full size, and its whole sound as the ffmpeg program gives it at 44.1 kHz."""
    with av.open(str(path)) as container:
        fps = float(container.streams.video[0].average_rate or 0)
        greys = [av_align.grey(np.asarray(f.to_ndarray(format="rgb24"), np.uint8)) for f in container.decode(video=0)]
        container.seek(0)
        stream = container.streams.audio[0]
        rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout.name
        sound: Any = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], -1).T
    mono = convert_sound(
        np.ascontiguousarray(sound), rate, av_align.SAMPLE_RATE, sample_format="flt", source_layout=layout
    )
    found, measured = _clip(greys, mono, fps)
    return found | {"frames": len(greys)}, measured["flow"]


CASE = CaseRunner(
    run_av_align,
    {
        "mid.*.onset_strength": Bound(1e-3),
        "mid.*flow*": Bound(1e-3, "absolute"),
        "values.*_s*": Bound(1e-9, "absolute"),
        "values.*AV_Align": Bound(1e-9, "absolute"),
    },
    {
        "values.*.peaks_unchanged_by_flow_errors_up_to_pixels": "how far the flow may err",
        "values.iou.*.what": "what an entry shows",
    },
)
