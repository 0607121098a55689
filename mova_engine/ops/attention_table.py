"""The declarations of attention: three operators, one family of kernels, and what is known of their speed.

Sources of the rates. Hopper, head dim 128, 16k tokens, bf16, as published with FlashAttention-3 (Shah et al., 2024):
forward 648, cuDNN 595, FlashAttention-2 370 TFLOP/s, backward 561, 516, 322, of a peak of 989.4. Ampere: 70% and 61% as
published for FlashAttention-2. Blackwell: up to 1,605 of 2,250 TFLOP/s forward and 1.3 times cuDNN's, as published with
FlashAttention-4 (2026). Ascend 910A2: 150.8 of 376 TFLOP/s forward as published for torch_npu at 32k tokens. All else
is assumed and said to be.
"""

from dataclasses import replace
from typing import Any

from mova_engine.ops.declarations import Generations, Implementation, Operator, Order, Rate

_ATTENTION = "mova_engine.ops.attention_impl"
_FLASH = "mova_engine.ops.flash_impl"
_REFERENCE = "mova_engine.ops.reference"
_HALF = ("bfloat16", "float16")
# Allowed error of an operator: this multiple of the noise of the reference in the same dtype, see `testing.noise`.
SLACK = 1.25

AMPERE: Generations = ((8, 0), (8, 8))
ADA: Generations = ((8, 9), (8, 9))
HOPPER: Generations = ((9, 0), (9, 9))
BLACKWELL: Generations = ((10, 0), (11, 9))
_FROM_AMPERE: Generations = ((8, 0), None)
# In float32, where none of these serves, and beneath the Ampere generation: assumed.
_SLOW = Rate(0.25, 0.2)
# FlashAttention-2's algorithm, by its package and in torch. Ada, and on Blackwell: assumed.
_FLASH2_RATES = (
    Rate(220 / 312, 190 / 312, AMPERE),
    Rate(140 / 165.2, 115 / 165.2, ADA),
    Rate(370 / 989.4, 322 / 989.4, HOPPER),
    _SLOW,
)
# On Ampere and Ada assumed at nine tenths of FlashAttention-2; Blackwell's backward assumed.
_CUDNN_RATES = (
    Rate(0.9 * 220 / 312, 0.9 * 190 / 312, AMPERE),
    Rate(0.9 * 140 / 165.2, 0.9 * 115 / 165.2, ADA),
    Rate(595 / 989.4, 516 / 989.4, HOPPER),
    Rate(1605 / 2250 / 1.3, 0.45, BLACKWELL),
    _SLOW,
)
_FLASH3_RATES = (Rate(648 / 989.4, 561 / 989.4, HOPPER),)
# Blackwell's backward, and Hopper, of which nothing was published: assumed.
_FLASH4_RATES = (Rate(1605 / 2250, 0.55, BLACKWELL), Rate(0.3, 0.3, HOPPER))
_RATES = {2: _FLASH2_RATES, 3: _FLASH3_RATES, 4: _FLASH4_RATES}
# The fused operator of torch_npu; backward assumed.
_NPU_RATES = (Rate(150.8 / 376, 130 / 376),)
# Assumed; `sdpa` on a GPU is what is left for float32.
_CPU_RATES = (Rate(0.6, 0.6),)
_SDPA_RATES = (Rate(_SLOW.forward, _SLOW.backward, ((0, 0), None)), *_CPU_RATES)


def _orders(cudnn: str, flash: str) -> tuple[Order, ...]:
    """The fastest first, by the rates; cudnn, flash: torch's kernels by their names in an operator."""
    # torch's flash kernel is FlashAttention-2 as of torch's release: the package comes before it.
    second = ("flash-attn-2", flash)
    return (
        Order(((8, 0), (8, 9)), (*second, cudnn)),
        Order(HOPPER, ("flash-attn-3", cudnn, *second, "flash-attn-4")),
        Order(BLACKWELL, ("flash-attn-4", cudnn, *second)),
        # Of the consumer's Blackwell no comparison is known: as on the generation before it.
        Order(((12, 0), None), (*second, cudnn)),
    )


def _flash_attn(version: int, form: str = "") -> Implementation:
    """A flash-attn package; `form` is "", "_lse" or "_backward".

    The two forms are chosen together: each needs the entries of both.
    """
    module = {2: "flash_attn.flash_attn_interface", 3: "flash_attn_interface", 4: "flash_attn.cute.interface"}[version]
    backward = {2: "_flash_attn_backward", 3: "_flash_attn_backward", 4: "_flash_attn_bwd"}[version]
    needs = ("flash_attn_func", backward) if form else ("flash_attn_func",)
    return Implementation(
        f"flash-attn-{version}",
        f"{_FLASH}:flash{version}{form}",
        ("cuda",),
        needs=tuple(f"{module}:{entry}" for entry in needs),
        # Version 3 is for Hopper; 4 knows no consumer's Blackwell.
        generations={2: _FROM_AMPERE, 3: HOPPER, 4: ((9, 0), (11, 9))}[version],
        dtypes=_HALF,
        calls=(backward if form == "_backward" else "flash_attn_func",),
        rates=_RATES[version],
    )


