"""The whole table of choices: every operator, forward and backward, on every machine with every set of packages.

What is expected is written here once more, by hand and by other means than the declarations: the order of preference of
each device, and what is left for each operator when packages are not installed.
"""

from itertools import chain, combinations, product

import pytest

from mova_engine.ops import OPERATORS, REFERENCE, Machine, choose
from mova_engine.ops.__main__ import main
from mova_engine.ops.choice_table import choice_tables
from source_tree import ROOT

# On NVIDIA GPUs the kernels of attention for half precision, the fastest first, as they were published: names of the
# plain operator and of the two with a log-sum-exp.
FLASH = {version: (f"flash-attn-{version}",) * 2 for version in (2, 3, 4)}
CUDNN, TORCH_FLASH = ("sdpa-cudnn", "cudnn"), ("sdpa-flash-cuda", "flash-cuda")
FASTEST = {
    (8, 0): (FLASH[2], TORCH_FLASH),
    (8, 6): (FLASH[2], TORCH_FLASH),
    (8, 9): (FLASH[2], TORCH_FLASH),
    (9, 0): (FLASH[3], CUDNN),
    (10, 0): (FLASH[4], CUDNN),
    (10, 3): (FLASH[4], CUDNN),
    (12, 0): (FLASH[2], TORCH_FLASH),
}
NORMS = ("rms_norm", "layer_norm", "norm_modulate")
COMPOSED = ("rms_norm_rope", "gate_residual", "gate_residual_norm", "gate_residual_norm_modulate", "bias_gelu")
# The same everywhere.
COMMON = {
    "lora_linear": "accumulate",
    "quantize_rows": REFERENCE,
    "fp8_linear": REFERENCE,
    "fp8_trained_linear": REFERENCE,
    "nf4_linear": "dequantise",
    "gguf_linear": "dequantise",
    "adamw": "fused",
    "adamw_8bit": "rows",
    "clip_grad_norm": "foreach",
    "newton_schulz": "batched",
}


def on_gpu(capability, packages, training, half) -> dict[str, str]:
    triton, cpp = "triton" in packages, "cuda-kernels" in packages
    left = {**dict.fromkeys((*NORMS, *COMPOSED, "merge_lse"), REFERENCE), "rms_norm": "torch", "layer_norm": "torch"}
    if cpp:
        left |= {"rms_norm_rope": "cuda-cpp", "norm_modulate": "cuda-cpp"}
    rows = dict.fromkeys(left, "triton") if triton else left
    plain, other = "sdpa", "efficient"
    if half and capability >= (8, 0):
        plain, other = next(
            kernel for kernel in FASTEST[capability] if kernel[0] in packages or kernel in (CUDNN, TORCH_FLASH)
        )
    found = COMMON | rows | {"attention": plain, "attention_lse": other, "attention_backward": other}
    if capability >= (8, 9):
        found["fp8_linear"] = "scaled-mm-triton" if triton else "scaled-mm"
        found["quantize_rows"] = "triton" if triton else REFERENCE
        found["fp8_trained_linear"] = found["fp8_linear"] if half else REFERENCE
    gelu = ("triton" if triton else REFERENCE) if training else "epilogue"
    return found | {"linear_gelu": gelu, "int8_linear": "int-mm"}


def on_ascend(capability, packages, training, half) -> dict[str, str]:
    """One fused operator of torch_npu with a gradient, else Triton's kernels, else what is composed."""
    atlas = capability != "310p"
    fused = (*NORMS, "attention", "attention_lse", "attention_backward", "merge_lse", "linear_gelu")
    found = COMMON | dict.fromkeys(fused, "npu")
    found |= dict.fromkeys(COMPOSED, "triton" if "triton" in packages and atlas else "npu")
    return found | {"int8_linear": "npu" if atlas and half else "dequantise"}


def on_cpu(capability, packages, training, half) -> dict[str, str]:
    found = COMMON | {"attention": "sdpa", "attention_lse": "flash", "attention_backward": "flash"}
    found |= {"merge_lse": REFERENCE, "int8_linear": "int-mm", "fp8_linear": "scaled-mm"}
    kernels = (*NORMS, *COMPOSED, "linear_gelu", "nf4_linear")
    if "cpu-kernels" in packages:
        return found | dict.fromkeys(kernels, "native")
    found |= dict.fromkeys((*NORMS, *COMPOSED), REFERENCE) | {"rms_norm": "torch"}
    return found | {"linear_gelu": REFERENCE if training else "onednn"}


GPU_PACKAGES = ("triton", "cuda-kernels", "apex", "flash-attn-2", "flash-attn-3", "flash-attn-4")
MACHINES = (
    *(("cuda", capability, on_gpu, (), GPU_PACKAGES) for capability in (*FASTEST, (7, 5))),
    *(
        ("npu", capability, on_ascend, ("torch_npu",), ("triton", "mindiesd"))
        for capability in ("910a2", "910a3", "310p")
    ),
    ("cpu", "avx512_bf16", on_cpu, (), ("cpu-kernels",)),
)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: f"{machine[0]} {machine[1]}")
def test_the_whole_table(machine):
    kind, capability, expected, brought, packages = machine
    sets = chain.from_iterable(combinations(packages, n) for n in range(len(packages) + 1))
    for added, training, dtype in product(sets, (True, False), ("bfloat16", "float32", ("bfloat16", "float32"))):
        installed = frozenset((*brought, *added))
        chosen = choose(Machine(kind, capability, installed), training=training, dtype=dtype)
        found = {choice.operator: choice.implementation for choice in chosen}
        assert found == expected(capability, installed, training, dtype == "bfloat16"), (added, training, dtype)


def test_an_ascend_without_torch_npu_still_has_what_triton_and_mindie_serve():
    machine = Machine("npu", "910a2", frozenset({"triton", "mindiesd"}))
    found = {choice.operator: choice.implementation for choice in choose(machine, training=False)}
    assert {found[name] for name in (*NORMS, *COMPOSED, "merge_lse", "linear_gelu")} == {"triton"}
    bare = {
        c.operator: c.implementation for c in choose(Machine("npu", "910a2", frozenset({"mindiesd"})), training=False)
    }
    assert bare["norm_modulate"] == "mindie" and bare["gate_residual"] == REFERENCE


def test_the_page_has_the_tables(capsys):
    assert main(["--table"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == choice_tables()
    page = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8").splitlines()
    begin = page.index(shown[0])
    assert page[begin : begin + len(shown)] == shown, "mova ops --table has the tables of docs/operators.md"
    assert sum(line.startswith("| `") for line in shown) == len(OPERATORS)
