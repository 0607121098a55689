"""Adapters to vendors' packages and to torch's CUDA kernels, without either: against stand-ins and on fake tensors."""

import dataclasses
import sys
import types

import pytest
import torch
from ops import vendors
from torch._subclasses.fake_tensor import FakeTensorMode

from mova_engine.backend import get_backend
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, apex_impl, attention_impl, flash_impl, resolve
from mova_engine.ops.registry import ThisMachine
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import verify

CPU = torch.device("cpu")
VERSIONS = (2, 3, 4)
HERE = ThisMachine(get_backend("cpu"))


@pytest.fixture
def install(monkeypatch):
    """Put stand-ins among the imported modules."""

    def put(modules):
        for name, module in vendors.importable(modules).items():
            monkeypatch.setitem(sys.modules, name, module)

    return put


def _entry(operator, name):
    return next(e for e in OPERATORS[operator].implementations if e.name == name)


def _anywhere(entry):
    """The entry without its limits to a device: what is left are the packages that it needs."""
    return dataclasses.replace(entry, devices=(), check=None)


# Larger cases, which would show no other argument: only with --slow.
LARGE = ("few-queries", "self", "video-to-audio", "text", "large-scores")


@pytest.fixture
def judge(request):
    def run(operator, entry, dtype=torch.bfloat16):
        """Small cases through the stand-in: an argument that went wrong shows in the values."""
        every = request.config.getoption("--slow")
        tested = [case for case in cases_of(OPERATORS[operator]) if case.size == "test"]
        cases = [case for case in tested if every or case.name not in LARGE]
        assert cases
        for case in cases:
            findings = verify(OPERATORS[operator], resolve(entry.target), case, CPU, dtype)
            assert findings and all(f.passed for f in findings), [str(f) for f in findings if not f.passed]

    return run


@pytest.mark.parametrize("operator", ["attention", "attention_lse", "attention_backward"])
@pytest.mark.parametrize("version", VERSIONS)
def test_flash_attn_is_spoken_to_as_it_documents(install, judge, version, operator):
    install(vendors.FLASH[version]())
    entry = _entry(operator, f"flash-attn-{version}")
    assert _anywhere(entry).refusal(HERE, training=True) is None
    judge(operator, entry)


@pytest.mark.parametrize("present", [(), *((version,) for version in VERSIONS)])
def test_each_flash_attn_is_known_by_its_own_names(install, present):
    """Versions 2 and 4 share a namespace, so that a package found says nothing about a function."""
    for version in present:
        install(vendors.FLASH[version]())
    for version in VERSIONS:
        reason = _anywhere(_entry("attention_backward", f"flash-attn-{version}")).refusal(HERE, True)
        assert (reason is None) == (version in present), reason


def test_a_forward_only_build_serves_no_backward(install):
    modules = vendors.flash3()
    del modules["flash_attn_interface"]._flash_attn_backward
    install(modules)
    assert _anywhere(_entry("attention", "flash-attn-3")).refusal(HERE, True) is None
    reason = _anywhere(_entry("attention_backward", "flash-attn-3")).refusal(HERE, True)
    assert reason == "the installed package flash_attn_interface has no _flash_attn_backward"


def test_a_package_that_does_not_load_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "flash_attn_interface.py").write_text("raise ImportError('libcudart.so.12: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = _anywhere(_entry("attention", "flash-attn-3")).refusal(HERE, True)
    assert reason == "the installed package flash_attn_interface does not load: libcudart.so.12: cannot open"


@pytest.mark.parametrize("e", [20, 264])
def test_flash_attn_refuses_head_dims_that_it_has_not(e):
    q = torch.zeros(1, 3, 2, e, dtype=torch.bfloat16)
    with pytest.raises(MovaError, match=f"multiples of 8 up to 256, got {e}; the implementation 'sdpa' takes any"):
        flash_impl.flash2(q, q, q)
    with pytest.raises(MovaError, match="takes bfloat16, float16"):
        flash_impl.flash3_lse(q.float(), q.float(), q.float())


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [("layer_norm", torch.bfloat16), ("rms_norm", torch.bfloat16), ("adamw", torch.float32),
     ("clip_grad_norm", torch.float32)],
)  # fmt: skip
def test_apex_is_spoken_to_as_it_documents(install, judge, operator, dtype):
    install(vendors.apex())
    entry = _entry(operator, "apex")
    assert _anywhere(entry).refusal(HERE, training=True) is None
    judge(operator, entry, dtype)