def _flash_attns(form: str = "") -> tuple[Implementation, ...]:
    return tuple(_flash_attn(version, form) for version in (3, 4, 2))


def _cuda_attention(kernel: str, form: str) -> Implementation:
    """torch's kernels with a log-sum-exp: `form` is lse or backward."""
    efficient = kernel == "efficient"
    return Implementation(
        kernel.replace("_", "-"),
        f"{_ATTENTION}:{kernel}_{form}",
        ("cuda",),
        generations=None if efficient else _FROM_AMPERE,
        # Builds of torch differ in these two; flash is in all.
        check=None if kernel == "flash_cuda" else f"{_ATTENTION}:{kernel}_check",
        dtypes=("float32", *_HALF) if efficient else _HALF,
        calls=(f"_scaled_dot_product_{kernel.removesuffix('_cuda')}_attention{'_backward' * (form == 'backward')}",),
        # torch has cuDNN's backward add in any order; its other two follow `torch.use_deterministic_algorithms`.
        deterministic=kernel != "cudnn",
        rates={"flash_cuda": _FLASH2_RATES, "cudnn": _CUDNN_RATES, "efficient": (_SLOW,)}[kernel],
    )


def _sdpa(kernel: str, devices: tuple[str, ...], rates: tuple[Rate, ...], **fields: Any) -> Implementation:
    """torch's scaled-dot-product attention by one of its kernels."""
    target = f"{_ATTENTION}:sdpa_{kernel}"
    return Implementation(
        f"sdpa-{kernel}", target, devices, check=f"{_ATTENTION}:{kernel}_check", rates=rates, **fields
    )


_LSE_KERNELS = ("flash_cuda", "cudnn", "efficient")


def attention_operators(npu: dict[str, Implementation]) -> tuple[Operator, ...]:
    """npu: torch_npu's implementation of each operator, by its name."""
    npu = {name: replace(entry, rates=_NPU_RATES) for name, entry in npu.items()}
    torchs = (
        _sdpa("cudnn", ("cuda",), _CUDNN_RATES, generations=_FROM_AMPERE, dtypes=_HALF, deterministic=False),
        _sdpa("flash", ("cpu",), _CPU_RATES),
        # On a GPU it takes half precision alone.
        replace(
            _sdpa("flash", ("cuda",), _FLASH2_RATES, generations=_FROM_AMPERE, dtypes=_HALF), name="sdpa-flash-cuda"
        ),
        _sdpa("efficient", ("cuda",), (_SLOW,)),
    )
    attention = (
        # Which kernel it takes is torch's choice; where it is bound because the model computes in float32, a slow one.
        Implementation("sdpa", f"{_ATTENTION}:sdpa", ("cpu", "cuda"), rates=_SDPA_RATES),
        *_flash_attns(),
        *torchs,
        Implementation("split-keys", "mova_engine.ops.split_keys:cpu", ("cpu",), rates=_CPU_RATES),
        Implementation(
            "split-keys-cuda",
            "mova_engine.ops.split_keys:cuda",
            ("cuda",),
            generations=_FROM_AMPERE,
            dtypes=_HALF,
            rates=_FLASH2_RATES,
        ),
        Implementation("sdpa-math", f"{_ATTENTION}:sdpa_math", ("cpu", "cuda")),
        npu["attention"],
    )
    lse, backward = (
        (
            Implementation("flash", f"{_ATTENTION}:flash_cpu_{form}", ("cpu",), rates=_CPU_RATES),
            *(_cuda_attention(kernel, form) for kernel in _LSE_KERNELS),
            *_flash_attns(f"_{form}"),
            npu[f"attention_{form}"],
        )
        for form in ("lse", "backward")
    )
    return (
        _operator("attention", attention, _orders("sdpa-cudnn", "sdpa-flash-cuda"), ("q", "k", "v")),
        _operator("attention_lse", lse, _orders("cudnn", "flash-cuda")),
        _operator("attention_backward", backward, _orders("cudnn", "flash-cuda")),
    )


def _operator(
    name: str,
    implementations: tuple[Implementation, ...],
    orders: tuple[Order, ...],
    differentiable: tuple[str, ...] = (),
) -> Operator:
    return Operator(
        name,
        f"{_REFERENCE}:{name}_reference",
        f"mova_engine.ops.examples:{name}",
        SLACK,
        implementations,
        differentiable,
        rounding=f"{_REFERENCE}:{name.upper()}_ROUNDED",
        orders=orders,
    )
