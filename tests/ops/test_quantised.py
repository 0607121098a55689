"""Weights in NF4, int8 and GGUF blocks: recorded codes of the tools that define them, what is kept, what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mova_engine.errors import MovaError
from mova_engine.models.weight_formats import FP8, INT8, NF4
from mova_engine.ops import OPERATORS, resolve
from mova_engine.ops.gguf import GGUF_KINDS, dequantise_gguf
from mova_engine.ops.int8 import dequantise_int8, quantise_int8
from mova_engine.ops.nf4 import DYNAMIC_MAP, VALUES, Nf4, dequantise_nf4, quantise_nf4
from mova_engine.ops.testing.cases import cases_of
from mova_kernels.cpu import isa, isas, unavailable, use_isa

# Written by bitsandbytes 0.50.2 and gguf 0.19.0: tests/data/quantised/README.md.
RECORDED = Path(__file__).resolve().parents[1] / "data" / "quantised"
QUANTISED = ("nf4_linear", "int8_linear", "gguf_linear")


def _recorded(name):
    return load_file(RECORDED / f"{name}.safetensors")


def test_values_and_scales_are_bitsandbytes():
    found = _recorded("bitsandbytes")
    assert torch.equal(torch.tensor(VALUES), found["quant_map"])
    assert torch.equal(torch.tensor(DYNAMIC_MAP), found["nested_quant_map"])


@pytest.mark.parametrize("double", [True, False])
def test_codes_and_numbers_are_bitsandbytes(double):
    found = _recorded("bitsandbytes")
    of = found["of"]
    held = quantise_nf4(of, double)
    assert torch.equal(held.weight, found["weight"].view(held.weight.shape))
    stored = Nf4(held.weight, found["scales"].view(len(of), -1))
    if double:
        nested = found["absmax"].view(len(of), -1), found["nested_absmax"], found["nested_offset"]
        stored = Nf4(held.weight, *nested)
        torch.testing.assert_close(held.nested_offset, stored.nested_offset, rtol=1e-6, atol=0)
    assert torch.equal(held.absmax, stored.absmax)
    expected = found["double" if double else "plain"]
    assert torch.equal(dequantise_nf4(*stored, torch.float32), expected)
    assert torch.equal(dequantise_nf4(*stored, torch.bfloat16), expected.bfloat16())


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_blocks_decode_as_ggml_does(kind):
    found = _recorded("gguf")
    decoded = dequantise_gguf(found[f"{kind}.blocks"], kind, torch.float32)
    assert torch.equal(decoded, found[f"{kind}.values"])
    assert torch.equal(dequantise_gguf(found[f"{kind}.blocks"], kind, torch.bfloat16), decoded.bfloat16())


@pytest.mark.parametrize(("double", "sizes"), [(False, (0, 1e30, 1e-30, 1)), (True, (1, 1.2, 0.9, 1.1))])
def test_nf4_of_zeros_of_huge_and_of_tiny_blocks(double, sizes):
    of = torch.randn(4, 64) * torch.tensor(sizes)[:, None]
    found = dequantise_nf4(*quantise_nf4(of, double), torch.float32)
    # Half the widest gap between two of the 16 values; the scale's own 8 bits are nearer.
    assert bool(((found - of).abs() <= 0.153 * of.abs().amax(1, keepdim=True)).all())


def test_weights_in_chunks_of_rows_are_those_in_one_go(monkeypatch):
    weight = torch.randn(9, 256)
    blocks = _recorded("gguf")["Q4_K.blocks"]
    # Without the kernel for CPUs, which takes no chunks.
    monkeypatch.setattr("mova_kernels.cpu.unavailable", lambda: "absent")

    def everything():
        found = [*quantise_nf4(weight), dequantise_gguf(blocks, "Q4_K", torch.bfloat16)]
        found += [dequantise_nf4(*quantise_nf4(weight), torch.bfloat16)]
        found += [dequantise_int8(*quantise_int8(weight), torch.bfloat16)]
        return found + [each for form in (FP8, INT8, NF4) for each in form.quantise(weight).values()]

    whole = everything()
    assert torch.equal(whole[-6], INT8.quantise(weight)["weight"]) and torch.equal(whole[-6], quantise_int8(weight)[0])
    monkeypatch.setattr("mova_engine.ops.row_chunks._AT_ONCE", 600)
    assert all(torch.equal(a, b) for a, b in zip(whole, everything(), strict=True))


@pytest.mark.parametrize("name", ["int8_dequantise", "int8_int_mm"])
def test_products_of_a_few_rows_at_a_time_are_those_of_all(name, monkeypatch):
    function = resolve(f"mova_engine.ops.quantised_impl:{name}")
    x, (weight, scale), bias = torch.randn(2, 35, 64), quantise_int8(torch.randn(24, 64)), torch.randn(24)

    def product():
        return function(x, weight, scale, bias, None, None, scale=1.0)

    whole = product()
    # The last part has fewer rows than the integer product takes.
    monkeypatch.setattr("mova_engine.ops.row_chunks._PRODUCT", 20 * 64)
    assert torch.equal(product(), whole)
    assert (
        product().shape == whole.shape and function(x[:, :0], weight, scale, bias, None, None, scale=1.0).numel() == 0
    )


def test_int8_rounds_halves_to_even_and_keeps_zeros():
    values, scale = quantise_int8(torch.tensor([[127.0, 0.5, 1.5, -2.5], [0, 0, 0, 0]]))
    assert values.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]] and scale[0] == 1
    assert not dequantise_int8(values, scale, torch.float32)[1].any()


def _inputs(name, dtype=torch.float32):
    made = next(case for case in cases_of(name) if case.name == "nano")
    return made.make(torch.Generator().manual_seed(3), torch.device("cpu"), dtype)


def _implementations():
    for name in QUANTISED:
        for entry in OPERATORS[name].implementations:
            if entry.automatic and (not entry.devices or "cpu" in entry.devices):
                absent = unavailable() if "cpu-kernels" in entry.needs else None
                marks = [pytest.mark.skip(reason=absent)] if absent else []
                yield pytest.param(
                    name, resolve(entry.target) if not absent else None, marks=marks, id=f"{name}-{entry.name}"
                )


IMPLEMENTATIONS = list(_implementations())


@pytest.mark.parametrize(("name", "function"), IMPLEMENTATIONS)
def test_what_is_kept_are_the_stored_bytes(name, function):
    """The backward dequantises again: beside its arguments a layer keeps x A^T alone, and without an adapter not x."""
    inputs = _inputs(name)
    for leaf in ("x", "lora_a", "lora_b"):
        inputs[leaf].requires_grad_()
    for change, expected in (({}, [[2 * 69, 16]]), ({"lora_a": None, "lora_b": None}, [])):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):  # noqa: B023
            function(**inputs | change)
        known = {x.data_ptr() for x in inputs.values() if isinstance(x, torch.Tensor)}
        assert [list(x.shape) for x in saved if x.data_ptr() not in known] == expected
        assert bool(change) == (inputs["x"].data_ptr() not in {x.data_ptr() for x in saved})


_NF4 = {"weight": torch.zeros(8, 32, dtype=torch.uint8), "absmax": torch.ones(8, 1), "nested_absmax": None}
_NF4 |= {"nested_offset": None}
_CODES = torch.zeros(8, 1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nf4_linear", {"weight": torch.zeros(8, 32)}, r"nf4_linear: weight must be \[o, i / 2\] torch.uint8"),
        ("nf4_linear", {"weight": torch.zeros(8, 16, dtype=torch.uint8)}, r"multiple of 64, got \[8, 32\]"),
        ("nf4_linear", {"absmax": torch.ones(8, 2)}, r"absmax must be \[8, 1\] torch.float32"),
        ("nf4_linear", {"absmax": torch.ones(8, 1).double()}, "absmax must be .* got .* torch.float64"),
        ("nf4_linear", {"absmax": _CODES}, r"nested_absmax must be \[1\] torch.float32, got None"),
        ("nf4_linear", {"nested_offset": torch.ones(())}, "belong to an absmax in uint8"),
        ("nf4_linear", {"x": torch.ones(1, 2, 63)}, r"x must be \[b, s, 64\]"),
        ("int8_linear", {"weight": torch.zeros(8, 64)}, r"weight must be \[o, i\] torch.int8"),
        ("int8_linear", {"weight_scale": torch.ones(7)}, r"weight_scale must be \[8\] torch.float32"),
        ("int8_linear", {"bias": torch.ones(7)}, r"bias must be \[8\]"),
        ("int8_linear", {"lora_a": None}, "lora_a and lora_b go together"),
        ("gguf_linear", {"kind": "Q4_L"}, "unknown GGUF format 'Q4_L'. Did you mean 'Q4_K'.* Known: Q8_0"),
        ("gguf_linear", {"weight": torch.zeros(8, 69, dtype=torch.uint8)}, "rows of Q8_0 blocks of 34 bytes"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, change, message):
    of_format = {
        "nf4_linear": _NF4,
        "int8_linear": {"weight": torch.zeros(8, 64, dtype=torch.int8), "weight_scale": torch.ones(8)},
        "gguf_linear": {"weight": torch.zeros(8, 68, dtype=torch.uint8), "kind": "Q8_0"},
    }[name]
    inputs = {"x": torch.ones(1, 2, 64), "bias": None, "lora_a": torch.ones(4, 64), "lora_b": torch.ones(8, 4)}
    function = resolve(next(e.target for e in OPERATORS[name].implementations if e.name == "dequantise"))
    with pytest.raises(MovaError, match=message) as caught:
        function(**inputs | of_format | change, scale=1.0)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_quantised_or_multiplied_is_refused():
    with pytest.raises(MovaError, match=r"NF4 takes weights \[o, i\] with i a multiple of 64, got \[8, 65\]"):
        quantise_nf4(torch.ones(8, 65))
    int_mm = resolve(next(e.target for e in OPERATORS["int8_linear"].implementations if e.name == "int-mm"))
    weight, scale = quantise_int8(torch.ones(9, 64))
    with pytest.raises(MovaError, match=r"sizes must be multiples of 8, got \[9, 64\]"):
        int_mm(torch.ones(1, 2, 64), weight, scale, None, None, None, scale=1.0)


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_native_kernel_gives_the_look_ups_bits_on_every_instruction_set(dtype):
    from mova_kernels.cpu.ops import dequantise_nf4 as kernel

    before, maps = isa(), (torch.tensor(VALUES), torch.tensor(DYNAMIC_MAP))
    weight = torch.randn(37, 320)
    try:
        for double, of in ((True, weight), (False, weight * torch.logspace(-30, 30, 37)[:, None])):
            held = quantise_nf4(of, double)
            strided = held._replace(weight=torch.stack([held.weight] * 2, -1)[..., 0])
            for which in isas():
                use_isa(which)
                for stored in (held, strided):
                    assert torch.equal(kernel(*stored, *maps, dtype), dequantise_nf4(*held, dtype)), which
    finally:
        use_isa(before)


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_native_kernel_quantises_to_pytorchs_bits_on_every_instruction_set(dtype, monkeypatch):
    middles = (torch.tensor(VALUES)[:-1] + torch.tensor(VALUES)[1:]) / 2
    weight = torch.randn(41, 320) * torch.logspace(-40, 38, 41)[:, None]
    # Ties and their neighbours, in blocks whose scale is 1; zeros; numbers that are none.
    weight[20:23, :64] = torch.cat([middles, middles.nextafter(middles - 1), middles.nextafter(middles + 1)]).repeat(2)[
        :64
    ]
    weight[20:23, 63] = torch.tensor([1.0, -1.0, 1.0])
    weight[30, 64:128], weight[31, 5], weight[32, 70] = 0, torch.nan, -torch.inf
    weight = weight.to(dtype)
    before = isa()
    with monkeypatch.context() as without:
        without.setattr("mova_kernels.cpu.unavailable", lambda: "absent")
        expected = [quantise_nf4(weight, double) for double in (False, True)]
    try:
        for which in isas():
            use_isa(which)
            for given in (weight, torch.cat([weight, weight], 1)[:, 320:], weight.t().contiguous().t()):
                for found, of in zip([quantise_nf4(given, double) for double in (False, True)], expected, strict=True):
                    assert torch.equal(found.weight, of.weight), which
                    assert all(a.equal(b) for a, b in zip(_numbers(found[1:]), _numbers(of[1:]), strict=True)), which
    finally:
        use_isa(before)


def _numbers(tensors):
    """NaN, which equals nothing, in the form of a number."""
    return [torch.nan_to_num(each.float(), nan=-5.0) for each in tensors if each is not None]


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_torch_judges_the_native_kernels_registration_and_it_refuses_by_name():
    operator, maps = torch.ops.mova_kernels.dequantise_nf4.default, (torch.tensor(VALUES), torch.tensor(DYNAMIC_MAP))
    held = quantise_nf4(torch.randn(5, 128))
    torch.library.opcheck(operator, (*held, *maps, torch.bfloat16))
    for change, error, message in (
        ({"weight": held.weight.int()}, TypeError, "weight must be Byte, got Int"),
        ({"weight": held.weight[:, 1:]}, ValueError, "i a multiple of 64"),
        ({"absmax": held.absmax[:, 1:]}, ValueError, r"absmax must be \[5, 2\], got \[5, 1\]"),
        ({"nested_absmax": None}, ValueError, "go with an absmax of Byte"),
        ({"nested_absmax": torch.ones(1).double()}, TypeError, "nested_absmax must be Float, got Double"),
        ({"nested_offset": torch.ones(1)}, ValueError, "nested_offset must be"),
    ):
        with pytest.raises(error, match=message):
            operator(*held._replace(**change), *maps, torch.bfloat16)
    with pytest.raises(TypeError, match="give float32 and bfloat16"):
        operator(*held, *maps, torch.float16)
    quantise, weight, bounds = (
        torch.ops.mova_kernels.quantise_nf4.default,
        torch.randn(5, 128),
        torch.linspace(-1, 1, 15),
    )
    torch.library.opcheck(quantise, (weight, bounds, 1e-38))
    for arguments, error, message in (
        ((weight.half(), bounds), TypeError, "take float32 and bfloat16"),
        ((weight[:, 1:], bounds), ValueError, "i a multiple of 64"),
        ((weight, bounds[1:]), ValueError, r"bounds must be \[15\], got \[14\]"),
    ):
        with pytest.raises(error, match=message):
            quantise(*arguments, 1e-38)
