"""The table: every operator that MOVA needs, with its implementations in order of preference. Data alone."""

from dataclasses import replace
from typing import Any

from mova_engine.ops.attention_table import SLACK, attention_operators
from mova_engine.ops.declarations import Implementation, Operator, Passes

_TORCH = "mova_engine.ops.torch_impl"
_LINEAR = "mova_engine.ops.linear_impl"
_FP8 = "mova_engine.ops.fp8_impl"
_FP8_TRAINED = "mova_engine.ops.fp8_trained_impl"
_QUANTISED = "mova_engine.ops.quantised_impl"
_QUANTISED_REFERENCE = "mova_engine.ops.quantised_reference"
_APEX = "mova_engine.ops.apex_impl"
_COMPILED = "mova_engine.ops.compiled"
_REFERENCE = "mova_engine.ops.reference"
_OPTIMIZER = "mova_engine.ops.optimizer_impl"
_ADAMW_8BIT = "mova_engine.ops.adamw_8bit"
_NEWTON_SCHULZ = "mova_engine.ops.newton_schulz"
# Ascend's products that triton-ascend and MindIE-SD serve.
_ATLAS = ("910a2", "910a3")
# GPUs convert to fp8 from Ada on.
_FROM_ADA = ((8, 9), None)


def _native(name: str) -> Implementation:
    """The C++ kernel of an operator on rows, where the library was built."""
    return Implementation(
        "native",
        f"mova_kernels.cpu.ops:{name}",
        ("cpu",),
        needs=("cpu-kernels",),
        check="mova_engine.ops.native_check:cpu",
        dtypes=("float32", "bfloat16"),
    )


def _triton(name: str, folder: str | None = None) -> Implementation:
    """The Triton kernel of an operator, forward and backward."""
    return Implementation(
        "triton",
        f"mova_kernels.{folder or name}.triton:{name}",
        ("cuda", "npu"),
        needs=("triton",),
        products=_ATLAS,
        check="mova_engine.ops.triton_check:compiles_for",
    )


def _compile(name: str) -> Implementation:
    """torch.compile of the reference: to be compared with, at the price of seconds for each kind of input."""
    return Implementation(
        "compile",
        f"{_COMPILED}:{name}",
        ("cpu", "cuda"),
        check=f"{_COMPILED}:check",
        automatic=False,
        trial=f"{_COMPILED}:compiles_here",
    )


def _apex(target: str, *needs: str, **fields: Any) -> Implementation:
    """NVIDIA apex, known by its compiled modules: another package has its name."""
    return Implementation("apex", f"{_APEX}:{target}", ("cuda",), needs=("amp_C", *needs), **fields)


def _apex_norm(name: str) -> Implementation:
    return _apex(name, "fused_layer_norm_cuda", f"apex.normalization.fused_layer_norm:fused_{name}_affine")


def _cuda_cpp(name: str) -> Implementation:
    """The CUDA C++ kernel of an operator, where the library was built."""
    target, check = f"mova_kernels.cuda.ops:{name}", "mova_engine.ops.native_check:cuda"
    return Implementation("cuda-cpp", target, ("cuda",), needs=("cuda-kernels",), check=check)


# What an operator calls of torch_npu, or of PyTorch where that has the device's own kernel.
_NPU_CALLS = {
    "rms_norm": ("npu_rms_norm",),
    "rms_norm_rope": ("npu_rms_norm", "mul", "npu_rotary_mul", "npu_rms_norm_backward"),
    "layer_norm": ("native_layer_norm",),
    "norm_modulate": ("native_layer_norm",),
    "gate_residual": ("mul", "add", "npu_rms_norm_backward"),
    "gate_residual_norm": ("mul", "add", "native_layer_norm", "npu_add_layer_norm"),
    "gate_residual_norm_modulate": ("mul", "add", "native_layer_norm", "npu_add_layer_norm"),
    "bias_gelu": ("npu_gelu", "npu_gelu_backward"),
    "linear_gelu": ("npu_gelu",),
    "int8_linear": ("npu_dynamic_quant", "npu_quant_matmul"),
    "attention": ("npu_fusion_attention",),
    "attention_lse": ("npu_fusion_attention",),
    "attention_backward": ("npu_fusion_attention_grad",),
    "merge_lse": ("npu_attention_update",),
    "fused_adamw": ("NpuFusedAdamW",),
}


