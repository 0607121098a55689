"""Quantised weights in files: what bitsandbytes wrote, what is detected tensor by tensor, what is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mova_engine.checkpoints.quantised_files import open_component
from mova_engine.checkpoints.quantised_writing import file_tensors
from mova_engine.errors import MovaError
from mova_engine.models.layers import Linear
from mova_engine.models.weight_formats import FP8, INT8, NF4, known_format
from mova_engine.ops.nf4 import quantise_nf4

FILE = "model.safetensors"
STATE = ".quant_state.bitsandbytes__nf4"


def written(folder, tensors):
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / FILE, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def recorded(repo_root):
    """Two layers [96, 192] as bitsandbytes 0.50.2 saved them, with 8-bit scales and with plain ones; what it makes of
    them. `nested.source` and `flat.source` are the weights before.
    """
    folder, name = repo_root / "tests" / "data" / "quantised", "bitsandbytes_0.50.2_nf4"
    return load_file(folder / f"{name}.safetensors"), load_file(folder / f"{name}_expected.safetensors")


def test_what_bitsandbytes_wrote_is_read_and_written_again(recorded, tmp_path):
    tensors, expected = recorded
    stored = open_component(written(tmp_path, tensors))
    assert stored.formats == ["nf4", "nf4 with float32 scales"] and set(stored.plain) == {"nested.bias", "flat.bias"}
    for layer, weight in stored.quantised.items():
        held = stored.held(layer)
        assert weight.shape == (96, 192)
        assert torch.equal(weight.format.dequantise(held), expected[f"{layer}.weight"])
        again = file_tensors(layer, weight.format, 96, 192, held, torch.float32)
        names = {name for name in tensors if name.startswith(f"{layer}.weight")}
        assert again.keys() == names
        for name in names - {f"{layer}.weight{STATE}"}:
            assert torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype
        one, other = (json.loads(bytes(x[f"{layer}.weight{STATE}"].tolist())) for x in (again, tensors))
        assert one == other
        # From the same weight the same codes.
        found = quantise_nf4(expected[f"{layer}.source"], double=layer == "nested")
        assert torch.equal(found.weight, held["weight"]) and torch.equal(found.absmax, held["weight_absmax"])


def test_layers_take_what_is_stored_and_others_get_it_dequantised(recorded, tmp_path):
    tensors, expected = recorded
    stored = open_component(written(tmp_path, tensors))
    model = torch.nn.Module()
    model.nested, model.flat = Linear(192, 96, None, device="meta"), torch.nn.Linear(192, 96, device="meta")
    stored.load(model, device="cpu", dtype=torch.bfloat16)
    assert model.nested.weight_format is NF4 and model.nested.bias.dtype == torch.bfloat16
    assert torch.equal(model.flat.weight, expected["flat.weight"].bfloat16())
    model.nested = Linear(192, 64, None, device="meta")
    with pytest.raises(MovaError, match=r"nested is \[96, 192\] in nf4, the model has \[64, 192\]"):
        stored.fit(model)


def a_state(**changes):
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [96, 192], **changes}
    return torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)


REFUSED = {
    "fp4": (lambda t: {"flat.weight.quant_state.bitsandbytes__fp4": t.pop(f"flat.weight{STATE}")}, "is in FP4"),
    "block": (lambda t: {f"flat.weight{STATE}": a_state(blocksize=128)}, "NF4 blocks of 128; the engine reads blocks"),
    "nested": (
        lambda t: {f"flat.weight{STATE}": a_state(nested_blocksize=512, nested_offset=0.1)},
        "NF4 blocks of 64 and 512",
    ),
    "state": (lambda t: {f"flat.weight{STATE}": a_state(shape=None)}, "is no description of an NF4 weight"),
    "rows": (lambda t: {f"flat.weight{STATE}": a_state(shape=[192, 96])}, "rows are multiples of 64"),
    "map": (lambda t: {"flat.weight.quant_map": t["flat.weight.quant_map"].flip(0)}, "has other values than NF4's"),
    "nested map": (
        lambda t: {"nested.weight.nested_quant_map": t["nested.weight.nested_quant_map"] * 1.1},
        "nested_quant_map has other values",
    ),
    "absmax": (lambda t: t.pop("flat.weight.absmax") * 0, "flat.weight.absmax, which belongs to an NF4 weight"),
    "size": (lambda t: {"flat.weight.absmax": t["flat.weight.absmax"][:-1]}, r"has 288 values of F32 there"),
    "bytes alone": (lambda t: t.pop(f"flat.weight{STATE}") * 0, r"flat.weight is U8 \[9216, 1\], which the engine"),
    "fp8 alone": (lambda t: {"x.weight": torch.zeros(16, 16).to(torch.float8_e4m3fn)}, "without x.weight_scale"),
    "fp8 of a tensor": (
        lambda t: {"x.weight": torch.zeros(16, 16).to(torch.float8_e4m3fn), "x.scale_weight": torch.ones(1)},
        r"x.scale_weight is F32 \[1\]: the engine reads fp8 weights with a scale for each of the 16 rows",
    ),
    "e5m2": (lambda t: {"x.weight": torch.zeros(16, 16).to(torch.float8_e5m2)}, r"x.weight is F8_E5M2 \[16, 16\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_by_name(recorded, tmp_path, case):
    change, says = REFUSED[case]
    tensors = dict(recorded[0])
    changed = change(tensors)
    tensors |= changed if isinstance(changed, dict) else {}
    with pytest.raises(MovaError, match=says):
        open_component(written(tmp_path, tensors))


@pytest.mark.parametrize("scale", ["weight_scale", "scale_weight"])
@pytest.mark.parametrize("form", [FP8, INT8], ids=lambda form: form.name)
def test_scales_of_rows_go_by_other_tools_names_too(tmp_path, form, scale):
    held = form.quantise(torch.randn(32, 48, generator=torch.Generator().manual_seed(0)))
    # compressed-tensors keeps a column, and in bfloat16.
    column = held["weight_scale"].bfloat16().unsqueeze(1)
    stored = open_component(written(tmp_path, {"x.weight": held["weight"], f"x.{scale}": column}))
    found = stored.held("x")
    assert stored.formats == [form.name] and torch.equal(found["weight_scale"], column.squeeze(1).float())
    assert known_format(form.name) is form
