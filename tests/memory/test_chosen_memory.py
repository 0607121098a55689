"""What the planner chooses for a run: within the limits, kept where it is told, and refused with what would fit."""

from dataclasses import replace

import pytest

from mova_engine.backend import Backend, get_backend
from mova_engine.config.memory import MODES, MemoryConfig, memory_of_word
from mova_engine.config.model import get_preset
from mova_engine.errors import MovaError
from mova_engine.memory.chosen_memory import choose_memory
from mova_engine.predict.job import Job, Layout

M360 = get_preset("mova-360p")
SAMPLING, LORA = Job(M360, "inference"), Job(M360, "lora")


class Card(Backend):
    """A card that is not here: what it says of itself, and its free memory in GB."""

    name = "cuda"

    def __init__(self, title: str, free: float) -> None:
        self._title, self._free = title, round(free * 1e9)

    def describe(self) -> str:
        return self._title

    def free_memory(self) -> tuple[int, int]:
        return self._free, self._free


RTX4090, RTX3090 = (Card(f"NVIDIA GeForce RTX {number}", 25.2) for number in (4090, 3090))


def auto(task="inference", **decided) -> MemoryConfig:
    return replace(memory_of_word("auto", task), **decided)


def choose(job=SAMPLING, settings=None, backend=RTX4090, **limits):
    return choose_memory(settings or auto(job.task), job, Layout(), backend, **limits)


def test_each_word_is_settings_of_memory():
    assert [memory_of_word(word).mode for word in MODES["inference"]] == list(MODES["inference"])
    assert auto().undecided and not memory_of_word("disk").undecided
    assert auto().frozen == "activations", "what changes numbers is not left to the planner"
    with pytest.raises(MovaError, match="Did you mean 'stream'"):
        memory_of_word("strem")


def test_a_card_of_the_list_has_its_seconds_and_another_has_none():
    known, other = choose(ram="8GB"), choose(backend=RTX3090, ram="8GB")
    assert known.config == other.config and known.config.mode == "disk"
    assert known.words().startswith("memory: disk, planned 7.5 GB of 25.2") and "s a step" in known.words()
    assert other.words().endswith("seconds are not predicted for this device")


def test_limits_are_kept_and_never_above_what_is_free():
    small = choose(vram="8GB", ram="8GB")
    assert small.planned_bytes <= 8e9 and small.plan.memory.on_host <= 8e9
    assert small.sequential and "--sequential-guidance" in small.words()
    assert choose(vram="80GB", ram="8GB").planned_bytes <= 25.2e9


def test_what_is_decided_stays():
    assert choose(settings=auto(idle="device"), ram="8GB").config.idle == "device"
    with pytest.raises(MovaError, match=r"would fit: without --memory.weights device"):
        choose(settings=auto(weights="device"), ram="8GB")
    with pytest.raises(MovaError, match="memory.optimizer host: sampling has no optimizer"):
        choose(settings=auto(optimizer="host"))
    # Nothing is open, and the limits are kept all the same.
    with pytest.raises(MovaError, match="the leanest .resident. needs"):
        choose(settings=MemoryConfig(), vram="24GB", ram="8GB")


@pytest.mark.parametrize(
    "job, limits, says",
    [
        (
            LORA,
            {"vram": "24GB", "ram": "12GB"},
            r"would fit: 23 GB of the host's memory .--ram 23GB.$",
        ),
        (SAMPLING, {"vram": "5GB", "ram": "8GB"}, r"would fit: --clip.frames \d+; or a device with 7 GB"),
        (LORA, {"vram": "8GB", "ram": "4GB"}, r"would fit: --vram 18GB and --ram 23GB"),
    ],
)
def test_a_refusal_says_what_would_fit(job, limits, says):
    with pytest.raises(MovaError, match=says):
        choose(job, **limits)


def test_a_cpu_has_no_memory_of_its_own():
    cpu = get_backend("cpu")
    assert choose(Job(get_preset("nano"), "lora", "fp32"), backend=cpu).config.mode == "resident"
    with pytest.raises(MovaError, match="--ram"):
        choose(backend=cpu, vram="12GB")
    with pytest.raises(MovaError, match=r"would fit: .*--ram \d+GB"):
        choose(backend=cpu, ram="2GB")
    assert "seconds are not predicted" in choose(Job(get_preset("nano"), "inference", "fp32"), backend=cpu).words()
