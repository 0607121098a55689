"""DOVER: both branches, samplers of pictures and of fragments, the resized view, the fused scores."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import enlarged, every, thinned
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recorded import recorded
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import dover_score
from mova_engine.scores.dover_score import AESTHETIC_FRAMES, TECHNICAL_FRAMES, DoverScore, FragmentConfig
from mova_engine.scores.networks.dover import Dover

# The tensor of each branch that "same slice" means.
_FIRST = {"technical": "mid.technical.patch_embed", "aesthetic": "mid.aesthetic.stem"}
_SAMPLED = re.compile(r"(technical|aesthetic)_(\d+)_frames")
_OFFSETS = "random_offsets_rows_then_columns_[i][j][t]"


def run_dover(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Every tensor of the case; names and seeds of samplers come from the case."""
    _require(case)
    network = case.load("dover", Dover()).to(device)
    assert isinstance(network, Dover)
    technical, aesthetic = (
        dover_score.normalise(enlarged(case, f"in.{branch}.frames_lowres").transpose(0, 1).to(device))[None]
        for branch in ("technical", "aesthetic")
    )
    with recorded(_layers(network)) as kept:
        maps = {"technical": network.technical(technical), "aesthetic": network.aesthetic(aesthetic)}
    tensors = {f"out.{branch}.score_map": made for branch, made in maps.items()}
    for name in kept.keys() & case.tensors.keys():
        # Within the technical branch channels come last.
        made = kept[name].permute(0, 4, 1, 2, 3) if name.startswith("mid.technical") else kept[name]
        tensors[name] = thinned(case, name, made, same_as=_FIRST[name.split(".")[1]])
    score = DoverScore(float(maps["technical"].mean()), float(maps["aesthetic"].mean()))
    values: dict[str, Any] = {
        "scores": _named(score),
        "fuse": [_named(DoverScore(row["technical_raw"], row["aesthetic_raw"])) for row in case.values["fuse"]],
        "frame_sampler": _sampled(case.values["frame_sampler"]),
        "fragments": {},
    }
    for name, stated in case.values["fragments"].items():
        tensors[f"out.fragments.{name}"], values["fragments"][name] = _fragments(case, name, stated)
    step = every(case, "out.resized.frames", "rows and columns")
    tensors["out.resized.frames"] = dover_score.aesthetic_view(case.tensors["in.resized.frames"])[..., ::step, ::step]
    return EvaluationOutcome(tensors, values)


def _require(case: StatedCase) -> None:
    fragments = FragmentConfig()
    required = {
        "mean": list(dover_score.PICTURE_MEAN),
        "std": list(dover_score.PICTURE_STD),
        "technical.fragments": fragments.rows,
        "technical.fragment_size": fragments.size,
        "technical.aligned": fragments.aligned,
        "technical.clip_len": TECHNICAL_FRAMES.length,
        "technical.frame_interval": TECHNICAL_FRAMES.interval,
        "technical.num_clips": TECHNICAL_FRAMES.parts,
        "aesthetic.size": dover_score.SIDE,
        "aesthetic.clip_len": AESTHETIC_FRAMES.length * AESTHETIC_FRAMES.parts,
        "aesthetic.t_frag": AESTHETIC_FRAMES.parts,
        "aesthetic.frame_interval": AESTHETIC_FRAMES.interval,
        "aesthetic.num_clips": AESTHETIC_FRAMES.clips,
        "fuse.technical_mean": dover_score.TECHNICAL_MEAN,
        "fuse.technical_std": dover_score.TECHNICAL_STD,
        "fuse.technical_weight": dover_score.TECHNICAL_WEIGHT,
        "fuse.aesthetic_mean": dover_score.AESTHETIC_MEAN,
        "fuse.aesthetic_std": dover_score.AESTHETIC_STD,
        "fuse.aesthetic_weight": dover_score.AESTHETIC_WEIGHT,
    }
    for name, value in required.items():
        case.require(name, value)


def _layers(network: Dover) -> dict[str, torch.nn.Module]:
    technical, aesthetic = network.technical_backbone, network.aesthetic_backbone
    layers = {"mid.technical.patch_embed": technical.patch_embed, "mid.aesthetic.stem": aesthetic.downsample_layers[0]}
    layers |= {f"mid.technical.layer{i}": layer for i, layer in enumerate(technical.layers)}
    return layers | {f"mid.aesthetic.stage{i}": stage for i, stage in enumerate(aesthetic.stages)}


def _named(score: DoverScore) -> dict[str, float]:
    names = ("aesthetic_raw", "technical_raw", "aesthetic", "technical", "overall")
    return {name: getattr(score, name) for name in names}


def _sampled(stated: dict[str, Any]) -> dict[str, Any]:
    """The numbers of sampled pictures; the recorded generator was seeded anew for each branch and length."""
    indices = {}
    for name in stated["indices"]:
        if found := _SAMPLED.fullmatch(name):
            config = TECHNICAL_FRAMES if found[1] == "technical" else AESTHETIC_FRAMES
            rng = np.random.RandomState(stated["numpy_global_seed"])
            indices[name] = dover_score.sample_frames(int(found[2]), config, rng)
    return {"numpy_global_seed": stated["numpy_global_seed"], "indices": indices}


def _fragments(case: StatedCase, name: str, stated: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    config = FragmentConfig(stated["fragments_h"], stated["fragments_w"], stated["fsize"], stated["aligned"])
    generator = torch.Generator().manual_seed(stated["torch_seed"])
    made, places = dover_score.splice_fragments(case.tensors[f"in.fragments.{name}"], generator, config)
    drawn = [{"below": below, "draws": offsets.tolist()} for below, offsets in places.drawn]
    return made, {_OFFSETS: drawn}


CASE = CaseRunner(
    run_dover,
    {
        "out.fragments.*": Bound(0.0, "absolute"),
        "out.resized.*": Bound(0.0, "absolute"),
        "mid.*": Bound(2e-4),
        "out.*": Bound(2e-4),
        "values.scores.*": Bound(1e-4, "absolute"),
        "values.fuse.*": Bound(1e-9, "absolute"),
    },
    unjudged={
        f"values.fragments.*.{name}": "given to the run"
        for name in ("torch_seed", "fragments_h", "fragments_w", "fsize", "aligned")
    },
)
