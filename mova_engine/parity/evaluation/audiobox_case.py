"""Audiobox-Aesthetics: windows, masks, WavLM's layers, four axes and their ratings."""

import re

import torch

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import thinned
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recorded import recorded
from mova_engine.parity.evaluation.stated import StatedCase, int16_sound, recorded_sounds
from mova_engine.scores import audiobox
from mova_engine.scores.networks.audiobox_axes import AXES, AudioboxNetwork, AudioboxSizes
from mova_engine.scores.networks.wavlm import WavlmSizes, padded_frames

# What every encoder of a case must be besides its sizes, and the heads of its axes.
_ENCODER = {
    "extractor_mode": "default",
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_bias": False,
    "normalize": False,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}
_HEAD = {
    "proj_act_fn": "gelu",
    "use_weighted_layer_sum": True,
    "precision": "32",
    "normalize_embed": True,
    "output_dim": 1,
}


def run_audiobox(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """All recorded sounds in one batch of windows, in the recorded order."""
    sizes = _sizes(case)
    network = AudioboxNetwork(sizes)
    case.load("audiobox_tiny", network)
    network.to(device)
    cut = audiobox.cut_windows([int16_sound(case.tensors[f"in.{n}.samples"]).to(device) for n in recorded_sounds(case)])
    features, encoder = network.wavlm_model.feature_extractor, network.wavlm_model.encoder
    layers = {f"mid.layer{i}": layer for i, layer in enumerate([encoder.layer_norm, *encoder.layers])}
    with recorded({"mid.features": features, "mid.pos_conv": encoder.pos_conv, **layers}) as kept:
        raw = network(cut.samples, cut.padding)
    tensors = {
        **{name: thinned(case, name, kept[name]) for name in kept.keys() & case.tensors.keys()},
        "mid.padding_mask": padded_frames(cut.padding, kept["mid.features"].shape[-1]).to(torch.uint8),
        **{f"out.{axis}.raw": raw[:, i] for i, axis in enumerate(AXES)},
    }
    stated = case.values["target_transform_of_this_case"]
    scales = {axis: audiobox.RatingScale(stated[axis]["mean"], stated[axis]["std"]) for axis in AXES}
    windows = {"count": len(raw), "weights": cut.weights.tolist(), "clip_of_window": cut.sound.tolist()}
    return EvaluationOutcome(tensors, {"windows": windows, "scores": audiobox.weighted_ratings(raw, cut, scales)})


def _sizes(case: StatedCase) -> AudioboxSizes:
    encoder = case.parameter("wavlm_full") | case.parameter("wavlm")
    head = case.parameter("head")
    for stated, ours in ((encoder, _ENCODER), (head, _HEAD)):
        for name, value in ours.items():
            if stated[name] != value:
                raise MovaError(f"{case.case.path}: {name} is {stated[name]!r}; we compute {value!r}")
    if head["nth_layer"] != encoder["encoder_layers"] + 1:
        raise MovaError(f"{case.case.path}: nth_layer {head['nth_layer']} is not all layers and their input")
    wavlm = WavlmSizes(
        _convolutions(encoder["conv_feature_layers"]),
        encoder["encoder_embed_dim"],
        encoder["encoder_layers"],
        encoder["encoder_attention_heads"],
        encoder["encoder_ffn_embed_dim"],
        encoder["conv_pos"],
        encoder["conv_pos_groups"],
        encoder["num_buckets"],
        encoder["max_distance"],
    )
    return AudioboxSizes(wavlm, head["proj_num_layer"], head["proj_ln"])


def _convolutions(text: str) -> tuple[tuple[int, int, int], ...]:
    """The layers that a sum of lists such as "[(24,10,5)] + [(24,3,2)] * 4" states."""
    found: list[tuple[int, int, int]] = []
    for part in text.split("+"):
        stated = re.fullmatch(r"\[\((\d+), ?(\d+), ?(\d+)\)\](?: ?\* ?(\d+))?", part.strip())
        if not stated:
            raise MovaError(f"cannot read the convolutions '{text}'")
        channels, kernel, stride, times = (int(x or 1) for x in stated.groups())
        found += [(channels, kernel, stride)] * times
    return tuple(found)


CASE = CaseRunner(
    run_audiobox,
    {
        "mid.padding_mask": Bound(0, "absolute"),
        "mid.*": Bound(2e-4),
        "out.*": Bound(2e-4),
        "values.scores*": Bound(1e-3, "absolute"),
        "values.windows.weights": Bound(1e-6, "absolute"),
    },
    {"values.target_transform_of_this_case*": "input"},
)
