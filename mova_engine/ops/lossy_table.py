"""The declarations of attention in 8 bits and of sparse attention: approximations, for sampling alone. Data alone.

They are judged against exact attention on the tensors of the run itself (`lossy.deviation`), not by the noise of a
dtype, and none is ever chosen by default.

The slack: rounding q, k and v to fp8 (e4m3), the coarsest of the formats, moves attention over independent normal
values by 0.05 of its size; int8 for q and k by 0.013.
"""

from typing import Any

from mova_engine.ops.attention_table import HOPPER
from mova_engine.ops.declarations import Implementation, Operator

_LOSSY = "mova_engine.ops.lossy"
_HALF = ("bfloat16", "float16")
# The most that the worst head's output may be off, root mean square over that of the exact one.
LOSSY_SLACK = 0.08


def _lossy(name: str, target: str, *devices: str, **fields: Any) -> Implementation:
    return Implementation(name, target, devices, differentiable=False, automatic=False, **fields)


LOSSY: dict[str, Operator] = {
    "lossy_attention": Operator(
        "lossy_attention",
        "mova_engine.ops.reference:attention_reference",
        "mova_engine.ops.examples:attention",
        LOSSY_SLACK,
        (
            _lossy(
                "sage",
                f"{_LOSSY}:sage",
                "cuda",
                needs=("sageattention:sageattn",),
                generations=((8, 0), None),
                dtypes=_HALF,
                calls=("sageattn",),
            ),
            _lossy(
                "flash-attn-3-fp8",
                f"{_LOSSY}:flash3_fp8",
                "cuda",
                needs=("flash_attn_interface:flash_attn_func",),
                generations=HOPPER,
                dtypes=_HALF,
                calls=("flash_attn_func",),
            ),
            _lossy(
                "rainfusion",
                f"{_LOSSY}:rainfusion",
                "npu",
                needs=("mindiesd",),
                products=("910a2", "910a3"),
                check="mova_engine.ops.native_check:mindie",
                dtypes=_HALF,
                calls=("sparse_attention",),
            ),
            _lossy("int8", f"{_LOSSY}:int8"),
        ),
    )
}
