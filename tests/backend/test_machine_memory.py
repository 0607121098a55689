"""The memory that a process may use, by fake trees of what Linux tells of it."""

import pytest

from mova_engine.backend import cpu, describe_backend
from mova_engine.backend.machine_memory import machine_memory
from mova_engine.curation.engine_processes import ProcessPool
from mova_engine.curation.engine_work import EngineLimits

MIB = 2**20
V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), ("memory.max", "memory.current", "")
# What version 1 says of a group without a limit.
NO_LIMIT = 2**63 - 4096


@pytest.fixture
def tree(tmp_path):
    """A machine of 1024 MiB, of which 800 are free; `group` adds a control group whose files take 30 MiB of cache."""

    class Tree:
        root = tmp_path

        def write(self, path, text):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)

        def of(self, *lines):
            self.write("proc/self/cgroup", "".join(f"{line}\n" for line in lines))

        def group(self, names, path, limit, used):
            known, took, cached = names
            self.write(f"{path}/{known}", f"{limit}\n")
            self.write(f"{path}/{took}", f"{used * MIB}\n")
            self.write(
                f"{path}/memory.stat",
                f"anon {MIB}\n{cached}active_file {10 * MIB}\n{cached}inactive_file {20 * MIB}\n",
            )

    made = Tree()
    made.write("proc/meminfo", f"MemTotal: {1024 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {800 * 1024} kB\n")
    return made


def test_a_machine_without_groups(tree):
    assert machine_memory(tree.root) == (800 * MIB, 1024 * MIB)


@pytest.mark.parametrize(
    "names, mount, line",
    [
        (V2, "sys/fs/cgroup", "0::/"),
        # A container that does not see the host's groups, though it is told its place among them.
        (V2, "sys/fs/cgroup", "0::/../../system.slice/box"),
        (V1, "sys/fs/cgroup/memory", "4:memory:/docker/0123"),
        (V1, "sys/fs/cgroup/memory", "4:cpu,memory:/"),
    ],
)
def test_a_container_with_a_limit(tree, names, mount, line):
    tree.of("9:name=systemd:/", line)
    tree.group(names, mount, 256 * MIB, 200)
    assert machine_memory(tree.root) == ((256 - 200 + 30) * MIB, 256 * MIB)


@pytest.mark.parametrize(
    "names, mount, line, none",
    [
        (V2, "sys/fs/cgroup", "0::/slurm/job_1/step_0", "max"),
        (V1, "sys/fs/cgroup/memory", "4:memory:/slurm/job_1/step_0", NO_LIMIT),
    ],
)
def test_the_least_limit_of_all_groups_around_a_process(tree, names, mount, line, none):
    tree.of(line)
    tree.group(names, mount, none, 900)
    tree.group(names, f"{mount}/slurm", 700 * MIB, 600)
    tree.group(names, f"{mount}/slurm/job_1", 512 * MIB, 100)
    tree.group(names, f"{mount}/slurm/job_1/step_0", none, 90)
    tree.group(names, f"{mount}/slurm/job_2", MIB, 1)
    # The job may have 512 MiB, but all jobs together leave 130.
    assert machine_memory(tree.root) == (130 * MIB, 512 * MIB)


def test_a_group_that_is_over_its_limit_has_nothing_free(tree):
    tree.of("0::/")
    tree.group(V2, "sys/fs/cgroup", 64 * MIB, 128)
    assert machine_memory(tree.root) == (0, 64 * MIB)


def test_a_system_that_tells_nothing(tmp_path, monkeypatch):
    free, whole = machine_memory(tmp_path)
    assert free is None and whole > 0
    monkeypatch.setattr(cpu, "machine_memory", lambda: (None, 2**50))
    backend = describe_backend("cpu")
    free, whole = backend.free_memory()
    assert 0 < whole - free < 2**40, "what this process has is not free"


def test_workers_of_curation_share_what_the_backend_may_use(tree, monkeypatch):
    tree.of("0::/")
    tree.group(V2, "sys/fs/cgroup", 256 * MIB, 200)
    monkeypatch.setattr(cpu, "machine_memory", lambda: machine_memory(tree.root))
    assert describe_backend("cpu").free_memory() == (86 * MIB, 256 * MIB)
    assert ProcessPool(EngineLimits(workers=4))._memory == 64 * MIB
