"""Measured tiles: which are tried, which fit a GPU that is not there, how a table is read, and what is wrong with one.

The choice itself runs in Triton's interpreter, with a clock of its own: `tuned.py`. Nothing is measured.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from source_tree import ROOT

PROGRAM = Path(__file__).with_name("tuned.py")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
ROPE = ("rms_norm_rope_bwd_kernel", 5120, "float32")


@pytest.fixture
def tables(tmp_path, monkeypatch) -> Path:
    """A folder of tables that kernels read, still empty."""
    from mova_kernels.measured_tables import FOLDER
    from mova_kernels.triton_tiles import tuned

    monkeypatch.setenv(FOLDER, str(tmp_path))
    tuned.cache_clear()
    yield tmp_path
    tuned.cache_clear()


def _child(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_command_refuses_in_one_line():
    child = _child("-m", "mova_kernels.tune")
    assert child.returncode == 2 and not child.stdout
    assert child.stderr.startswith("error: ") and child.stderr.count("\n") == 1


@needs_triton
def test_candidates_are_distinct_and_of_a_size_that_threads_can_hold(tables):
    from mova_kernels.triton_tiles import built_in
    from mova_kernels.triton_tuner import candidates, keys

    found = keys((1536, 5120), torch.bfloat16, 90)
    assert len(found) >= 21 and ("merge_lse_fwd_kernel", 128, "bfloat16") in found
    for key in found:
        usual, *others = tiles = candidates(key)
        assert usual == built_in(key.kernel) and len(set(tiles)) == len(tiles) >= 4
        assert all(8 <= t.rows * t.cols // (32 * t.warps) <= 32 and t.cols <= max(128, key.width) for t in others)
        assert ({t.sums for t in others} == {256, 512, 1024}) == ("_bwd_" in key.kernel)


@needs_triton
def test_the_key_of_a_launch_is_the_one_that_its_tile_was_looked_up_by(tables, monkeypatch):
    from mova_kernels import triton_tiles
    from mova_kernels.triton_tuner import keys

    asked = []

    class Watched(dict):
        def get(self, key):
            asked.append(key)

    monkeypatch.setattr(triton_tiles, "tuned", lambda arch: Watched())
    with triton_tiles.compiling_for("sm_90"):
        assert set(keys((256,), torch.float16, 90)) == set(asked)


@needs_triton
def test_fp8_is_left_to_gpus_that_have_it(tables):
    from mova_kernels.triton_tuner import keys

    kernels = [{key.kernel for key in keys((256,), torch.bfloat16, capability)} for capability in (80, 90)]
    assert kernels[1] - kernels[0] == {"quantize_rows_fwd_kernel"}


@needs_triton
@pytest.mark.kernels
def test_a_tile_that_spills_or_outgrows_shared_memory_does_not_fit(tables, monkeypatch):
    from mova_kernels import triton_tuner
    from mova_kernels.triton_tiles import Key, built_in, tuned

    key = Key(*ROPE)
    forms = triton_tuner.keys((5120,), torch.float32, 100)[key]
    usual = built_in(key.kernel)
    assert triton_tuner.fits(key, forms, usual, 100)
    assert not triton_tuner.fits(key, forms, usual._replace(rows=16, cols=1024), 100)
    monkeypatch.setitem(triton_tuner._SHARED, 100, 0)
    assert not triton_tuner.fits(key, forms, usual, 100)
    assert tuned("sm_100") == {}


@needs_triton
def test_kernels_take_the_tile_of_their_architecture_width_and_dtype(tables):
    from mova_kernels.triton_tiles import Key, built_in, write_table
    from mova_kernels.triton_variants import variants

    usual = built_in(ROPE[0])
    tile = usual._replace(rows=2, cols=1024, warps=4, sums=512)
    write_table(tables / "sm_90.json", "sm_90", {Key(*ROPE): tile}, device="none")

    def launched(dtype, width, arch):
        name = "rms_norm_rope backward interleaved=True"
        launch = variants(dtype, (width,), arch)[name]
        return launch.constants["ROWS"], launch.constants["COLS"], launch.warps

    assert launched(torch.float32, 5120, "sm_90") == tile[:3]
    for other in ((torch.float32, 1536, "sm_90"), (torch.bfloat16, 5120, "sm_90"), (torch.float32, 5120, "sm_80")):
        assert launched(*other) == usual[:3]
    assert launched(torch.float32, 5120, None) == usual[:3]


_TILE = {"rows": 8, "cols": 512, "warps": 8, "programs": None, "sums": 256}


@needs_triton
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ({"arch": "sm_80", "tiles": {}}, "it is for sm_80, not for sm_90"),
        ({"arch": "sm_90"}, "'tiles' is missing"),
        ({"arch": "sm_90", "tiles": {"k": {"5120": _TILE}}}, "not enough values"),
        ({"arch": "sm_90", "tiles": {"k": {"5120 float32": _TILE | {"rows": 3}}}}, "rows of k 5120 float32 is 3"),
        ({"arch": "sm_90", "tiles": {"k": {"5120 float32": _TILE | {"sums": 0}}}}, "sums of k 5120 float32 is 0"),
        ({"arch": "sm_90", "tiles": {"k": {"5120 float32": _TILE | {"stages": 2}}}}, "stages"),
        ({"arch": "sm_90", "tiles": {"k": {"5120 float32": {"rows": 8}}}}, "cols"),
    ],
)
def test_what_is_no_table_is_refused_with_the_reason_and_the_remedy(tables, text, reason):
    from mova_kernels.triton_tiles import tuned

    (tables / "sm_90.json").write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ValueError, match=r"sm_90\.json is no table of tiles") as error:
        tuned("sm_90")
    assert reason in str(error.value) and "python -m mova_kernels.tune" in str(error.value)
    assert "\n" not in str(error.value)


@needs_triton
def test_a_folder_that_is_not_there_is_refused(tables, monkeypatch):
    from mova_kernels.measured_tables import FOLDER
    from mova_kernels.triton_tiles import tuned

    monkeypatch.setenv(FOLDER, str(tables / "absent"))
    with pytest.raises(ValueError, match="which is no folder; create it or unset the variable"):
        tuned("sm_90")


@needs_triton
def test_without_a_table_of_ones_own_the_package_is_looked_in(tables, monkeypatch):
    from mova_kernels import measured_tables, triton_tiles

    monkeypatch.delenv(measured_tables.FOLDER)
    assert triton_tiles.table_file("sm_90") == Path(triton_tiles.__file__).parent / "tiles" / "sm_90.json"


@needs_triton
def test_results_agree_up_to_rounding_alone():
    from mova_kernels.triton_tuner import agree

    one = torch.ones(3)
    assert agree((one,), (one * (1 + 5e-6),)) and not agree((one,), (one * 1.001,))
    assert agree((one.bfloat16(),), (one.bfloat16() * (1 + 2**-7),)) and not agree(
        (one.bfloat16(),), (one.bfloat16() * 1.05,)
    )
    assert not agree((one * torch.nan,), (one,)) and not agree((one,), (one * torch.nan,))


@needs_triton
@pytest.mark.kernels
def test_the_fastest_that_fits_and_computes_the_same_is_chosen_and_written(tmp_path):
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    child = _child(str(PROGRAM), TRITON_INTERPRET="1", PYTHONPATH=path, MOVA_TILES=str(tmp_path))
    assert child.returncode == 0, child.stdout + child.stderr[-3000:]
    table = json.loads((tmp_path / "sm_90.json").read_text())
    assert table["arch"] == "sm_90" and table["device"] == "an interpreter" and {"torch", "triton"} <= table.keys()
    # By the program's clock more rows are faster; 32 do not fit, and with 16 in 4 warps the gradients are wrong. The
    # forward gains less than 3%.
    expected = {"256 float32": {"rows": 16, "cols": 256, "warps": 8, "programs": None, "sums": 256}}
    assert table["tiles"] == dict.fromkeys(("rms_norm_bwd_kernel", "rms_norm_rope_bwd_kernel"), expected)
    (line,) = (line for line in child.stdout.splitlines() if line.startswith("rms_norm_bwd_kernel"))
    assert line.endswith("3 of 18 candidates do not fit, 3 compute something else")
