"""Training and sampling on an NPU: the loss is the CPU's, a stop changes nothing, a checkpoint gives clips."""

import subprocess
import sys

import av
import pytest
from rich.console import Console

from mova_engine.config.recipes import load_config
from mova_engine.data.synthetic.bounce import generate
from mova_engine.train.metrics import read_metrics
from mova_engine.train.trainer import Trainer

pytestmark = pytest.mark.npu
# The emulator computes in float32 and rounds once, as the device's kernels do; operators round in other places.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.01}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, 12, seed=3)
    return folder


@pytest.fixture
def losses(clips, tmp_path):
    """Train: `losses("npu", steps=5)` returns the loss of each step and leaves the run in tmp_path/npu."""

    def train(device: str, *, out: str | None = None, **settings) -> list[float]:
        config = load_config(
            "nano",
            **{"data": clips, "out": tmp_path / (out or device), "device": device, **settings},
            loader={"batch": 2, "num_fit_clips": 4},
            optim={"warmup": 2, "lr": 1e-3},
            log={"every": 1, "tensorboard": False},
            validation={"every": 0},
        )
        assert Trainer(config, Console(quiet=True)).run() == 0
        return [row["loss"] for row in read_metrics(config.folder / "metrics.jsonl")]

    return train


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("steps", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_the_loss_is_the_cpu_s(npu, losses, steps, dtype):
    ours = losses("npu", steps=steps, dtype=dtype)
    theirs = losses("cpu", steps=steps, dtype=dtype)
    assert len(ours) == steps
    assert ours == pytest.approx(theirs, rel=TOLERANCE[dtype])


def test_one_step_runs_the_operators_of_torch_npu(npu, losses, executed):
    losses("npu", steps=1)
    assert {name for name in executed if name.startswith("npu::")} >= {
        # A rotation's gradient is the rotation back, by the same operator.
        *("npu::npu_rms_norm", "npu::npu_rms_norm_backward", "npu::npu_rotary_mul"),
        *("npu::npu_fusion_attention", "npu::npu_fusion_attention_grad", "npu::npu_gelu", "npu::npu_gelu_backward"),
    }
    assert executed["aten::_fused_adamw_"] == 3  # one for each component of the model
    assert not {"aten::scaled_dot_product_attention", "aten::gelu", "npu::fast_gelu"} & executed.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_was_interrupted_goes_on_exactly(npu, losses, dtype):
    through = losses("npu", out="through", steps=4, dtype=dtype)
    losses("npu", out="stopped", steps=2, dtype=dtype)
    assert losses("npu", out="stopped", steps=4, dtype=dtype) == through


def test_a_run_of_the_cpu_goes_on_here(npu, losses):
    through = losses("cpu", out="through", steps=4)
    losses("cpu", out="moved", steps=2)
    assert losses("npu", out="moved", steps=4) == pytest.approx(through, rel=TOLERANCE["float32"])


def test_fused_adamw_of_torch_npu_trains_and_resumes(npu, losses):
    fused = {"ops": {"adamw": "npu-fused"}}
    through = losses("npu", out="through", steps=4, **fused)
    assert through == pytest.approx(losses("npu", out="torch", steps=4), rel=TOLERANCE["float32"])
    losses("npu", out="stopped", steps=2, **fused)
    assert losses("npu", out="stopped", steps=4, **fused) == pytest.approx(through, rel=1e-6)


def _run(*arguments) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert child.returncode == 0, child.stderr[-3000:]
    return child.stdout


def test_commands_train_sample_and_check_parity(npu, clips, tmp_path, golden_dir):
    """As a user types them."""
    small = ("--loader.batch", 2, "--loader.num-fit-clips", 4, "--validation.every", 0)
    run = tmp_path / "run"
    train = "mova_engine.train", "--device", "npu", "--recipe", "nano", "--data", clips, "--out", run, "--steps", 2
    said = _run(*train, *small)
    assert "attention=npu" in said and "adamw=fused" in said
    out = tmp_path / "out"
    _run("mova_engine.inference", "--device", "npu", "--checkpoint", run, "--prompt", "red", "--steps", 2, "--out", out)
    (clip,) = out.glob("*.mp4")
    with av.open(clip) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
        assert sum(1 for _ in container.decode(video=0)) > 1
    assert "parity: passed" in _run("mova_engine.parity", golden_dir, "--device", "npu")
    assert "parity: passed" in _run("mova_engine.parity", golden_dir, "--device", "npu", "--dtype", "bfloat16")
