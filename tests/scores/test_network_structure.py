"""Scores' networks have exactly the parameters of the official checkpoints: names, shapes, number of elements."""

import math
from pathlib import Path

import pytest
import torch

from mova_engine.ops import resolve
from mova_engine.parity.evaluation.recipe_weights import recipe_shapes
from mova_engine.scores.networks.audiobox_axes import AudioboxSizes
from mova_engine.scores.networks.clap import ClapSizes
from mova_engine.scores.networks.cnn14 import CNN14_16K, CNN14_32K
from mova_engine.scores.networks.eat import EAT_BASE

GOLDEN_EVAL = Path(__file__).resolve().parents[1] / "data" / "golden_eval"
# Recorded list of names -> the module, its arguments.
NETWORKS = {
    "names_audiobox_aesthetics": ("audiobox_axes:AudioboxNetwork", {"sizes": AudioboxSizes()}),
    "names_eat_base": ("eat:Eat", {"sizes": EAT_BASE}),
    "recipe_clap": ("clap:Clap", {"sizes": ClapSizes()}),
    "recipe_cnn14_16k": ("cnn14:Cnn14", {"config": CNN14_16K}),
    "recipe_cnn14_32k": ("cnn14:Cnn14", {"config": CNN14_32K}),
    "recipe_dover": ("dover:Dover", {}),
    "recipe_s3fd": ("s3fd:S3FD", {}),
    "recipe_synchformer": ("synchformer:Synchformer", {}),
    "recipe_syncnet": ("syncnet:SyncNet", {}),
}


@pytest.mark.parametrize("recorded", sorted(NETWORKS))
def test_a_network_has_the_official_parameters(recorded):
    target, arguments = NETWORKS[recorded]
    official = recipe_shapes(GOLDEN_EVAL / f"{recorded}.json")
    with torch.device("meta"):
        ours = resolve(f"mova_engine.scores.networks.{target}")(**arguments).state_dict()
    assert {name: list(x.shape) for name, x in ours.items()} == official
    assert sum(x.numel() for x in ours.values()) == sum(math.prod(shape) for shape in official.values())
