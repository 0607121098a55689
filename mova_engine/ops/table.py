"""The table: every operator that MOVA needs, with its implementations in order of preference."""

from dataclasses import replace

from mova_engine.ops import cases, optim, reference
from mova_engine.ops.registry import Implementation, Operator

_HERE = "mova_engine.ops.torch_impl"
# Allowed error: this multiple of what the reference itself makes in the same dtype against float64.
_SLACK = 2.0
_HALF = ("bfloat16", "float16")


def _native(name: str) -> Implementation:
    """The C++ kernel of an operator on rows, where the library was built."""
    return Implementation(
        "native",
        f"mova_kernels.cpu.ops:{name}",
        ("cpu",),
        check="mova_engine.ops.native_check:cpu",
        dtypes=("float32", "bfloat16"),
    )


def _triton(name: str) -> Implementation:
    """The Triton kernel of an operator, forward and backward."""
    return Implementation("triton", f"mova_kernels.{name}.triton:{name}", ("cuda",), needs=("triton",))


def _npu(module: str, name: str) -> Implementation:
    """The operator by torch_npu's fused kernels."""
    target, needs = f"mova_kernels.npu.{module}:{name}", ("torch_npu",)
    return Implementation("npu", target, ("npu",), needs, check="mova_engine.ops.native_check:npu")


# Ascend's inference library, without gradients, where it is installed.
_MINDIE = {
    name: Implementation(
        "mindie",
        f"mova_kernels.npu.mindie:{name}",
        ("npu",),
        ("mindiesd",),
        check="mova_engine.ops.native_check:mindie",
        differentiable=False,
    )
    for name in ("norm_modulate", "gate_residual_norm_modulate")
}


def _rows(
    name: str, build: cases.Build, differentiable: str, *implementations: Implementation, extra: tuple = ()
) -> Operator:
    inference = (_MINDIE[name],) if name in _MINDIE else ()
    return Operator(
        name,
        getattr(reference, f"{name}_reference"),
        cases.row_cases(build) + extra,
        _SLACK,
        (_native(name), _triton(name), *inference, _npu("norms", name), *implementations),
        tuple(differentiable.split()),
    )


def _renamed(build: cases.Build) -> tuple:
    """The first cases once more without a gate."""
    return tuple(replace(case, name=f"{case.name}-no-gate") for case in cases.row_cases(cases.no_gate(build))[:3])


_half_rope = tuple(
    replace(case, name=f"{case.name}-half")
    for case in cases.row_cases(cases.rms_norm_rope(interleaved=False))
)

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        _rows("rms_norm_rope", cases.rms_norm_rope(interleaved=True), "x weight", extra=_half_rope),
        _rows("rms_norm", cases.rms_norm, "x weight", Implementation("torch", f"{_HERE}:rms_norm", ("cpu", "cuda"))),
        _rows("norm_modulate", cases.norm_modulate, "x shift scale"),
        _rows("layer_norm", cases.layer_norm, "x weight bias"),
        _rows("gate_residual", cases.gate_residual, "x y gate", extra=_renamed(cases.gate_residual)),
        _rows(
            "gate_residual_norm",
            cases.gate_residual_norm,
            "x y gate weight bias",
            extra=_renamed(cases.gate_residual_norm),
        ),
        _rows(
            "gate_residual_norm_modulate",
            cases.gate_residual_norm_modulate,
            "x y gate shift scale",
            extra=_renamed(cases.gate_residual_norm_modulate),
        ),
        Operator(
            "linear_gelu",
            reference.linear_gelu_reference,
            cases.gemm_cases(),
            _SLACK,
            (_npu("linear", "linear_gelu"),),
            ("x", "weight", "bias"),
        ),
        Operator(
            "lora_linear",
            reference.lora_linear_reference,
            cases.gemm_cases(lora=True),
            _SLACK,
            (),
            ("x", "weight", "bias", "lora_a", "lora_b"),
        ),
        Operator(
            "attention",
            reference.attention_reference,
            cases.attention_cases(),
            _SLACK,
            (Implementation("sdpa", f"{_HERE}:sdpa", ("cpu", "cuda")), _npu("attention", "attention")),
            ("q", "k", "v"),
        ),
        Operator(
            "attention_lse",
            reference.attention_lse_reference,
            cases.attention_cases(empty=True),
            _SLACK,
            (
                Implementation("flash", f"{_HERE}:flash_cpu_lse", ("cpu",)),
                Implementation(
                    "flash-cuda", f"{_HERE}:flash_cuda_lse", ("cuda",), check=f"{_HERE}:flash_cuda_check", dtypes=_HALF
                ),
                _npu("attention", "attention_lse"),
            ),
        ),
        Operator(
            "attention_backward",
            reference.attention_backward_reference,
            cases.attention_cases(backward=True, empty=True),
            _SLACK,
            (
                Implementation("flash", f"{_HERE}:flash_cpu_backward", ("cpu",)),
                Implementation(
                    "flash-cuda",
                    f"{_HERE}:flash_cuda_backward",
                    ("cuda",),
                    check=f"{_HERE}:flash_cuda_check",
                    dtypes=_HALF,
                ),
                _npu("attention", "attention_backward"),
            ),
        ),
        Operator(
            "merge_lse",
            reference.merge_lse_reference,
            cases.MERGE_CASES,
            _SLACK,
            (_triton("merge_lse"), _npu("attention", "merge_lse")),
        ),
        Operator(
            "adamw",
            optim.AdamWReference,
            cases.ADAMW_CASES,
            _SLACK,
            (
                Implementation("fused", "mova_engine.ops.optim:adamw_fused", ("cpu", "cuda", "npu")),
                replace(_npu("optim", "fused_adamw"), name="npu-fused", dtypes=("float32", "float16")),
                Implementation("foreach", "mova_engine.ops.optim:adamw_foreach"),
            ),
            kind="optimizer",
        ),
        Operator(
            "clip_grad_norm",
            optim.clip_grad_norm_reference,
            cases.CLIP_CASES,
            _SLACK,
            (Implementation("foreach", "mova_engine.ops.optim:clip_grad_norm_foreach"),),
            kind="inplace",
        ),
    )
}
