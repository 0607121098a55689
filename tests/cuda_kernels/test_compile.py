"""nvcc compiles the CUDA sources for GPUs that are not there; and why the library is not used, in words."""

import subprocess
import sys

import pytest
import torch

from mova_kernels import check_cuda
from mova_kernels.check_cuda import SOURCES, Kernel, compile_for, compiler, main
from mova_kernels.cuda import library, unavailable
from source_tree import ROOT

needs_nvcc = pytest.mark.skipif(compiler() is None, reason="nvcc is not on PATH and CUDACXX names none")


@needs_nvcc
@pytest.mark.slow
def test_every_kernel_compiles_without_spilling(capsys):
    """The command's report is in the output of a failure."""
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name in ("rms_norm_rope", "norm_modulate"):
        for direction in ("fwd", "bwd"):
            for architecture in ("sm_80", "sm_90a"):
                line = f"{name}_{direction}_kernel<bf16"
                assert any(line in text and architecture in text for text in printed.splitlines())


@needs_nvcc
def test_the_smallest_source_compiles_without_a_warning():
    kernels = compile_for(SOURCES / "library.cu", "90a", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror")
    assert {k.name for k in kernels} == {f"column_sums_kernel<{t}>" for t in ("float", "bf16", "fp16")}
    assert all(k.registers > 0 and k.shared == 2048 for k in kernels)


@needs_nvcc
def test_a_spill_and_an_access_taken_apart_are_faults(tmp_path):
    source = tmp_path / "faulty.cu"
    source.write_text("""
template <class T, bool WIDE>
__global__ void __launch_bounds__(1024) spilling_kernel(T* x, int n) {
  float held[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) held[i] = x[i * n];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) x[i * n] = held[127 - i] * held[i];
}
template __global__ void spilling_kernel<float, true>(float*, int);
""")
    (kernel,) = compile_for(source, "80")
    spills, narrow = kernel.faults
    assert spills.startswith("spills ") and narrow == "has 256 narrow accesses"


def test_values_beside_vectors_are_told_apart():
    code = "ld.global.v4.u32 {a}; st.global.wb.v4.u32 [b]; ld.global.v2.f32 c; ld.global.f32 d; st.global.u16 [e];"
    assert list(check_cuda._narrow(code)) == [".f32", ".u16"]
    assert not Kernel("a_kernel<float, 2, true>", "sm_80", 32, 0, 128, 2).faults
    assert not Kernel("a_kernel<float, 0, false>", "sm_80", 32, 0, 128, 9).faults


def test_without_nvcc_the_check_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setenv("CUDACXX", "no-such-compiler")
    assert main([]) == 2
    assert "install NVIDIA's CUDA toolkit" in capsys.readouterr().out


def test_without_sources_the_check_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check_cuda, "SOURCES", tmp_path)
    assert main([]) == 2
    assert "run this from a checkout" in capsys.readouterr().out


@pytest.fixture
def _reasons_afresh():
    library._opened.cache_clear()
    yield
    library._opened.cache_clear()


@pytest.mark.usefixtures("_reasons_afresh")
def test_a_library_that_is_not_there_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "cuda" / "library.py"))
    assert "mova_kernels._cuda is not built; `make cuda` builds it" in unavailable()
    with pytest.raises(ImportError, match="make cuda"):
        library.load()


@pytest.mark.usefixtures("_reasons_afresh")
def test_a_library_that_does_not_load_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "cuda" / "library.py"))
    (tmp_path / "_cuda.abi3.so").write_text("no library")
    assert "_cuda.abi3.so does not load" in unavailable()


@pytest.mark.parametrize(
    ("built", "available", "capability", "reason"),
    [
        (False, False, (0, 0), "was built without CUDA"),
        (True, False, (0, 0), "torch sees no NVIDIA GPU"),
        (True, True, (7, 5), "Turing has compute capability 7.5; the kernels need 8.0 or higher"),
        (True, True, (8, 0), None),
    ],
)
def test_each_reason_not_to_use_a_library_that_loads(monkeypatch, built, available, capability, reason):
    monkeypatch.setattr(library, "_opened", lambda: library.Library(None))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Turing")
    found = unavailable()
    assert (reason is None and found is None) or reason in found


@pytest.mark.long
def test_the_command_prints_one_line():
    child = subprocess.run([sys.executable, "-m", "mova_kernels.cuda"], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0 and child.stdout.startswith("CUDA library: ") and child.stdout.count("\n") == 1
