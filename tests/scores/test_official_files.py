"""Official files of scores' networks load strictly, or are refused in one line."""

import io
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mova_engine.errors import MovaError
from mova_engine.scores.networks.cnn14 import Cnn14, PannsConfig
from mova_engine.scores.networks.eat import Eat, EatSizes, named_by_fairseq
from mova_engine.scores.networks.official_files import load_official
from mova_engine.scores.weights_folder import opened
from mova_engine.scores.weights_manifest import WEIGHTS

TINY = PannsConfig(800, 32, 10, mels=8, high=400.0, classes=3, channels=(2, 3))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_files_load_strictly_and_need_no_copy(tmp_path, suffix):
    weights = Cnn14(TINY).state_dict()
    named = OrderedDict((f"module.{name}", x) for name, x in weights.items())
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"epoch": 3, "score": np.float64(0.5), "model": named | {"module.extra": torch.zeros(1)}}, path)
    else:
        save_file(named | {"module.extra": torch.zeros(1)}, path)
    load = {"under": "model", "prefix": "module."}
    network = load_official(lambda: Cnn14(TINY), path, **load, dropped=frozenset({"extra"}))
    assert {name: x.tolist() for name, x in network.state_dict().items()} == {
        name: x.tolist() for name, x in weights.items()
    }
    assert not network.training and not any(x.requires_grad for x in network.parameters())
    assert network(torch.randn(2, 800)).logits.isfinite().all()
    with pytest.raises(MovaError, match=r"does not hold this network's weights.*extra"):
        load_official(lambda: Cnn14(TINY), path, **load)


def test_numbers_that_numpy_1_pickled_are_read(tmp_path):
    path = tmp_path / "weights.pt"
    held = {"loss": np.float64(0.5), "state_dict": Cnn14(TINY).state_dict()}
    torch.save(held, path, _use_new_zipfile_serialization=False)
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert new in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(new, old))
    load_official(lambda: Cnn14(TINY), path, under="state_dict")


def test_other_files_are_refused_in_one_line(tmp_path):
    damaged, unsafe = tmp_path / "damaged.pth", tmp_path / "unsafe.pth"
    damaged.write_bytes(b"not a checkpoint")
    torch.save({"model": Path("x")}, unsafe)
    for path in (damaged, unsafe, tmp_path / "absent.pth", tmp_path / "absent.safetensors"):
        with pytest.raises(MovaError, match="cannot read") as refused:
            load_official(lambda: Cnn14(TINY), path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(WEIGHTS.keys() - {"roberta-base"}))
def test_whatever_lies_in_the_place_of_weights_is_refused_in_a_short_line(tmp_path, name):
    entry = WEIGHTS[name]
    path = tmp_path / next(file for file in entry.files if not file.endswith(".safetensors")).rpartition("/")[2]
    whole = io.BytesIO()
    torch.save({"x": torch.zeros(3)}, whole)
    held = [{"model": torch.zeros(3)}, {"state_dict": {"x": "text"}}, {1: torch.zeros(3)}, [torch.zeros(3)]]
    held += [{"target_transform": {axis: {"mean": "x", "std": 1} for axis in ("CE", "CU", "PC", "PQ")}}]
    for content in (b"", b"text", whole.getvalue(), whole.getvalue()[:-200], *held):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(MovaError, match=f"{path.name}") as refused:
            opened(entry, path)
        assert "\n" not in str(refused.value) and len(str(refused.value).replace(str(path), "")) < 500


def test_both_releases_of_eat_have_the_same_weights():
    """Names of Hugging Face's model: a wrapper's `model.`, then parts that fairseq's release nests deeper."""
    network = Eat(EatSizes(width=8, depth=1, heads=2, classes=3, frames=32, longest=4, bands=16))
    weights = network.state_dict()
    spectrum = "model.modality_encoders.IMAGE."
    published = {}
    for name, tensor in weights.items():
        short = name.replace(spectrum, "model.").replace("context_encoder.norm", "pre_norm")
        published[short if short.startswith("model.") else f"model.{short}"] = tensor
    assert {"model.extra_tokens", "model.pre_norm.bias", "model.head.weight"} <= published.keys()
    assert named_by_fairseq(published) == weights and named_by_fairseq(weights) == weights
