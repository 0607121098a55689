"""How often a block reads or writes the video activations outside matrix products and attention.

P is one pass over the video activations. A block of the eager formulation takes about 70 P; the fused operators and the
pending updates between blocks are there to need about 18 (24.6 with a bridge layer).
"""

from itertools import product

import pytest
import torch
from models.passes import PassCounter, allocated, operator_passes

from mova_engine.adapters.lora import add_lora
from mova_engine.backend import get_backend
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig, get_preset
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova, dual_tower_forward
from mova_engine.ops import OPERATORS, REFERENCE, bind, half_products, refusal, resolve
from mova_engine.ops.machine import assumed_machine
from mova_engine.predict.job import Job
from mova_engine.predict.operator_cost import OperatorCost

CPU = torch.device("cpu")
# Two heads: a CPU without matrix units takes long for products in bfloat16.
TOKENS, WIDTH, FFN = 5 * 8 * 8, 256, 512
P = TOKENS * WIDTH
# Smaller tensors (audio states; rotary tables, here a quarter of P; statistics) are a fraction of a percent at MOVA's
# sizes.
SMALLEST = P // 4 + 1


@pytest.fixture
def products_of_halves(monkeypatch):
    """As on any device with instructions for them: where this CPU has none, copies in float32 are part of a product."""
    monkeypatch.setattr(half_products, "SLOW_HERE", False)


