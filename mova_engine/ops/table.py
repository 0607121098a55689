"""The table: every operator that MOVA needs, with its implementations in order of preference."""

from dataclasses import replace

from mova_engine.ops import inputs, optimizer_impl, reference
from mova_engine.ops.declarations import Implementation, Operator

_TORCH = "mova_engine.ops.torch_impl"
_LINEAR = "mova_engine.ops.linear_impl"
_FP8 = "mova_engine.ops.fp8_impl"
_ATTENTION = "mova_engine.ops.attention_impl"
_FLASH = "mova_engine.ops.flash_impl"
_APEX = "mova_engine.ops.apex_impl"
_COMPILED = "mova_engine.ops.compiled"
# Allowed error: this multiple of the noise of the reference in the same dtype, see noise.py.
_SLACK = 1.25
_HALF = ("bfloat16", "float16")
# Sizes of the examples: (batch, tokens, channels, head dim), (batch, tokens, in, out), (batch, q, k, heads, head dim).
# From 64 queries and keys on torch's attention on a CPU packs half precision for AMX, which fails where
# ATEN_CPU_CAPABILITY limits torch alone.
_EXAMPLE_ROWS, _EXAMPLE_GEMM, _EXAMPLE_ATTENTION = (2, 81, 96, 48), (2, 69, 96, 288), (1, 97, 97, 2, 128)


