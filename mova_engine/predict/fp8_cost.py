"""What fp8 products of trained layers change in the cost of a run: the rate of products, and what quantises for them.

Planned, not measured: products are taken to achieve the same share of the device's fp8 peak as those in half precision
do of theirs. Passes over activations are declared with the operator (`ops/table.py`).
"""

from mova_engine.predict.flops import Attention, MatrixProduct
from mova_engine.predict.hardware import Hardware
from mova_engine.predict.job import PlannedRun

# Sizes of a layer are multiples of this.
_MULTIPLE = 16
# Bytes moved for each weight: read and written in a byte for `x W^T`; for `g W` copied in the other order first.
_FORWARD, _BACKWARD = 3, 7
# P of copies in fp8 and in the other order at a layer's peak, counted by dry runs of mova-360p: of whole clips, and of
# those whose heads are exchanged, where the peak is at another place of the layer.
_COPIES, _COPIES_EXCHANGED = 4.0, 1.3
# P that a layer keeps where it is not recomputed: norms' outputs, and beside GELU's input, its result.
_KEPT_INPUTS = 3.0


def in_fp8(op: MatrixProduct | Attention, run: PlannedRun) -> bool:
    """Whether an operation is a product of fp8 numbers."""
    if not run.job.fp8 or isinstance(op, Attention):
        return False
    return op.in_block and op.k % _MULTIPLE == 0 and op.n % _MULTIPLE == 0


def product_rate(op: MatrixProduct, run: PlannedRun, hardware: Hardware) -> float:
    """FLOP/s of a product. Raises MovaError for a device that states no peak in its dtype."""
    precision = "fp8" if in_fp8(op, run) else run.job.precision
    return hardware.peak_flops(precision) * hardware.achieved.gemm


def weight_bytes(op: MatrixProduct, run: PlannedRun, forwards: float, gradient: bool) -> float:
    """Bytes moved to quantise the weights of a product for a clip's forwards, and for the gradient of its input."""
    return op.layers * op.k * op.n * (forwards * _FORWARD + gradient * _BACKWARD) if in_fp8(op, run) else 0.0


def copies(run: PlannedRun) -> float:
    """P that are alive at the peak of a layer beside what a layer without fp8 products has."""
    if not run.job.fp8:
        return 0.0
    return _COPIES_EXCHANGED if run.layout.ulysses > 1 else _COPIES


def kept(run: PlannedRun) -> float:
    """P that a block keeps more for its backward where nothing is recomputed."""
    video = run.job.model.video
    return _KEPT_INPUTS + video.ffn_dim / video.dim if run.job.fp8 else 0.0