def _runner(layers: int, bridged: bool, ops, dtype: torch.dtype, task: str = "full", checkpointing: str = "none"):
    video = VideoDiTConfig(dim=WIDTH, ffn_dim=FFN, num_heads=WIDTH // 128, num_layers=layers, text_dim=24, freq_dim=16)
    audio = AudioDiTConfig(dim=128, ffn_dim=128, num_heads=1, num_layers=layers, text_dim=24, freq_dim=16)
    bridge = BridgeConfig(layers, layers, WIDTH, 128, head_dim=128)
    clip = ClipConfig(frames=17, height=128, width=128)
    mova = Mova(MovaConfig("passes", video, audio, bridge, clip, experts=1), ops, dtype=dtype)
    mova.init_weights(torch.Generator().manual_seed(0))
    if task == "lora":
        mova.requires_grad_(False)
        add_lora(mova, ("q", "k", "v", "o", "ffn.0", "ffn.2"), 16, 16.0, torch.Generator().manual_seed(0))
        mova.to(dtype)
    latents = torch.randn(1, 36, 5, 16, 16), torch.randn(1, 128, 35), torch.randn(1, 5, 24)
    inputs = modalities(*latents, torch.tensor([500.0]), torch.tensor([500.0]))
    layer = mova.dual_tower_bridge if bridged else None
    runner = layer_runner(checkpointing)
    return lambda: dual_tower_forward(mova.video_dit, mova.audio_dit, layer, *inputs, runner=runner)


def _one_block(bridged: bool, ops, dtype: torch.dtype) -> dict[str, float]:
    """What one more layer adds: P moved, P of GELU, bytes of outputs and of allocations."""
    totals = []
    for layers in (2, 3):
        run = _runner(layers, bridged, ops, dtype)
        with PassCounter(SMALLEST) as counter:
            run()
        bytes_made = allocated(run, SMALLEST * dtype.itemsize)
        one = P * dtype.itemsize
        totals.append((sum(counter.moved.values()) / one, counter.gelu / one, counter.outputs, bytes_made))
    differences = (more - less for less, more in zip(*totals, strict=True))
    return dict(zip(("moved", "gelu", "outputs", "allocated"), differences, strict=True))


@pytest.mark.parametrize(("bridged", "limit"), [(False, 22), (True, 29)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_of_fused_operators_makes_few_passes(products_of_halves, dtype, bridged, limit):
    ops = bind(get_backend("cpu"))
    chosen = {choice.operator: choice.implementation for choice in ops.choices}
    if chosen["gate_residual_norm"] == "reference":
        pytest.skip("the native library is not built: python -m mova_kernels.cpu says why")
    if chosen["attention"] in ("sdpa-math", "reference"):
        pytest.skip("no fused attention runs on this CPU; mova ops says why")
    block = _one_block(bridged, ops, dtype)
    assert 0 < block["moved"] <= limit
    # Nothing hides inside an operator: all that was allocated came out of one.
    assert block["allocated"] == block["outputs"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_s_operators_hide_no_passes(dtype):
    """The counter leaves out what runs within `mova::attention`: bare, its kernels copy nothing but what they cast."""
    ops = bind(get_backend("cpu"), dtypes=(dtype,))
    q, k, v = (torch.randn(1, 512, 4, 128, dtype=dtype) for _ in range(3))
    with PassCounter(SMALLEST) as counter:
        out, lse = ops.attention_lse(q, k, v)
        ops.attention_backward(q, q, k, v, out, lse)
    assert counter.moved.keys() <= ({"_to_copy"} if dtype == torch.bfloat16 else set()), counter.moved


# Casts are those of attention on a CPU, part of its rate; the others make an update of nothing, which has no memory.
ASIDE = ("_to_copy", "new_zeros", "expand")


@pytest.mark.parametrize(
    ("task", "checkpointing"),
    [
        ("full", "none"),
        pytest.param("full", "full", marks=pytest.mark.long),
        pytest.param("lora", "none", marks=pytest.mark.long),
        pytest.param("lora", "full", marks=pytest.mark.long),
    ],
)
def test_the_planner_counts_what_a_block_and_a_bridge_do(products_of_halves, task, checkpointing):
    """Forward and backward, by one more layer of each."""
    ops = bind(get_backend("cpu"))
    chosen = {choice.operator: choice.implementation for choice in ops.choices}
    if chosen["gate_residual_norm"] != "native" or chosen["attention"] != "sdpa":
        pytest.skip("the native library is not built, or no fused attention runs on this CPU; mova ops says why")
    dtype, totals = torch.bfloat16, []
    for layers, bridged in product((2, 3), (False, True)):
        run, found = _runner(layers, bridged, ops, dtype, task, checkpointing), []
        with PassCounter(SMALLEST) as counter:
            loss = sum(x.float().square().mean() for x in run())
        found.append(counter)
        with PassCounter(SMALLEST) as counter:
            loss.backward()
        found.append(counter)
        moved = [sum(n for name, n in c.moved.items() if name not in ASIDE) + c.gelu for c in found]
        totals.append([n / P / dtype.itemsize for n in moved])
    block, bridged = ([b - a for a, b in zip(totals[i], totals[i + 2], strict=True)] for i in (0, 1))
    job = Job(get_preset("nano"), task)
    recomputed = checkpointing == "full"
    cost = OperatorCost(assumed_machine("cpu"), job, False, recomputed)
    video = VideoDiTConfig(dim=WIDTH, ffn_dim=FFN, num_heads=WIDTH // 128, num_layers=1)
    # What an adapter's product adds to is part of the product here.
    adapters = [cost.passes("lora_linear")[i] * (task == "lora") for i in (0, 1)]
    beside = [7 + FFN / WIDTH, 7 + FFN / WIDTH], [2 + 2 * 128 / WIDTH, 4]
    for counted, planned, widths in (
        (block, cost.block(video), beside[0]),
        ([b - a for a, b in zip(block, bridged, strict=True)], cost.bridge(WIDTH, 128), beside[1]),
    ):
        expected = [p - a * w for p, a, w in zip(planned, adapters, widths, strict=True)]
        if not recomputed:
            assert counted == pytest.approx(expected)
        assert sum(counted) == pytest.approx((1 + recomputed) * expected[0] + expected[1])


ON_ROWS = [name for name, operator in OPERATORS.items() if operator.least and not name.startswith(("linear", "lora"))]


@pytest.mark.parametrize("name", ON_ROWS)
@pytest.mark.parametrize("gate", [True, False])
def test_declared_passes_are_those_that_are_counted(name, gate):
    """Of the reference, and of the CPU's fused kernels."""
    operator = OPERATORS[name]
    if not gate and not name.startswith("gate"):
        pytest.skip("has no gate")
    counted = {REFERENCE: operator_passes(operator, operator.reference, CPU, gate)}
    (native,) = (entry for entry in operator.implementations if entry.name == "native")
    if refusal(operator, native, get_backend("cpu"), training=True) is None:
        counted["native"] = operator_passes(operator, resolve(native.target), CPU, gate)
    assert counted == {implementation: operator.passes(implementation).of(gate) for implementation in counted}


def test_the_count_sees_unfused_operators():
    block = _one_block(False, bind(get_backend("cpu"), "reference"), torch.bfloat16)
    assert block["moved"] > 40


def test_the_allocator_shows_a_copy_hidden_in_an_operator():
    library = torch.library.Library("mova_test_passes", "FRAGMENT")
    library.define("hidden(Tensor x) -> Tensor")
    library.impl("hidden", lambda x: x.clone().mul(2), "CPU")
    x = torch.zeros(SMALLEST)

    def run():
        return torch.ops.mova_test_passes.hidden(x)

    with PassCounter(SMALLEST) as counter:
        run()
    assert counter.moved == {"hidden": 2 * 4 * SMALLEST}
    assert allocated(run, 4 * SMALLEST) == 2 * counter.outputs
