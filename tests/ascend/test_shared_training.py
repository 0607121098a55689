"""The trainer in several processes over HCCL: context parallelism, sharded weights, and a checkpoint of theirs."""

import pytest

from ascend.ranks import launch
from mova_engine.data.synthetic.bounce import generate
from mova_engine.train.metrics import read_metrics

# One group, beside that of test_distributed: its runs follow one another in one of the runner's processes.
pytestmark = [pytest.mark.npu, pytest.mark.xdist_group("trainers")]
SMALL = (
    "--loader.num-fit-clips",
    4,
    "--validation.every",
    0,
    "--log.every",
    1,
    "--log.no-tensorboard",
    "--optim.lr",
    1e-3,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, 6, seed=3)
    return folder


@pytest.fixture(scope="module")
def losses(npu, clips, tmp_path_factory):
    """`losses("run", 4, "--steps", 3, ...)`: train in four processes and return what each step of the run lost."""
    folder = tmp_path_factory.mktemp("runs")

    def train(run: str, ranks: int, *options: str | int) -> list[float]:
        command = ("-m", "mova_engine.train", "--device", "npu", "--recipe", "nano", "--data", clips)
        launch(ranks, folder, *command, "--out", folder / run, *SMALL, *options)
        return [row["loss"] for row in read_metrics(folder / run / "metrics.jsonl")]

    return train


@pytest.fixture(scope="module")
def alone(losses) -> list[float]:
    """The losses of three steps in one process."""
    return losses("alone", 1, "--steps", 3, "--loader.batch", 2)


def test_ring_and_sharded_weights_train_as_one_process_does_and_go_on_alone(losses, alone):
    options = ("--parallel.context-parallel", 2, "--parallel.ulysses", 1, "--parallel.shard", "--loader.batch", 2)
    assert losses("ring", 2, "--steps", 2, *options) == pytest.approx(alone[:2], rel=1e-5)
    assert losses("ring", 1, "--steps", 3, "--loader.batch", 2) == pytest.approx(alone, rel=1e-5)


def test_offloaded_weights_train_as_one_process_does(losses, alone):
    """Gradients, norms and the optimizer on the host, exchanges on the device."""
    options = ("--parallel.context-parallel", 2, "--parallel.shard", "--memory.optimizer", "host", "--loader.batch", 2)
    assert losses("offloaded", 2, "--steps", 2, *options) == pytest.approx(alone[:2], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        # Ring and Ulysses at once; the published mesh in small: two processes for a clip, two for different clips.
        ("--parallel.context-parallel", 4, "--parallel.ulysses", 2, "--loader.batch", 2),
        ("--parallel.context-parallel", 2, "--parallel.shard", "--loader.batch", 1),
    ],
    ids=["ring-and-ulysses", "shared-and-sharded"],
)
def test_four_processes_train_as_one_does(losses, alone, options, request):
    assert losses(request.node.callspec.id, 4, "--steps", 3, *options) == pytest.approx(alone, rel=1e-5)