# Passes of what is composed of torch_npu's operators, in bfloat16, counted on the emulated NPU: they compute in float32
# and cast. What is not here is one kernel, and makes as few as can be. A product or sum of bfloat16 and float32 is one
# kernel of CANN, without a cast before it; its result is float32.
_NPU_PASSES = {
    "rms_norm_rope": Passes(12, 19),
    "gate_residual": Passes(11, 3, ungated=(3, 0)),
    "gate_residual_norm": Passes(13, 9, ungated=(4, 6)),
    "gate_residual_norm_modulate": Passes(13, 9, ungated=(4, 6)),
    "bias_gelu": Passes(10, 17),
}
# The same of an attribute `of_sum`, which is one kernel.
_NPU_OF_SUM = {"bias_gelu": Passes(2, 3)}
# Passes of the references in bfloat16, counted on a CPU; those of the last by reading.
_COMPOSED = {
    "rms_norm_rope": Passes(38, 84),
    "rms_norm": Passes(20, 56),
    "norm_modulate": Passes(18, 26),
    "layer_norm": Passes(18, 26),
    "gate_residual": Passes(22, 21, ungated=(15, 9)),
    "gate_residual_norm": Passes(40, 50, ungated=(33, 38)),
    "gate_residual_norm_modulate": Passes(40, 50, ungated=(33, 38)),
    "bias_gelu": Passes(17, 14),
    "linear_gelu": Passes(2, 3),
    "lora_linear": Passes(5, 5),  # the adapter's product scaled, then added
}
# Reads and writes of a fused kernel: the backward reads what the derivative needs and each cotangent once and writes
# each gradient once; where a gradient is the cotangent itself, as the residual's is, it needs no pass.
_LEAST = {
    "rms_norm": Passes(2, 3),
    "rms_norm_rope": Passes(2, 3),
    "norm_modulate": Passes(2, 3),
    "layer_norm": Passes(2, 3),
    "gate_residual": Passes(3, 3, ungated=(3, 0)),  # dy = gate dout; y for the gate's gradient
    "gate_residual_norm": Passes(4, 6, ungated=(4, 4)),  # without a gate dx and dy are one tensor
    "gate_residual_norm_modulate": Passes(4, 6, ungated=(4, 4)),
    "bias_gelu": Passes(2, 3),
    "linear_gelu": Passes(2, 3),
    # The adapter's product reads and writes the layer's output once more, its gradient the input's.
    "lora_linear": Passes(2, 2),
}


def _npu(module: str, name: str) -> Implementation:
    """The operator by torch_npu's kernels."""
    return Implementation(
        "npu",
        f"mova_kernels.npu.{module}:{name}",
        ("npu",),
        ("torch_npu",),
        check="mova_engine.ops.native_check:npu",
        calls=_NPU_CALLS[name],
        passes=_NPU_PASSES.get(name),
        of_sum=_NPU_OF_SUM.get(name),
    )


# Ascend's inference library, without gradients, where it is installed. Passes counted like torch_npu's.
_MINDIE = {
    name: Implementation(
        "mindie",
        f"mova_kernels.npu.mindie:{name}",
        ("npu",),
        ("mindiesd",),
        products=_ATLAS,
        check="mova_engine.ops.native_check:mindie",
        differentiable=False,
        calls=("mindiesd.adaln",),
        passes=passes,
    )
    for name, passes in {
        "norm_modulate": Passes(10, 0),
        "gate_residual_norm_modulate": Passes(21, 0, ungated=(13, 0)),
    }.items()
}
# On Ascend one fused kernel of torch_npu with a gradient comes first where there is one. The other operators are made
# there of several, partly in float32: Triton's kernels, where they compile, pass over memory less. MindIE-SD's norm is
# given float32 and comes last.
_FUSED_ON_NPU = ("rms_norm", "layer_norm", "norm_modulate")


def _operator(name: str, *implementations: Implementation, differentiable: str = "", **fields: Any) -> Operator:
    """An operator whose reference and example are under its name."""
    formula = fields.pop("formula", f"{_REFERENCE}:{name}_reference")
    return Operator(
        name,
        formula,
        f"mova_engine.ops.examples:{name}",
        SLACK,
        implementations,
        tuple(differentiable.split()),
        least=_LEAST.get(name),
        composed=_COMPOSED.get(name),
        **fields,
    )


