"""Products of half precision in float32, as on CPUs without instructions for them: all of a model's, rounded once."""

import platform

import pytest
import torch
from models.test_towers import build, forward, gradients_of, inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mova_engine.adapters.lora import add_lora
from mova_engine.backend import get_backend
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.mova import Mova
from mova_engine.ops import bind, half_products

CPU = get_backend("cpu")
_PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "matmul")


class NarrowProducts(TorchDispatchMode):
    """The matrix products of half-precision matrices that run under it; not those of vectors."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        narrow = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor) and x.dtype in half_products._HALVES]
        if function._schema.name.split("::")[1] in _PRODUCTS and any(x.ndim > 1 for x in narrow):
            self.found.append((function._schema.name, [tuple(x.shape) for x in narrow]))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(half_products, "SLOW_HERE", True)


def model(task: str = "full") -> Mova:
    made = build(bind(CPU), CPU).to(torch.bfloat16)
    if task == "lora":
        made.requires_grad_(False)
        add_lora(made, ("q", "k", "v", "o", "ffn.0", "ffn.2"), 2, 2.0, torch.Generator().manual_seed(0))
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return made


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("task", ["full", "lora"])
def test_a_training_step_makes_no_product_of_halves(slow, task, checkpointing):
    mova, args = model(task), inputs(CPU)
    runner = layer_runner(checkpointing)
    with NarrowProducts() as narrow:
        found = gradients_of(mova, args, runner=runner)
    assert narrow.found == []
    assert found and all(g.dtype == torch.bfloat16 for g in found.values())


@pytest.mark.parametrize("task", ["full", "lora"])
def test_sampling_makes_no_product_of_halves(slow, task):
    mova, args = model(task), inputs(CPU)
    with torch.no_grad(), NarrowProducts() as narrow:
        forward(mova, args)
    assert narrow.found == []


@pytest.mark.parametrize("task", ["full", "lora"])
def test_values_and_gradients_are_as_near_as_those_of_products_of_halves(monkeypatch, task):
    args, errors = inputs(CPU), []
    mova = model(task)
    truth = gradients_of(mova.float(), args)
    # Some gradients are zero by the mathematics, such as that of a key's bias.
    least = 1e-3 * max(value.norm() for value in truth.values())
    mova = model(task)
    for there in (False, True):
        monkeypatch.setattr(half_products, "SLOW_HERE", there)
        found = gradients_of(mova, args)
        norms = [(found[name].float() - value).norm() / (value.norm() + least) for name, value in truth.items()]
        errors.append(torch.stack(norms))
    halves, wide = errors
    assert wide.max() < 1.5 * halves.max() and wide.mean() < 1.2 * halves.mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_each_result_is_that_of_float32_rounded_once(slow, dtype):
    x, w, b, c = (torch.randn(shape).to(dtype) for shape in ((6, 40), (9, 40), (9,), (6, 9)))
    exact = x.float() @ w.float().t()
    assert torch.equal(half_products.matmul(x, w.t()), exact.to(dtype))
    assert torch.equal(half_products.linear(x, w), exact.to(dtype))
    assert torch.equal(
        half_products.linear(x, w, b), torch.nn.functional.linear(x.float(), w.float(), b.float()).to(dtype)
    )
    expected = torch.addmm(c.float(), x.float(), w.float().t(), alpha=0.5).to(dtype)
    half_products.add_product(c, x, w.t(), 0.5)
    assert torch.equal(c, expected)


def test_other_dtypes_are_left_alone(slow):
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(half_products.matmul(x, x.t()), x @ x.t()) and half_products.linear(x, x).dtype == torch.float64


@pytest.mark.parametrize(
    ("machine", "capability", "slow_there"),
    [
        ("x86_64", "AVX2", True),
        ("AMD64", "DEFAULT", True),
        ("x86_64", "AVX512", False),
        ("aarch64", "DEFAULT", False),
    ],
)
def test_which_cpus_they_are(monkeypatch, machine, capability, slow_there):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert half_products._slow_here() is slow_there