def test_another_package_named_apex_is_not_nvidias(install):
    install({"apex": types.ModuleType("apex")})
    for operator in ("layer_norm", "rms_norm", "adamw", "clip_grad_norm"):
        reason = _anywhere(_entry(operator, "apex")).refusal(HERE, training=True)
        assert reason == "the package amp_C is not installed"


def test_apex_counts_steps_for_each_parameter_in_the_state_as_torch_does(install):
    install(vendors.apex())
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    runs = []
    for factory in (apex_impl.ApexAdamW, lambda p, **o: torch.optim.AdamW(p, **o)):
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(3, 4, generator=generator).requires_grad_() for _ in range(2)]
        optimizer = factory(params, **options)
        for step in range(3):
            # The second rests in the second step.
            params[0].grad = torch.randn(3, 4, generator=generator)
            params[1].grad = None if step == 1 else torch.randn(3, 4, generator=generator)
            optimizer.step()
        runs.append((params, optimizer.state_dict()["state"]))
    (ours, state), (theirs, expected) = runs
    torch.testing.assert_close(ours, theirs)
    assert [float(state[i]["step"]) for i in (0, 1)] == [3.0, 2.0]
    assert state[0].keys() == expected[0].keys()
    half = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    half.grad = torch.ones_like(half)
    with pytest.raises(MovaError, match="apex's step serves float32"):
        apex_impl.ApexAdamW([half], **options).step()


@pytest.mark.parametrize("kernel", ["flash_cuda", "cudnn", "efficient"])
def test_torchs_cuda_kernels_are_called_by_their_schemas(kernel):
    """On fake tensors torch runs its own shape functions: arguments of a wrong kind or order do not get through."""
    lse_of, backward_of = (getattr(attention_impl, f"{kernel}_{form}") for form in ("lse", "backward"))
    with FakeTensorMode():
        q = torch.empty(2, 37, 3, 64, dtype=torch.bfloat16, device="cuda")
        k = torch.empty(2, 45, 3, 64, dtype=torch.bfloat16, device="cuda")
        out, lse = lse_of(q, k, k)
        assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, q.dtype, (2, 3, 37), torch.float32)
        gradients = backward_of(q, q, k, k, out, lse)
    assert [x.shape for x in gradients] == [q.shape, k.shape, k.shape]


def test_torchs_kernels_without_keys_are_not_called():
    q, k = torch.ones(1, 3, 2, 8, dtype=torch.bfloat16), torch.ones(1, 0, 2, 8, dtype=torch.bfloat16)
    for kernel in ("flash_cuda", "cudnn", "efficient"):
        out, lse = getattr(attention_impl, f"{kernel}_lse")(q, k, k)
        assert not out.any() and torch.equal(lse, torch.full((1, 2, 3), -torch.inf))


def test_a_chosen_kernel_that_is_not_there_says_which_and_what_else():
    q = torch.ones(1, 3, 2, 8)
    with pytest.raises(
        MovaError, match="torch has no memory-efficient kernel for .* on cpu; the implementation 'sdpa'"
    ):
        attention_impl.sdpa_efficient(q, q, q)
    assert "has no cuDNN attention for" in attention_impl.cudnn_check(get_backend("cpu"))
    assert attention_impl.flash_check(get_backend("cpu")) is None
