"""The emulator itself: what it must refuse, and that it tells what it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

COMMAND = Path(__file__).parent / "emulate.py"
pytestmark = pytest.mark.npu


@pytest.fixture(autouse=True)
def _emulated(npu):
    if "ascend.emulator.kernel" not in sys.modules:
        pytest.skip("runs on the emulator only")


def test_nothing_can_take_it_for_hardware(npu):
    assert npu.describe() == "emulated Ascend 910B2"
    assert npu.peak_flops(torch.bfloat16) is None


def test_devices_must_not_be_mixed(npu):
    x = torch.ones(2, device=npu.device())
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        x + torch.ones(2)
    assert (x + torch.tensor(1.0)).tolist() == [2, 2]


def test_what_is_not_emulated_raises(npu):
    x = torch.ones(1, 4, 2, 8, device=npu.device())
    with pytest.raises(RuntimeError):
        torch.ops.npu.npu_swiglu(x)
    mask = torch.zeros(4, 4, dtype=torch.bool, device=npu.device())
    with pytest.raises(RuntimeError, match="a mask not emulated"):
        torch.ops.npu.npu_fusion_attention(x, x, x, 2, "BSND", atten_mask=mask)


def test_memory_is_counted_and_ends(npu):
    before = npu.memory_allocated()
    x = torch.empty(1 << 20, device=npu.device())
    assert npu.memory_allocated() - before >= x.numel() * 4
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 38, device=npu.device())


def test_random_numbers_follow_the_device_s_generator(npu):
    host, state = torch.get_rng_state(), npu.rng_state()
    first = torch.randn(4, device=npu.device())
    assert not torch.equal(torch.randn(4, device=npu.device()), first)
    npu.set_rng_state(state)
    assert torch.equal(torch.randn(4, device=npu.device()), first)
    assert torch.equal(torch.get_rng_state(), host)


def test_streams_and_events_have_their_interface(npu):
    stream, start, end = torch.npu.Stream(), torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    with torch.npu.stream(stream):
        start.record()
        x = torch.ones(8, device=npu.device()) * 2
        end.record()
    torch.npu.current_stream().wait_stream(stream)
    end.synchronize()
    assert end.query() and start.elapsed_time(end) >= 0 and x.sum().item() == 16


def _started(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, COMMAND, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def test_without_a_compiler_it_says_so(tmp_path):
    child = _started("python", "-c", "import torch_npu", CC="no-such-cc", XDG_CACHE_HOME=str(tmp_path))
    assert child.returncode != 0 and "needs a C compiler, and there is no 'no-such-cc'" in child.stderr


def test_a_program_that_is_not_there_is_named():
    child = _started("no-such-program")
    assert child.returncode != 0 and "no such program: no-such-program" in child.stderr


def test_executed_operators_are_listed():
    program = "import torch, torch_npu; x = torch.ones(2, device='npu'); torch.ops.npu.npu_gelu(x, approximate='tanh')"
    child = _started("--list", "python", "-c", program)
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1].split() == ["npu::npu_gelu", "1"]
