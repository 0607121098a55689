"""What the operators that a machine would bind cost: passes over memory of a block and of a bridge, attention's rate.

The calls of an operator are those of `models/layers.py` and `models/bridge.py`, its passes those that the chosen
implementation declares. P is one pass over all tokens of a tower in the dtype of its activations.
"""

from functools import cache

from mova_engine.config.model import TowerConfig
from mova_engine.ops.choice import choose
from mova_engine.ops.declarations import REFERENCE, Rate
from mova_engine.ops.machine import Machine
from mova_engine.ops.table import OPERATORS
from mova_engine.predict.hardware import Hardware
from mova_engine.predict.job import DTYPE_NAMES, Job

Pair = tuple[float, float]
# The operators on rows that make a block's passes.
ROWS = (
    *("rms_norm_rope", "rms_norm", "norm_modulate", "layer_norm"),
    *("gate_residual_norm", "gate_residual_norm_modulate", "bias_gelu"),
)

# Rate of an attention that declares none, with its scores in memory (assumed).
_UNFUSED = Rate(0.05, 0.05)
# The sum of two gradients: both read, one written.
_SUM = 3.0


@cache
def bound(machine: Machine, training: bool, precision: str) -> dict[str, str]:
    """{operator: implementation} of a machine. precision: bf16 or fp32."""
    chosen = choose(machine, training=training, dtype=DTYPE_NAMES[precision])
    return {choice.operator: choice.implementation for choice in chosen}


