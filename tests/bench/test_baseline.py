"""The baseline is the published model: its recorded numbers come out, and it does nothing but what it says."""

import sys

import pytest
import torch

from mova_engine.bench import BASELINE
from mova_engine.bench.baseline import bind_baseline, load_baseline
from mova_engine.bench.peak_memory import peak_above_gradients
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS
from mova_engine.parity.case import CaseDevice, find_cases
from mova_engine.parity.runner import RUNNERS, run_case


@pytest.mark.parametrize("name", sorted(RUNNERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_baseline_gives_the_recorded_numbers(golden_dir, backend, name, dtype):
    case = next(case for case in find_cases(golden_dir) if case.name == name)
    with backend.full_precision():
        rows = run_case(case, CaseDevice(bind_baseline(backend), backend.device(), dtype))
    assert rows
    assert not [f"{row.tensor}: {row.difference} > {row.bound} {row.note}" for row in rows if not row.passed]


def test_it_replaces_all_operators_of_a_block():
    used = {"rms_norm_rope", "rms_norm", "linear_gelu", "lora_linear", "attention", "shared_linear", "feed_forward"}
    used |= {name for name in OPERATORS if "gate_residual" in name or "layer_norm" in name or "modulate" in name}
    assert load_baseline().keys() == used


def test_its_rotation_is_made_of_float64_complex_numbers():
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            seen.append(getattr(result, "dtype", None))
            return result

    x, angles = torch.randn(1, 6, 128), torch.randn(6, 32)
    inputs = (x, torch.ones(128), angles.cos(), angles.sin())
    with Watch():
        out = load_baseline()["rms_norm_rope"](*inputs, eps=1e-6, interleaved=True)
    assert torch.complex128 in seen
    assert out.dtype == torch.float32


def test_autograd_keeps_what_the_formulation_makes():
    """RMSNorm by four operations: a float32 copy, its square's mean, the normed row and its rounding, in bfloat16."""
    rms_norm = load_baseline()["rms_norm"]
    x = torch.randn(1, 64, 256, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(256, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x, weight, eps=1e-6)
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    large = sorted(size for size in storages.values() if size >= x.numel() * 2)
    assert large == [x.numel() * 2, x.numel() * 4]  # the rounded row for the weight, the float32 copy for the rest
    assert peak_above_gradients(lambda: rms_norm(x, weight, eps=1e-6), list) >= sum(large)


def test_a_baseline_outside_a_checkout_is_one_clear_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "benchmarks.reference_formulation", raising=False)
    monkeypatch.setitem(sys.modules, "benchmarks", None)
    with pytest.raises(MovaError, match=r"is not found .*run from a checkout .*--baseline none") as error:
        load_baseline(BASELINE)
    assert "\n" not in str(error.value)
