"""CLAP: texts and sounds to embeddings and scores, short, quiet and long clips, the 16-bit step."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import thinned
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recorded import recorded
from mova_engine.parity.evaluation.recorded_spectra import recorded_spectra
from mova_engine.parity.evaluation.stated import StatedCase, int16_sound
from mova_engine.scores import clap_score
from mova_engine.scores.networks.clap import Clap, ClapSizes


def run_clap(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Text, every recorded clip, the long one, and the arithmetic around them."""
    network = Clap(ClapSizes())
    case.load("clap", network)
    network.to(device)
    tensors, texts = _texts(case, network, device)
    scores: dict[str, Any] = {}
    heard = {name: _heard(case, name) for name in case.values["scores"]}
    others, together = _long_sounds(case)
    *clips, drawn = recorded_spectra(
        [*((0, [sound]) for sound in heard.values()), (case.values["long"]["numpy_global_seed"], others)], device
    )
    for (name, stated), (read,) in zip(case.values["scores"].items(), clips, strict=True):
        found, embedding = _clip(case, network, name, heard[name].to(device), read)
        tensors |= found
        text = texts[case.values["prompts"].index(stated["prompt"])]
        scores[name] = {"CLAP": clap_score.cosine(embedding, text)}
    found, long = _long(case, network, others[0].to(device), drawn, together)
    tensors |= found | {"out.int16.values": _stepped(case.tensors["in.int16.values"])}
    return EvaluationOutcome(
        tensors,
        {
            **_arithmetic(case),
            "audio_cfg": _configuration(network.sizes),
            "scores": scores,
            "CLAP": float(np.mean([x["CLAP"] for x in scores.values()])),
            "long": long,
        },
    )


def _texts(case: StatedCase, network: Clap, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    text = network.text_branch
    inner = {"embeddings": text.embeddings, "layer0": text.encoder.layer[0], "pooler": text}
    with recorded(inner) as kept:
        tokens, mask = (case.tensors[f"in.text.{name}"].to(device) for name in ("input_ids", "attention_mask"))
        embedding = clap_score.text_embeddings(network, tokens, mask)
    tensors = {
        name: thinned(case, name, made, same_as="mid.text.embeddings")
        for name, made in ((f"mid.text.{inner}", made) for inner, made in kept.items())
        if name in case.tensors
    }
    return tensors | {"out.text.embedding": embedding}, embedding


def _heard(case: StatedCase, name: str) -> Tensor:
    samples = int16_sound(case.tensors[f"in.{name}.samples"]).numpy()
    return clap_score.heard_by_clap(samples, clap_score.PUBLISHED_RATE, "mova")


def _clip(
    case: StatedCase, network: Clap, name: str, heard: Tensor, read: clap_score.FusedMels
) -> tuple[dict[str, Tensor], Tensor]:
    branch = network.audio_branch
    with recorded(
        {"patch_embed": branch.patch_embed, "layer0": branch.layers[0], "norm": branch.norm, "embedding768": branch}
    ) as kept:
        embedding = clap_score.embedded(network, [read])
    # [frames, bands] has no batch, and channels alone are left out after the last norm.
    first = {"mel": 0, "norm": 2}
    tensors = {
        f"mid.{name}.{key}": thinned(case, f"mid.{name}.{key}", made, first.get(key, 1))
        for key, made in {"mel": read.mels[0], **kept}.items()
        if f"mid.{name}.{key}" in case.tensors
    }
    if (quantised := f"mid.{name}.quantised") in case.tensors:
        count = len(case.tensors[quantised])
        tensors[quantised] = (heard[:count] * 32767).round().to(torch.int16)
    return tensors | {f"out.{name}.embedding": embedding}, embedding[0]


def _long_sounds(case: StatedCase) -> tuple[list[Tensor], list[str]]:
    """The long sound, then those that are embedded together with it, and the names of these embeddings."""
    base = int16_sound(case.tensors["in.long.base"])
    times = case.values["long"]["samples"] // len(base)
    long = torch.cat([base * float(np.float32(i / times)) for i in range(1, times + 1)])
    together = re.compile(r"out\.long_and_(.+)\.embedding")
    names = {match[0]: match[1] for name in case.tensors if (match := together.fullmatch(name))}
    return [long, *(int16_sound(case.tensors[f"in.{other}.samples"]) for other in names.values())], list(names)


def _long(
    case: StatedCase, network: Clap, samples: Tensor, drawn: list[clap_score.FusedMels], together: list[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    sizes = network.sizes.sound
    long, others = drawn[0], dict(zip(together, drawn[1:], strict=True))
    with recorded({"fusion": network.audio_branch.patch_embed.fusion_model}) as kept:
        embedding = clap_score.embedded(network, [long])
    tensors = {
        "mid.long.mel_shrunk": thinned(case, "mid.long.mel_shrunk", long.mels[0], 0),
        "mid.long.mel_middle": thinned(case, "mid.long.mel_middle", long.mels[2], 0),
        "mid.long.fusion": thinned(case, "mid.long.fusion", kept["fusion"]),
        "out.long.embedding": embedding,
        **{name: clap_score.embedded(network, [long, other]) for name, other in others.items()},
    }
    values = {
        "samples": len(samples),
        "frames": len(clap_score.log_mel(samples, sizes)),
        "chunk_starts_front_middle_back": list(long.starts),
        "longer": long.longer,
    }
    return tensors, values


def _stepped(samples: Tensor) -> Tensor:
    return torch.from_numpy(clap_score.from_16_bits(clap_score.in_16_bits(samples.numpy())))


def _arithmetic(case: StatedCase) -> dict[str, Any]:
    files = case.values["file_to_prompt"]
    peak = np.array(case.values["peak_normalise"]["in"], np.float32)
    return {
        "peak_normalise": {"minus_1_dB": clap_score.at_peak(peak).tolist()},
        "file_to_prompt": {"matched": clap_score.prompts_of_files(files["files"], files["prompts_by_id"], "mova")},
    }


def _configuration(sizes: ClapSizes) -> dict[str, Any]:
    sound = sizes.sound
    return {
        "audio_length": sound.size * sound.folds,
        "clip_samples": sound.clip_samples,
        "mel_bins": sound.mels,
        "sample_rate": sound.sample_rate,
        "window_size": sound.n_fft,
        "hop_size": sound.hop,
        "fmin": sound.low,
        "fmax": sound.high,
        "class_num": sound.classes,
        "model_type": "HTSAT",
        "model_name": "tiny",
    }


CASE = CaseRunner(
    run_clap,
    {
        "mid.*.mel*": Bound(2e-3, "absolute", below=(-60.0, 25.0)),
        "mid.*.quantised": Bound(1, "absolute"),
        "mid.*": Bound(1e-4),
        "out.*": Bound(1e-4),
        "values.scores.*": Bound(1e-4, "absolute"),
        "values.CLAP": Bound(1e-4, "absolute"),
        "values.peak_normalise.*": Bound(1e-6, "relative"),
    },
    {
        "values.prompts*": "input",
        "values.scores.*.prompt": "input",
        "values.peak_normalise.in": "input",
        "values.file_to_prompt.files": "input",
        "values.file_to_prompt.prompts_by_id*": "input",
        "values.long.numpy_global_seed": "input",
        "values.long.waveform_start": "where the reference cuts a waveform that nothing reads",
    },
)