class OperatorCost:
    """Passes over memory of the operators that a machine binds for a job: (forward, backward) in P."""

    def __init__(self, machine: Machine, job: Job, fp8: bool, recomputed: bool) -> None:
        """fp8: frozen weights are held in it. recomputed: layers are checkpointed; the forward that a backward repeats
        is not counted here.
        """
        self.bound = bound(machine, job.training, job.precision)
        self.training, self.lora, self.fp8, self.recomputed = job.training, job.task == "lora", fp8, recomputed
        # Layers are operators of their own, each with its input, beside adapters and where they multiply in fp8.
        self.trained_fp8, self.single = job.fp8, job.fp8 or self.lora

    def passes(self, operator: str, gate: bool = True) -> Pair:
        """Passes of one call, in units of its own activations."""
        found = OPERATORS[operator].passes(self.bound[operator])
        return found.of(gate) if found else (0.0, 0.0)

    def block(self, tower: TowerConfig) -> Pair:
        """Of one block without bridge: q and k normalised and rotated, three residuals with norms, q of the text's
        attention normalised, GELU.
        """
        calls = (
            *(self.passes(name) for name in ("rms_norm_rope", "rms_norm_rope", "gate_residual_norm", "rms_norm")),
            self.passes("gate_residual_norm_modulate", gate=False),
            self.passes("gate_residual_norm_modulate"),
        )
        forward, backward = (sum(values) for values in zip(*calls, strict=True))
        backward += self._inputs(norms=("norm_modulate", "layer_norm", "norm_modulate"), shared=2)
        if self.lora and self.recomputed:
            # A pending update whose gate is frozen is added once more, so that only the sum is kept (`_shrink_inputs`).
            backward += self.passes("gate_residual")[0]
        ratio = tower.ffn_dim / tower.dim
        gelu, gelu_backward = self._gelu()
        # q, k, v, o, the text's q and o, both products of the feed-forward.
        linear, linear_backward = self._linears(6 + ratio + 1, 6 + 1 + ratio, biases=6 + 1)
        return forward + ratio * gelu + linear, backward + ratio * gelu_backward + linear_backward

    def bridge(self, dim: int, other: int) -> Pair:
        """In addition, of a block that follows a bridge layer. dim: of this tower, other: of the other one.

        The layer adds what is pending and normalises it for the other direction, and leaves an update without gate.
        Queries are of this tower's width; its tokens become keys and values of the other's.
        """
        residual, fused = self.passes("gate_residual_norm"), self.passes("gate_residual_norm_modulate")
        ungated, rope = self.passes("gate_residual_norm_modulate", gate=False), self.passes("rms_norm_rope")
        forward, backward = (
            a + b - c + (1 + other / dim) * d for a, b, c, d in zip(residual, ungated, fused, rope, strict=True)
        )
        # The tokens are residual and query both; the norm is read by keys and values.
        backward += _SUM + self._inputs(norms=("layer_norm",), shared=1)
        # q and o; k and v of the other direction.
        linear, linear_backward = self._linears(2 + 2 * other / dim, 2 + 2, biases=2 + 2 * other / dim)
        return forward + linear, backward + linear_backward

    def _inputs(self, norms: tuple[str, ...], shared: int) -> float:
        """Of the backward of layers that share an input: plain ones add up its gradient inside their products, and
        compute it again from what the norms keep where no layer is recomputed as a whole; others keep it, and their
        gradients are summed one by one.
        """
        if self.single:
            return shared * _SUM
        return 0.0 if self.recomputed else sum(self.passes(name)[0] for name in norms)

    def _gelu(self) -> Pair:
        """Of the feed-forward's width."""
        if not self.training:
            return self.passes("linear_gelu")[0], 0.0
        forward, backward = self._biased_gelu()
        # `feed_forward` computes it again in its backward, unless the layer is recomputed as a whole.
        return forward, backward if self.single or self.recomputed else forward + backward

    def _biased_gelu(self) -> Pair:
        """Of GELU in training, with what the bias takes beside the product."""
        name = self.bound["bias_gelu"]
        of_sum = next((i.of_sum for i in OPERATORS["bias_gelu"].implementations if i.name == name), None)
        if of_sum is None:
            return self.passes("bias_gelu")
        forward, backward = of_sum.of()
        # The product has added it; its gradient is a sum of its own, unless it is frozen.
        return forward, backward + (not self.lora)

    def _linears(self, outputs: float, inputs: float, biases: float) -> Pair:
        """Of layers, by the widths of their outputs and inputs: what is beside the base's product. biases: of the
        outputs that are summed for the gradient of a bias (the up projection's is summed in GELU's backward).
        """
        if self.trained_fp8:
            quantised = self.passes("fp8_trained_linear")
            return quantised[0] * inputs, quantised[1] * (inputs + outputs) / 2 + biases
        if not self.lora:
            return 0.0, biases
        forward, backward = self.passes("lora_linear")
        if self.fp8:
            # Rows of inputs and of gradients are quantised; an adapter's product adds as it does beside bf16.
            quantised = self.passes("fp8_linear")
            return forward * outputs + quantised[0] * inputs, backward * inputs + quantised[1] * outputs
        return forward * outputs, backward * inputs


def attention_rates(hardware: Hardware, job: Job, kept: bool = False, kernel: str | None = None) -> tuple[float, float]:
    """FLOP/s (forward, backward) of attention on a device.

    kept: output and log-sum-exp are kept for the backward, so that the two operators with a log-sum-exp make it.
    kernel: an implementation by name instead of what the device binds, where it may run there.
    """
    machine = hardware.machine
    chosen = bound(machine, job.training, job.precision)
    names = ("attention_lse", "attention_backward") if kept else ("attention", "attention")
    peak, rates = hardware.peak_flops(job.precision) * hardware.achieved.attention, []
    for index, operator in enumerate(names):
        entries = {entry.name: entry for entry in OPERATORS[operator].implementations}
        name = kernel if kernel and machine.kind in entries[kernel].devices else chosen[operator]
        share = hardware.achieved.kernels.get(name)
        if share is None:
            rate = (entries[name].rate(machine) if name != REFERENCE else None) or _UNFUSED
            share = rate.forward, rate.backward
        rates.append(peak * share[index])
    return rates[0], rates[1]


def words(hardware: Hardware, job: Job) -> str:
    """The implementations that a plan assumes, as text."""
    chosen = bound(hardware.machine, job.training, job.precision)
    rows = sorted({chosen[name] for name in ROWS})
    return f"operators: attention by {chosen['attention']}; norms, residuals and GELU by {' and '.join(rows)}"