def _rows(name: str, differentiable: str, *implementations: Implementation) -> Operator:
    """An operator on rows of activations."""
    inference = (_MINDIE[name],) if name in _MINDIE else ()
    npu, triton = _npu("norms", name), _triton(name)
    ascend = (npu, triton) if name in _FUSED_ON_NPU else (triton, npu)
    return _operator(
        name, _native(name), *ascend, *inference, *implementations, _compile(name), differentiable=differentiable
    )


# Beside the product nothing passes over activations; weights are not counted.
_NONE = Passes(0, 0)


def _quantised(name: str, *implementations: Implementation, passes: Passes = _NONE, **fields: Any) -> Operator:
    """A linear layer whose frozen weight is quantised. On any device the weight is dequantised for each product."""
    target = f"{_QUANTISED}:{name.removesuffix('_linear')}_dequantise"
    dequantise = Implementation("dequantise", target, passes=passes)
    return _operator(
        name,
        *implementations,
        dequantise,
        _compile(name),
        differentiable="x bias lora_a lora_b",
        formula=f"{_QUANTISED_REFERENCE}:{name}_reference",
        **fields,
    )


OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        _rows("rms_norm_rope", "x weight", _cuda_cpp("rms_norm_rope")),
        _rows(
            "rms_norm",
            "x weight",
            Implementation("torch", f"{_TORCH}:rms_norm", ("cpu", "cuda")),
            _apex_norm("rms_norm"),
        ),
        _rows("norm_modulate", "x shift scale", _cuda_cpp("norm_modulate")),
        _rows(
            "layer_norm",
            "x weight bias",
            # Not on the CPU: there torch adds up a bfloat16 bias's gradient in bfloat16.
            Implementation("torch", f"{_TORCH}:layer_norm", ("cuda",)),
            _apex_norm("layer_norm"),
        ),
        _rows("gate_residual", "x y gate"),
        _rows("gate_residual_norm", "x y gate weight bias"),
        _rows("gate_residual_norm_modulate", "x y gate shift scale"),
        _rows("bias_gelu", "x bias"),
        _operator(
            "linear_gelu",
            # Without a gradient, but where none is needed nothing is as short.
            Implementation(
                "epilogue", f"{_LINEAR}:epilogue_gelu", ("cuda",), differentiable=False, passes=Passes(0, 0)
            ),
            _native("linear_gelu"),
            _npu("linear", "linear_gelu"),
            _triton("linear_gelu", "bias_gelu"),
            Implementation(
                "onednn",
                f"{_LINEAR}:onednn_gelu",
                ("cpu",),
                check=f"{_LINEAR}:onednn_check",
                differentiable=False,
                dtypes=("float32", "bfloat16"),
                passes=Passes(0, 0),
            ),
            _compile("linear_gelu"),
            differentiable="x weight bias",
            rounding=f"{_REFERENCE}:LINEAR_GELU_ROUNDED",
        ),
        _operator(
            "lora_linear",
            Implementation("accumulate", f"{_LINEAR}:accumulating_lora"),
            Implementation("augmented", f"{_LINEAR}:augmented_lora"),
            _compile("lora_linear"),
            differentiable="x weight bias lora_a lora_b",
        ),
        _operator(
            "quantize_rows",
            # The 910B series has no fp8.
            replace(_triton("quantize_rows"), devices=("cuda",), generations=_FROM_ADA),
            _compile("quantize_rows"),
        ),
        _operator(
            "fp8_linear",
            Implementation(
                "scaled-mm-triton",
                f"{_FP8}:scaled_mm_triton",
                ("cuda",),
                needs=("triton",),
                generations=_FROM_ADA,
                check=f"{_FP8}:scaled_mm_check",
                dtypes=("bfloat16",),
                passes=Passes(1.5, 1.5),  # by reading: rows are read, and written in half the bytes
            ),
            Implementation(
                "scaled-mm",
                f"{_FP8}:scaled_mm",
                ("cpu", "cuda"),
                generations=_FROM_ADA,
                check=f"{_FP8}:scaled_mm_check",
                dtypes=("bfloat16",),
                passes=Passes(15.5, 19.5),  # counted of `quantize_rows_reference`
            ),
            differentiable="x bias lora_a lora_b",
            called_in=("bfloat16",),
        ),
        _operator(
            "fp8_trained_linear",
            Implementation(
                "scaled-mm-triton",
                f"{_FP8_TRAINED}:scaled_mm_triton",
                ("cuda",),
                needs=("triton",),
                generations=_FROM_ADA,
                check=f"{_FP8}:scaled_mm_check",
                dtypes=("bfloat16",),
                # By reading, of a square layer: rows of x; of g rows and columns, of x columns, these copied first.
                passes=Passes(1.5, 8.5),
            ),
            Implementation(
                "scaled-mm",
                f"{_FP8_TRAINED}:scaled_mm",
                ("cuda",),
                generations=_FROM_ADA,
                check=f"{_FP8}:scaled_mm_check",
                dtypes=("bfloat16",),
                passes=Passes(15.5, 50.5),  # the same by `quantize_rows_reference`, which is counted
            ),
            # A CPU has no fp8 products: torch emulates them, which shows what the code for GPUs computes.
            Implementation(
                "scaled-mm-cpu",
                f"{_FP8_TRAINED}:scaled_mm",
                ("cpu",),
                check=f"{_FP8}:scaled_mm_check",
                dtypes=("bfloat16",),
                automatic=False,
                passes=Passes(15.5, 50.5),
            ),
            differentiable="x weight bias",
            formula=f"{_FP8_TRAINED}:fp8_trained_linear_reference",
        ),
        _quantised("nf4_linear", replace(_native("nf4_linear"), target=f"{_QUANTISED}:nf4_native", passes=_NONE)),
        _quantised(
            "int8_linear",
            Implementation(
                "int-mm",
                f"{_QUANTISED}:int8_int_mm",
                ("cpu", "cuda"),
                check=f"{_QUANTISED}:int_mm_check",
                calls=("_int_mm",),
                # Counted of a square layer: rows are quantised, and the sums, in 32 bits, scaled.
                passes=Passes(31.5, 0),
            ),
            replace(
                _npu("linear", "int8_linear"),
                target=f"{_QUANTISED}:int8_npu",
                dtypes=("bfloat16", "float16"),
                products=_ATLAS,
                passes=Passes(1.5, 0),  # by reading: rows are read, and written in half the bytes
            ),
            passes=Passes(25, 0),  # the same of rows that are quantised and dequantised
            rounding=f"{_QUANTISED_REFERENCE}:INT8_LINEAR_ROUNDED",
        ),
        _quantised("gguf_linear"),
        *attention_operators(
            {name: _npu("attention", name) for name in ("attention", "attention_lse", "attention_backward")}
        ),
        _operator("merge_lse", _npu("attention", "merge_lse"), _triton("merge_lse"), _compile("merge_lse")),
        _operator(
            "adamw",
            # Masters and moments are float32: in half precision nothing is promised.
            Implementation("fused", f"{_OPTIMIZER}:adamw_fused", ("cpu", "cuda", "npu"), dtypes=("float32",)),
            replace(_npu("optim", "fused_adamw"), name="npu-fused", dtypes=("float32",)),
            Implementation("foreach", f"{_OPTIMIZER}:adamw_foreach", dtypes=("float32",)),
            _apex("ApexAdamW", "apex.multi_tensor_apply:multi_tensor_applier", dtypes=("float32",)),
            formula=f"{_OPTIMIZER}:AdamWReference",
            kind="optimizer",
            called_in=("float32",),
        ),
        _operator(
            "adamw_8bit",
            Implementation("rows", f"{_ADAMW_8BIT}:AdamW8bit", dtypes=("float32",)),
            formula=f"{_ADAMW_8BIT}:AdamW8bitReference",
            kind="optimizer",
            called_in=("float32",),
        ),
        _operator(
            "newton_schulz",
            Implementation("batched", f"{_NEWTON_SCHULZ}:newton_schulz_batched", dtypes=("float32", "bfloat16")),
            formula=f"{_NEWTON_SCHULZ}:newton_schulz_reference",
            rounding=f"{_NEWTON_SCHULZ}:NEWTON_SCHULZ_ROUNDED",
        ),
        _operator(
            "clip_grad_norm",
            Implementation("foreach", f"{_OPTIMIZER}:clip_grad_norm_foreach"),
            _apex("clip_grad_norm", "apex.multi_tensor_apply:multi_tensor_applier", dtypes=("float32",)),
            formula=f"{_OPTIMIZER}:clip_grad_norm_reference",
            kind="inplace",
            called_in=("float32",),
        ),
    )
}
