"""EAT's tagging: mel spectra of a long and a short sound, tokens, blocks, class probabilities."""

import torch

from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recorded import recorded
from mova_engine.parity.evaluation.stated import StatedCase, int16_sound, recorded_sounds
from mova_engine.scores import sound_events
from mova_engine.scores.networks.eat import EAT_BASE, Eat, EatSizes

# The recorded names of sizes, in the order of ours.
_SIZES = {
    "embed_dim": "width",
    "depth": "depth",
    "heads": "heads",
    "classes": "classes",
    "target_length": "frames",
    "max_length": "longest",
}


def run_eat(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """All recorded sounds in one batch, in the recorded order."""
    case.describes("mel")
    case.require("mean", sound_events.MEAN)
    case.require("std", sound_events.DEVIATION)
    case.require("config.layer_norm_first", False)
    case.require("official", dict(zip(_SIZES, (getattr(EAT_BASE, name) for name in _SIZES.values()), strict=True)))
    names = (*_SIZES, "mlp_ratio", "norm_eps")
    sizes = EatSizes(*(case.parameter(f"config.{name}") for name in names))
    network = Eat(sizes)
    case.load("eat_tiny", network)
    network.to(device)
    names = recorded_sounds(case)
    sounds = [int16_sound(case.tensors[f"in.{name}.samples"]).to(device) for name in names]
    mels = torch.stack([sound_events.eat_input(sound, sound_events.RATE, sizes) for sound in sounds])
    encoder = network.model.modality_encoders["IMAGE"]
    inner = {"patches": encoder.get_submodule("local_encoder"), "encoder_input": encoder}
    inner |= {f"block{i}": block for i, block in enumerate(network.model.blocks)}
    with recorded({f"mid.{name}": module for name, module in inner.items()} | {"norm": network.fc_norm}) as kept:
        logits = network(mels)
    tensors = {
        **kept,
        **{f"mid.{name}.mel": mel for name, mel in zip(names, mels, strict=True)},
        "out.cls_after_fc_norm": kept["norm"],
        "out.logits": logits,
        "out.probabilities": logits.sigmoid(),
    }
    return EvaluationOutcome(tensors)


CASE = CaseRunner(run_eat, {"mid.*.mel": Bound(1e-3, "absolute"), "*": Bound(1e-4)})