def _native(name: str) -> Implementation:
    """The C++ kernel of an operator on rows, where the library was built."""
    return Implementation(
        "native",
        f"mova_kernels.cpu.ops:{name}",
        ("cpu",),
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


def _apex(target: str, *needs: str, **fields) -> Implementation:
    """NVIDIA apex, known by its compiled modules: another package has its name."""
    return Implementation("apex", f"{_APEX}:{target}", ("cuda",), needs=("amp_C", *needs), **fields)


def _apex_norm(name: str) -> Implementation:
    return _apex(name, "fused_layer_norm_cuda", f"apex.normalization.fused_layer_norm:fused_{name}_affine")


def _cuda_attention(kernel: str, form: str) -> Implementation:
    """torch's kernels with a log-sum-exp: `form` is lse or backward."""
    name, dtypes = ("flash-cuda", _HALF) if kernel == "flash_cuda" else (kernel, _HALF)
    dtypes = ("float32", *_HALF) if kernel == "efficient" else dtypes
    call = f"_scaled_dot_product_{kernel.removesuffix('_cuda')}_attention{'_backward' if form == 'backward' else ''}"
    return Implementation(
        name,
        f"{_ATTENTION}:{kernel}_{form}",
        ("cuda",),
        check=f"{_ATTENTION}:{kernel}_check",
        dtypes=dtypes,
        calls=(call,),
    )


def _flash_attn(version: int, form: str = "") -> Implementation:
    """A flash-attn package; `form` is "", "_lse" or "_backward"."""
    module = {2: "flash_attn.flash_attn_interface", 3: "flash_attn_interface", 4: "flash_attn.cute.interface"}[version]
    entry = {2: "_flash_attn_backward", 3: "_flash_attn_backward", 4: "_flash_attn_bwd"}[version]
    call = entry if form == "_backward" else "flash_attn_func"
    return Implementation(
        f"flash-attn-{version}",
        f"{_FLASH}:flash{version}{form}",
        ("cuda",),
        needs=(f"{module}:{call}",),
        check=f"{_FLASH}:flash{version}_check",
        dtypes=_HALF,
        calls=(call,),
    )


def _cuda_cpp(name: str) -> Implementation:
    """The CUDA C++ kernel of an operator, where the library was built."""
    check = "mova_engine.ops.native_check:cuda"
    return Implementation("cuda-cpp", f"mova_kernels.cuda.ops:{name}", ("cuda",), check=check)


# What an operator calls of torch_npu, or of PyTorch where that has the device's own kernel.
_NPU_CALLS = {
    "rms_norm": ("npu_rms_norm",),
    "rms_norm_rope": ("npu_rms_norm", "npu_rms_norm_backward", "npu_rotary_mul"),
    "layer_norm": ("native_layer_norm",),
    "norm_modulate": ("native_layer_norm",),
    "gate_residual": ("addcmul",),
    "gate_residual_norm": ("addcmul", "native_layer_norm"),
    "gate_residual_norm_modulate": ("addcmul", "native_layer_norm"),
    "bias_gelu": ("npu_gelu",),
    "linear_gelu": ("npu_gelu",),
    "attention": ("npu_fusion_attention",),
    "attention_lse": ("npu_fusion_attention",),
    "attention_backward": ("npu_fusion_attention_grad",),
    "merge_lse": ("npu_attention_update",),
    "fused_adamw": ("NpuFusedAdamW",),
}


def _npu(module: str, name: str) -> Implementation:
    """The operator by torch_npu's fused kernels."""
    target, needs, check = f"mova_kernels.npu.{module}:{name}", ("torch_npu",), "mova_engine.ops.native_check:npu"
    return Implementation("npu", target, ("npu",), needs, check, calls=_NPU_CALLS[name])


# Ascend's inference library, without gradients, where it is installed.
_MINDIE = {
    name: Implementation(
        "mindie",
        f"mova_kernels.npu.mindie:{name}",
        ("npu",),
        ("mindiesd",),
        check="mova_engine.ops.native_check:mindie",
        differentiable=False,
        calls=("mindiesd.adaln",),
    )
    for name in ("norm_modulate", "gate_residual_norm_modulate")
}


def _rows(name: str, build: inputs.Build, differentiable: str, *implementations: Implementation) -> Operator:
    inference = (_MINDIE[name],) if name in _MINDIE else ()
    return Operator(
        name,
        getattr(reference, f"{name}_reference"),
        inputs.sized(build, *_EXAMPLE_ROWS),
        _SLACK,
        (_native(name), *inference, _npu("norms", name), _triton(name), *implementations, _compile(name)),
        tuple(differentiable.split()),
    )


OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        _rows(
            "rms_norm_rope",
            inputs.rms_norm_rope(interleaved=True),
            "x weight",
            _cuda_cpp("rms_norm_rope"),
        ),
        _rows(
            "rms_norm",
            inputs.rms_norm,
            "x weight",
            Implementation("torch", f"{_TORCH}:rms_norm", ("cpu", "cuda")),
            _apex_norm("rms_norm"),
        ),
        _rows(
            "norm_modulate",
            inputs.norm_modulate,
            "x shift scale",
            _cuda_cpp("norm_modulate"),
        ),
        _rows(
            "layer_norm",
            inputs.layer_norm,
            "x weight bias",
            # Not on the CPU: there torch adds up a bfloat16 bias's gradient in bfloat16.
            Implementation("torch", f"{_TORCH}:layer_norm", ("cuda",)),
            _apex_norm("layer_norm"),
        ),
        _rows("gate_residual", inputs.gate_residual, "x y gate"),
        _rows(
            "gate_residual_norm",
            inputs.gate_residual_norm,
            "x y gate weight bias",
        ),
        _rows(
            "gate_residual_norm_modulate",
            inputs.gate_residual_norm_modulate,
            "x y gate shift scale",
        ),
        _rows("bias_gelu", inputs.bias_gelu, "x bias"),
        Operator(
            "linear_gelu",
            reference.linear_gelu_reference,
            inputs.sized(inputs.linear, *_EXAMPLE_GEMM),
            _SLACK,
            (
                # Without a gradient, but where none is needed nothing is as short.
                Implementation("epilogue", f"{_LINEAR}:epilogue_gelu", ("cuda",), differentiable=False),
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
                ),
                _compile("linear_gelu"),
            ),
            ("x", "weight", "bias"),
            rounded=(reference.linear_gelu_rounded,),
        ),
        Operator(
            "lora_linear",
            reference.lora_linear_reference,
            inputs.sized(inputs.lora_linear, *_EXAMPLE_GEMM),
            _SLACK,
            (
                Implementation("accumulate", f"{_LINEAR}:accumulating_lora"),
                Implementation("augmented", f"{_LINEAR}:augmented_lora"),
                _compile("lora_linear"),
            ),
            ("x", "weight", "bias", "lora_a", "lora_b"),
        ),
        Operator(
            "quantize_rows",
            reference.quantize_rows_reference,
            inputs.sized(inputs.quantize_rows(factor=False), *_EXAMPLE_ROWS),
            _SLACK,
            (
                # The 910B series has no fp8.
                replace(_triton("quantize_rows"), devices=("cuda",), check=f"{_FP8}:fp8_check"),
                _compile("quantize_rows"),
            ),
        ),
        Operator(
            "fp8_linear",
            reference.fp8_linear_reference,
            inputs.sized(inputs.fp8_linear(adapter=True), *_EXAMPLE_GEMM),
            _SLACK,
            (
                Implementation(
                    "scaled-mm-triton",
                    f"{_FP8}:scaled_mm_triton",
                    ("cuda",),
                    needs=("triton",),
                    check=f"{_FP8}:scaled_mm_check",
                    dtypes=("bfloat16",),
                ),
                Implementation(
                    "scaled-mm",
                    f"{_FP8}:scaled_mm",
                    ("cpu", "cuda"),
                    check=f"{_FP8}:scaled_mm_check",
                    dtypes=("bfloat16",),
                ),
            ),
            ("x", "bias", "lora_a", "lora_b"),
        ),
        Operator(
            "attention",
            reference.attention_reference,
            inputs.sized(inputs.attention, *_EXAMPLE_ATTENTION),
            _SLACK,
            (
                Implementation("sdpa", f"{_ATTENTION}:sdpa", ("cpu", "cuda")),
                _flash_attn(3),
                _flash_attn(4),
                _flash_attn(2),
                Implementation(
                    "sdpa-cudnn",
                    f"{_ATTENTION}:sdpa_cudnn",
                    ("cuda",),
                    check=f"{_ATTENTION}:cudnn_check",
                    dtypes=_HALF,
                ),
                Implementation(
                    "sdpa-flash", f"{_ATTENTION}:sdpa_flash", ("cpu", "cuda"), check=f"{_ATTENTION}:flash_check"
                ),
                Implementation(
                    "sdpa-efficient", f"{_ATTENTION}:sdpa_efficient", ("cuda",), check=f"{_ATTENTION}:efficient_check"
                ),
                Implementation("split-keys", "mova_engine.ops.split_keys:cpu", ("cpu",)),
                Implementation(
                    "split-keys-cuda",
                    "mova_engine.ops.split_keys:cuda",
                    ("cuda",),
                    check=f"{_ATTENTION}:flash_cuda_check",
                    dtypes=_HALF,
                ),
                Implementation("sdpa-math", f"{_ATTENTION}:sdpa_math", ("cpu", "cuda")),
                _npu("attention", "attention"),
            ),
            ("q", "k", "v"),
            rounded=reference.on_grids(reference.attention_rounded),
        ),
        Operator(
            "attention_lse",
            reference.attention_lse_reference,
            inputs.sized(inputs.attention, *_EXAMPLE_ATTENTION),
            _SLACK,
            (
                Implementation("flash", f"{_ATTENTION}:flash_cpu_lse", ("cpu",)),
                *(_cuda_attention(kernel, "lse") for kernel in ("flash_cuda", "cudnn", "efficient")),
                *(_flash_attn(version, "_lse") for version in (3, 4, 2)),
                _npu("attention", "attention_lse"),
            ),
            rounded=reference.on_grids(reference.attention_lse_rounded),
        ),
        Operator(
            "attention_backward",
            reference.attention_backward_reference,
            inputs.sized(inputs.attention_backward, *_EXAMPLE_ATTENTION),
            _SLACK,
            (
                Implementation("flash", f"{_ATTENTION}:flash_cpu_backward", ("cpu",)),
                *(_cuda_attention(kernel, "backward") for kernel in ("flash_cuda", "cudnn", "efficient")),
                *(_flash_attn(version, "_backward") for version in (3, 4, 2)),
                _npu("attention", "attention_backward"),
            ),
            rounded=reference.on_grids(reference.attention_backward_rounded),
        ),
        Operator(
            "merge_lse",
            reference.merge_lse_reference,
            inputs.merge_lse(shards=3),
            _SLACK,
            (_npu("attention", "merge_lse"), _triton("merge_lse"), _compile("merge_lse")),
        ),
        Operator(
            "adamw",
            optimizer_impl.AdamWReference,
            inputs.adamw(),
            _SLACK,
            (
                # Masters and moments are float32: in half precision nothing is promised.
                Implementation(
                    "fused", "mova_engine.ops.optimizer_impl:adamw_fused", ("cpu", "cuda", "npu"), dtypes=("float32",)
                ),
                replace(_npu("optim", "fused_adamw"), name="npu-fused", dtypes=("float32",)),
                Implementation("foreach", "mova_engine.ops.optimizer_impl:adamw_foreach", dtypes=("float32",)),
                _apex("ApexAdamW", "apex.multi_tensor_apply:multi_tensor_applier", dtypes=("float32",)),
            ),
            kind="optimizer",
        ),
        Operator(
            "clip_grad_norm",
            optimizer_impl.clip_grad_norm_reference,
            inputs.gradients(scale=3.0),
            _SLACK,
            (
                Implementation("foreach", "mova_engine.ops.optimizer_impl:clip_grad_norm_foreach"),
                _apex("clip_grad_norm", "apex.multi_tensor_apply:multi_tensor_applier", dtypes=("float32",)),
            ),
            kind="inplace",
        ),
    )
}
