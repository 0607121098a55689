"""Four ranks over HCCL: the collectives that training needs, and FSDP2 of a small tower."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RANKS = 4
WORKER = Path(__file__).parent / "distributed_worker.py"
# One group: the ranks run once, not once in each of the runner's processes.
pytestmark = [pytest.mark.npu, pytest.mark.xdist_group("ranks")]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def seen(npu, tmp_path_factory) -> dict:
    """What rank 0 of one run of the worker saw."""
    emulated = "ascend.emulator.kernel" in sys.modules
    if not emulated and torch.npu.device_count() < RANKS:
        pytest.skip(f"needs {RANKS} NPUs, this machine has {torch.npu.device_count()}")
    folder = tmp_path_factory.mktemp("distributed")
    # A crashed run leaves its messages, which pytest then clears with the folder.
    environment = {**os.environ, "EMU_NPU_DEVICES": str(RANKS), "EMU_HCCL_FOLDER": str(folder), "OMP_NUM_THREADS": "1"}
    result = folder / "seen.json"
    port = f"--master-port={_free_port()}"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}", port, WORKER, result]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert child.returncode == 0, child.stderr[-4000:]
    assert not list(folder.glob("emuhccl.*")), "messages were left behind"
    return json.loads(result.read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_collectives_as_rank_0_sees_them(seen, dtype):
    assert seen[dtype] == {
        "all_reduce SUM": [10, 10],
        "all_reduce AVG": [2.5, 2.5],
        "all_reduce MAX": [4, 4],
        "all_reduce MIN": [1, 1],
        "broadcast": [2, 2],
        "all_gather": [1, 1, 2, 2, 3, 3, 4, 4],
        "reduce_scatter": [6, 10],
        "all_to_all": [0, 1, 10, 11, 20, 21, 30, 31],
        "all_to_all uneven": [0, 1, 1, 2, 2, 2, 3, 3, 3, 3],
        "ring": [4, 4],
    }


def test_groups_of_a_mesh_and_objects(seen):
    assert seen["groups"] == {"mesh shard": [4], "mesh context": [3], "objects": [0, 1, 2, 3]}


def test_fsdp2_trains_as_one_process_does(seen):
    for name in ("losses", "norms"):
        assert seen["fsdp2"][name] == pytest.approx(seen["single"][name], rel=1e-5)
    assert seen["single"]["losses"][-1] < 0.5 * seen["single"]["losses"][0]


def test_fsdp2_in_bfloat16_stays_close(seen):
    assert seen["fsdp2-bfloat16"]["losses"] == pytest.approx(seen["single"]["losses"], rel=0.01)


def test_fused_adamw_refuses_sharded_parameters(seen):
    assert "does not take DTensor parameters" in seen["refusal"] and "AdamW(fused=True)" in seen["refusal"]
