"""PANNs Cnn14 at 16 and 32 kHz, the inception score and its distributions."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import thinned
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recorded import recorded
from mova_engine.parity.evaluation.stated import StatedCase, int16_sound
from mova_engine.scores import audio_tagging, distances
from mova_engine.scores.networks.cnn14 import Cnn14, PannsConfig

_INNER = {"power": "spectrogram_extractor", "logmel": "logmel_extractor"} | {
    f"block{i}": f"conv_block{i}" for i in range(1, 7)
}


def _network(case: StatedCase, component: str, parameters: str, device: torch.device) -> Cnn14:
    names = ("sample_rate", "n_fft", "hop", "mels", "fmin", "fmax")
    network = Cnn14(PannsConfig(*(case.parameter(f"{parameters}.{name}") for name in names)))
    case.load(component, network)
    return network.to(device)


def run_panns(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Both networks on the recorded sound, the inception score of the clips and of given distributions."""
    tensors = _at_16k(case, device)
    found, score = _at_32k(case, device)
    saturated = distances.probabilities_of_outputs(case.tensors["in.is.saturated_clipwise"].numpy())
    tensors |= found | {"out.is.saturated_probabilities": torch.from_numpy(saturated).nan_to_num(-1.0)}
    given = distances.inception_score(case.tensors["in.is.probabilities"].numpy())
    return EvaluationOutcome(tensors, {"IS": score, "IS_of_in.is.probabilities": given})


def _at_16k(case: StatedCase, device: torch.device) -> dict[str, Tensor]:
    case.describes("fd_16k.preparation")
    network = _network(case, "cnn14_16k", "fd_16k", device)
    waves = case.tensors["in.16k.wave"].to(device)
    waves = waves[:, : int(case.parameter("fd_16k.seconds") * network.config.sample_rate)]
    with recorded({name: network.get_submodule(path) for name, path in _INNER.items()}) as inner:
        tags = network(waves)
    return {
        **_thinned(case, "16k", inner),
        "out.16k.embedding_2048": tags.embedding,
        "out.16k.logits": tags.logits,
        "out.16k.clipwise_output": tags.clipwise,
    }


def _at_32k(case: StatedCase, device: torch.device) -> tuple[dict[str, Tensor], float]:
    case.require("is_32k.padding", "zeros at the end, cut at the end")
    network = _network(case, "cnn14_32k", "is_32k", device)
    seconds = case.parameter("is_32k.seconds")
    order = case.values["order"]
    clips = [int16_sound(case.tensors[f"in.32k.{name}"]).to(device) for name in order]
    with recorded({name: network.get_submodule(path) for name, path in _INNER.items()}) as inner:
        tags = audio_tagging.tag_clips(network, clips, seconds=seconds)
    inner = {name: made[:1] for name, made in inner.items()}  # the case keeps those of the first clip
    clipwise = tags.clipwise
    probabilities = distances.probabilities_of_outputs(clipwise.cpu().numpy())
    found = _thinned(case, "32k", inner)
    if (logmel := "mid.32k.logmel") in found:  # of one clip, up to the frame that the description names
        found[logmel] = thinned(case, logmel, inner["logmel"][0], 0)[: len(case.tensors[logmel])]
    found |= {
        "out.32k.embedding": tags.embedding[:1],
        "out.32k.clipwise_output": clipwise,
        "out.32k.probabilities": torch.from_numpy(probabilities),
    }
    return found, distances.inception_score(probabilities)


def _thinned(case: StatedCase, rate: str, inner: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {"power": "power_spectrum"}
    found = {f"mid.{rate}.{names.get(name, name)}": made for name, made in inner.items()}
    return {name: thinned(case, name, made) for name, made in found.items() if name in case.tensors}


CASE = CaseRunner(
    run_panns,
    {
        "mid.*.logmel": Bound(2e-3, "absolute", below=(-60.0, 25.0)),
        "mid.*.power_spectrum": Bound(1e-5),
        "out.is.saturated_probabilities": Bound(1e-6, "absolute"),
        "mid.*": Bound(2e-4),
        "out.*": Bound(2e-4),
        "values.IS*": Bound(1e-4, "relative"),
    },
)
