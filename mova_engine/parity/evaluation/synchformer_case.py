"""Synchformer: mel energies, segments, both extractors, the comparison, offsets, and DeSync end to end."""

import re
import zlib
from typing import Any

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import description, enlarged, every
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recipe_weights import drawn_tensor
from mova_engine.parity.evaluation.recorded import recorded
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import desync
from mova_engine.scores.networks import synchformer
from mova_engine.scores.networks.synchformer import Synchformer

_RATE = re.compile(r"at (\d+(?:\.\d+)?) (k?)Hz")


def run_synchformer(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Every tensor of the case."""
    _require(case)
    network = _network(case, device)
    compared, values = _compare(case, network, device)
    resized, means = _resize(case)
    counts = {}
    for seconds in case.values["segments"]:
        frames, samples = desync.clip_lengths(float(seconds))
        video, audio = desync.segment_counts(frames, samples)
        counts[seconds] = {
            "frames": frames,
            "samples": samples,
            "video_segments": video,
            "audio_segments": audio,
        }
    values = {"compare": values, "class_grid": desync.class_grid().tolist(), "segments": counts} | means
    tensors = {"mid.mel_filterbank": desync.filter_bank()} | compared | resized
    return EvaluationOutcome(
        tensors | _audio(case, network, device) | _video(case, network, device) | _mono(case), values
    )


def _require(case: StatedCase) -> None:
    audio = {
        "sample_rate": desync.SAMPLE_RATE,
        "segment_samples": desync.SEGMENT_SAMPLES,
        "step_samples": desync.SAMPLE_STEP,
        "n_fft": desync.N_FFT,
        "win_length": desync.WINDOW,
        "hop_length": desync.HOP,
        "n_mels": synchformer.BANDS,
        "center": True,
        "pad_mode": "reflect",
        "power": 2.0,
        "mel_scale": "htk",
        "norm": None,
        "log_offset": desync.LOG_OFFSET,
        "mean": desync.MEL_MEAN,
        "std_times_two": desync.TWICE_MEL_STD,
        "frames": synchformer.COLUMNS,
    }
    video = {
        "fps": desync.FPS,
        "size": synchformer.SIDE,
        "segment_frames": synchformer.FRAMES,
        "step_frames": desync.FRAME_STEP,
        "mean": 0.5,
        "std": 0.5,
    }
    for part, required in (("audio", audio), ("video", video)):
        for name, value in required.items():
            case.require(f"{part}.{name}", value)
    case.require("window_segments", synchformer.SEGMENTS)
    case.describes("audio.window", "tokens", "compare_features.recipe")


def _network(case: StatedCase, device: torch.device) -> Synchformer:
    with torch.device("meta"):
        network = Synchformer()
    loaded = case.load("synchformer", network.to_empty(device="cpu")).to(device)
    assert isinstance(loaded, Synchformer)
    return loaded


def _audio(case: StatedCase, network: Synchformer, device: torch.device) -> dict[str, Tensor]:
    spectra = desync.sound_segments(case.tensors["in.audio.wave"].to(device))
    ast = network.afeat_extractor.ast
    layers = {"embeddings": ast.embeddings, "layernorm": ast.layernorm}
    layers |= {f"layer{i}": layer for i, layer in enumerate(ast.encoder.layer) if f"mid.audio.layer{i}" in case.tensors}
    with recorded({f"mid.audio.{name}": layer for name, layer in layers.items()}) as kept:
        features = network.audio_features(spectra)
    tensors = {"mid.audio.spec": spectra, "out.audio.features": features}
    return tensors | _kept(case, kept, "mid.audio.embeddings")


def _video(case: StatedCase, network: Synchformer, device: torch.device) -> dict[str, Tensor]:
    pictures = desync.network_pictures(enlarged(case, "in.video.frames_lowres").to(device))
    extractor = network.vfeat_extractor
    layers = {
        "patches": extractor.patch_embed_3d,
        "block0_time_attention": extractor.blocks[0].get_submodule("timeattn"),
        "block0_space_attention": extractor.blocks[0].get_submodule("attn"),
    }
    layers |= {f"block{i}": block for i, block in enumerate(extractor.blocks) if f"mid.video.block{i}" in case.tensors}
    with recorded({f"mid.video.{name}": layer for name, layer in layers.items()}) as kept:
        features = desync.video_features(network, pictures[None])
    return {"out.video.features": features} | _kept(case, kept, "mid.video.patches")


def _kept(case: StatedCase, kept: dict[str, Tensor], first: str) -> dict[str, Tensor]:
    """Outputs [segments, tokens, channels] as far as the case keeps them; `first` says what "same slice" means."""
    tensors = {}
    for name in kept.keys() & case.tensors.keys():
        said = name if "::" in description(case, name) else first
        tensors[name] = kept[name][:, :: every(case, said, "tokens"), :: every(case, said, "channels")]
    return tensors


def _compare(case: StatedCase, network: Synchformer, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    seed = case.parameter("compare_features.seed")
    features = []
    for kind in ("video", "audio"):
        shape = case.parameter(f"compare_features.{kind}_shape")
        features.append(drawn_tensor(f"in.compare.{kind}_features", shape, seed, "normal", 1.0).to(device))
    sums = [zlib.crc32(drawn.cpu().numpy().tobytes()) for drawn in features]
    case.require("compare_features.crc32", sums)
    block, final = "mid.compare.block0", "mid.compare.cls"
    with recorded({block: network.transformer.blocks[0], final: network.transformer.ln_f}) as kept:
        network.compare(*(f[:, : synchformer.SEGMENTS] for f in features))
    first, last = desync.window_logits(network, *features)
    step = {of: every(case, block, of) for of in ("tokens", "channels")}
    tensors = {
        block: kept[block][:, :: step["tokens"], :: step["channels"]],
        final: kept[final],
        "out.compare.logits_first14": first,
        "out.compare.logits_last14": last,
    }
    margins = [logits.topk(2).values.diff().abs().min() for logits in (first, last)]
    scores = [score.seconds for score in desync.score_desync(first, last)]
    return tensors, {
        "argmax_first14": first.argmax(-1).tolist(),
        "argmax_last14": last.argmax(-1).tolist(),
        "DeSync_per_clip": scores,
        "DeSync": sum(scores) / len(scores),
        "smallest_argmax_margin": float(min(margins)),
    }


def _resize(case: StatedCase) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, values = {}, {}
    for name, pictures in case.tensors.items():
        if not (stated := re.fullmatch(r"in\.(resize\.\w+)", name)):
            continue
        for kind, given in (("uint8", pictures), ("float", pictures.to(torch.float32) / 255)):
            made = desync.network_pictures(given)
            out = f"out.{stated[1]}.from_{kind}"
            step = every(case, out if "::" in description(case, out) else out.replace("float", "uint8"), "columns")
            tensors[out] = made[..., ::step, ::step]
            values[f"{stated[1]}.mean_of_{kind}_result"] = float(made.mean())
    return tensors, values


def _mono(case: StatedCase) -> dict[str, Tensor]:
    if not (stated := _RATE.search(description(case, "in.mono16k.wave"))):
        raise MovaError(f"{case.case.path}: tensors.in.mono16k.wave does not state its rate")
    rate, count = round(float(stated[1]) * (1000 if stated[2] else 1)), len(case.tensors["out.mono16k.wave"])
    return {"out.mono16k.wave": desync.mono_16k(case.tensors["in.mono16k.wave"], rate, count)}


def run_desync(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """DeSync from pictures and samples."""
    network = _network(case, device)
    pictures = desync.network_pictures(enlarged(case, "in.e2e.frames_lowres").to(device))
    video = desync.video_features(network, pictures[None])
    audio = desync.audio_features(network, case.tensors["in.e2e.wave"].to(device))
    first, last = desync.window_logits(network, video, audio)
    tensors = {"out.e2e.logits_first14": first, "out.e2e.logits_last14": last}
    for name, features in (("mid.e2e.video_features", video), ("mid.e2e.audio_features", audio)):
        tensors[name] = features[..., :: every(case, name, "channels")]
    values = {
        "argmax": [int(logits.argmax()) for logits in (first, last)],
        "margins": [float(logits.topk(2).values.diff().abs()) for logits in (first, last)],
        "DeSync": desync.score_desync(first, last)[0].seconds,
    }
    return EvaluationOutcome(tensors, {"e2e": values})


_BOUNDS = {
    "mid.audio.spec": Bound(1e-4, "absolute"),
    "mid.*": Bound(2e-4),
    "out.*": Bound(2e-4),
    "values.*margin*": Bound(1e-2, "absolute"),
    # Multiples of 0.1, as sums of float32 offsets.
    "values.*DeSync*": Bound(1e-7, "absolute"),
    "values.resize.*": Bound(1e-4, "absolute"),
}
CASE = CaseRunner(
    run_synchformer, _BOUNDS, unjudged={"values.thirteen_segments": "words on an error, which a test asks for"}
)
END_TO_END = CaseRunner(run_desync, _BOUNDS)
