"""The recorded cases of the reference model, and that parity reports what is wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mova_engine.errors import MovaError
from mova_engine.ops import bind
from mova_engine.parity.__main__ import main
from mova_engine.parity.case import CaseDevice, find_cases
from mova_engine.parity.judge import judge
from mova_engine.parity.runner import RUNNERS, run_case, run_folder

GOLDEN = pytest.mark.parametrize("name", sorted(RUNNERS))


def _case(folder, name):
    return next(case for case in find_cases(folder) if case.name == name)


@GOLDEN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_case(golden_dir, backend, name, dtype):
    with backend.full_precision():
        rows = run_case(_case(golden_dir, name), CaseDevice(bind(backend), backend.device(), dtype))
    assert rows
    missed = [f"{row.tensor}: {row.difference} > {row.bound} {row.note}" for row in rows if not row.passed]
    assert not missed, "; ".join(missed)


@GOLDEN
def test_recorded_case_on_references_alone(golden_dir, backend, name):
    with backend.full_precision():
        rows = run_case(_case(golden_dir, name), CaseDevice(bind(backend, "reference"), backend.device()))
    assert all(row.passed for row in rows)


def test_the_project_s_copy_is_the_shared_one(golden_dir, shared_dir):
    names = {path.name for path in (shared_dir / "golden").glob("case*.safetensors")}
    assert names == {path.name for path in golden_dir.glob("case*.safetensors")}
    for name in sorted(names):
        ours, theirs = load_file(golden_dir / name), load_file(shared_dir / "golden" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def _copy(golden_dir, folder, *names):
    for name in names:
        for path in golden_dir.glob(f"{name}.*"):
            shutil.copy(path, folder)
    return folder


def test_a_changed_number_is_a_miss(golden_dir, backend, tmp_path, capsys):
    _copy(golden_dir, tmp_path, "case8_first_frame_condition")
    path = tmp_path / "case8_first_frame_condition.safetensors"
    tensors = load_file(path)
    tensors["out.first.condition"][0, 5, 1, 0, 0] += 1e-3
    save_file(tensors, path)
    assert main([str(tmp_path), "--device", backend.name]) == 1
    printed = capsys.readouterr().out
    assert "out.first.condition" in next(line for line in printed.splitlines() if "MISS" in line)
    assert "1 missed" in printed
    assert "parity: FAILED" in printed


def test_a_tensor_that_nobody_produces_is_a_miss(golden_dir, backend, tmp_path):
    _copy(golden_dir, tmp_path, "case8_first_frame_condition")
    path = tmp_path / "case8_first_frame_condition.safetensors"
    save_file(load_file(path) | {"out.extra": torch.ones(1)}, path)
    rows = run_case(find_cases(tmp_path)[0], CaseDevice(bind(backend), backend.device()))
    assert [row.tensor for row in rows if not row.passed] == ["out.extra"]


def test_nan_and_wrong_shapes_are_misses():
    recorded = {"out.a": torch.ones(3), "out.b": torch.ones(3)}
    produced = {"out.a": torch.tensor([1.0, float("nan"), 1.0]), "out.b": torch.ones(4)}
    rows = judge("case", recorded, produced, torch.float32, {})
    assert [row.passed for row in rows] == [False, False]


def test_tiny_gradients_are_measured_against_the_largest():
    recorded = {"grad.large": torch.ones(1), "grad.tiny": torch.full((1,), 1e-9)}
    produced = {"grad.large": torch.ones(1), "grad.tiny": torch.full((1,), 2e-9)}
    tiny = judge("case", recorded, produced, torch.float32, {})[1]
    assert tiny.difference == pytest.approx(1e-3, rel=0.01)
    assert not tiny.passed


def test_an_unknown_case_is_an_error_before_anything_runs(golden_dir, backend, tmp_path):
    _copy(golden_dir, tmp_path, "case8_first_frame_condition")
    (tmp_path / "case10_lip_sync.json").write_text(json.dumps({"case": "case10_lip_sync"}))
    with pytest.raises(MovaError, match="unknown case 'case10_lip_sync'"):
        list(run_folder(tmp_path, CaseDevice(bind(backend), backend.device())))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "case8_first_frame_condition.safetensors").write_bytes(b"nonsense"), "cannot read"),
        (lambda d: (d / "case8_first_frame_condition.json").write_text("{"), "cannot read"),
        (lambda d: (d / "other.json").write_text("{}"), "neither a case nor a weights file"),
        (lambda d: [p.unlink() for p in d.iterdir()], "holds no recorded case"),
    ],
)
def test_damaged_folders_are_named(golden_dir, backend, tmp_path, spoil, message):
    _copy(golden_dir, tmp_path, "case8_first_frame_condition")
    spoil(tmp_path)
    with pytest.raises(MovaError, match=message):
        list(run_folder(tmp_path, CaseDevice(bind(backend), backend.device())))


def test_a_case_that_cannot_be_run_stops_none_of_the_others(golden_dir, backend, tmp_path):
    for name in ("case5_scheduler", "case8_first_frame_condition"):
        _copy(golden_dir, tmp_path, name)
    (tmp_path / "case5_scheduler.safetensors").write_bytes(b"nonsense")
    ran = []
    with pytest.raises(MovaError, match=r"cannot read .*case5_scheduler"):
        for case, rows in run_folder(tmp_path, CaseDevice(bind(backend), backend.device())):
            ran.append((case.name, all(row.passed for row in rows)))
    assert ran == [("case8_first_frame_condition", True)]


def test_missing_weights_are_named(golden_dir, backend, tmp_path):
    _copy(golden_dir, tmp_path, "case1_video_dit")
    with pytest.raises(MovaError, match=r"cannot read .*weights_video_dit.safetensors"):
        list(run_folder(tmp_path, CaseDevice(bind(backend), backend.device())))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float31"], "--dtype: unknown value 'float31'. Did you mean 'float32'"),
        (["--ops", "attention"], "takes OP=IMPL"),
        (["--ops", "attention=fast"], "no implementation 'fast'"),
        (["--device", "cdua"], "Did you mean 'cuda'"),
    ],
)
def test_wrong_arguments(golden_dir, arguments, message):
    with pytest.raises(MovaError, match=message):
        main([str(golden_dir), *arguments])


def test_reduced_precision_left_on_is_reported_and_restored(golden_dir, tmp_path, capsys):
    """oneDNN's bf16 products stand in for TF32: the same switch of the same kind, on a CPU."""
    _copy(golden_dir, tmp_path, "case8_first_frame_condition")
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        assert main([str(tmp_path), "--keep-reduced-precision"]) == 1
        assert "MISS: reduced precision was on for float32: oneDNN" in capsys.readouterr().out
        assert main([str(tmp_path)]) == 0
        assert "oneDNN reduced precision in matrix products (was on)" in capsys.readouterr().out
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before
