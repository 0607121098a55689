"""When parts come to the device and leave it. The meta device stands for the device: it counts, and holds nothing."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import COMPONENTS
from mova_engine.config.stages import (
    AUDIO_VAE,
    DECODE_VIDEO,
    DENOISE,
    ENCODE_TEXT,
    SAMPLING,
    TEXT_ENCODER,
    VIDEO_VAE,
    ModelStage,
    held,
    stages,
)
from mova_engine.memory.residency import Part, PartReport, Residency, stage

META = torch.device("meta")
WORDS, PICTURES, WORK = (
    ModelStage("words", ("text",)),
    ModelStage("pictures", ("vae", "toy", "absent")),
    ModelStage("work", ("tower",)),
)
ORDER = (WORDS, replace(PICTURES, beside=("tower",)), WORK)


class Holder:
    """Like a codec: a module that moves, under the name that a residency knows."""

    def __init__(self, weights: nn.Module | None) -> None:
        self.weights = weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.ones(3))


def devices(module: nn.Module) -> set[str]:
    return {x.device.type for x in [*module.parameters(), *module.buffers()]}


@pytest.fixture
def reads() -> list[str]:
    return []


@pytest.fixture
def text() -> Holder:
    return Holder(nn.Linear(10, 10, bias=False))


@pytest.fixture
def vae() -> Tied:
    return Tied()


@pytest.fixture
def residency(reads, text, vae) -> Residency:
    """Text encoder, 400 bytes, dropped when its stage is over; codec, 76, that waits on the host; tower, 20, that
    stays; an embedded codec.
    """

    def read(device: torch.device) -> None:
        reads.append(device.type)
        text.weights = nn.Linear(10, 10, bias=False, device=device)

    parts = [
        Part("text", text, read, waits="files"),
        Part("vae", vae),
        Part("tower", nn.Linear(5, 1, bias=False), stays=True),
        Part("toy", Holder(None)),
    ]
    return Residency(META, parts, ORDER)


def test_a_part_is_on_the_device_within_its_stage_alone(residency, vae):
    before = {name: x.clone() for name, x in vae.state_dict().items()}
    with residency.stage("pictures"):
        assert devices(vae) == {"meta"}
        assert vae.first.weight is vae.second.weight, "tied weights stay tied"
    assert devices(vae) == {"cpu"} and vae.first.weight is vae.second.weight
    assert all(torch.equal(x, before[name]) for name, x in vae.state_dict().items())


def test_what_waits_in_files_is_dropped_and_read_again(residency, reads, text):
    for _ in range(3):
        with residency.stage("words"):
            assert devices(text.weights) == {"meta"}
        assert text.weights is None
    assert reads == ["meta"] * 2, "the first time it came from the host"


def test_what_was_not_needed_is_dropped_when_asked_for(residency, reads, text, vae):
    residency.drop_unused()
    assert text.weights is None and devices(vae) == {"cpu"}
    with residency.stage("words"):
        assert devices(text.weights) == {"meta"} and reads == ["meta"]
        residency.drop_unused()
        assert text.weights is not None, "it is in use"


def test_stages_nest_and_end_with_errors_too(residency, vae):
    with pytest.raises(KeyError, match="inside"), residency.stage("pictures"), residency.stage("words"):
        with residency.stage("pictures"):
            pass
        assert devices(vae) == {"meta"}, "an outer stage uses it"
        raise KeyError("inside")
    assert devices(vae) == {"cpu"}
    assert [event.what for event in residency.report().events if event.part == "vae"] == ["loaded", "evicted"]


def test_a_stage_that_nobody_declared_is_refused(residency):
    with pytest.raises(KeyError, match="word"), residency.stage("word"):
        pass
    with stage(None, "word"):
        pass


def test_the_report_counts_bytes_moves_and_the_peak(residency):
    with residency.stage("words"):
        pass
    with stage(residency, "pictures"):
        pass
    report = residency.report()
    assert [(event.part, event.what, event.resident) for event in report.events] == [
        ("text", "loaded", 420),
        ("text", "dropped", 20),
        ("vae", "loaded", 96),
        ("toy", "loaded", 96),
        ("toy", "evicted", 96),
        ("vae", "evicted", 20),
    ]
    assert report.peak == {"text": 400, "tower": 20} and report.peak_bytes == 420
    assert report.stages == {"words": {"text": 400, "tower": 20}, "pictures": {"vae": 76, "tower": 20, "toy": 0}}
    assert report.parts == {
        "text": PartReport(400, 0, 1, 1, False),
        "vae": PartReport(76, 0, 1, 1, False),
        "tower": PartReport(20, 0, 0, 0, True),
        "toy": PartReport(0, 0, 1, 1, False),
    }
    assert "peak 0.000 GB: text, tower" in str(report)


def sampled(memory: MemoryConfig, calls: int = 2) -> tuple[Residency, list[str]]:
    """The stages of so many calls of a pipeline whose parts have 4, 8, 12, ... bytes and lie in files at first."""
    reads: list[str] = []

    def part(index: int, name: str) -> Part:
        module = nn.Linear(index + 1, 1, bias=False, device="meta")

        def read(device: torch.device) -> None:
            reads.append(name)
            # Named as the real device would be: meta is where nothing has been read.
            module.weight = nn.Parameter(torch.ones(1, index + 1, device=device), requires_grad=False)

        return Part(name, module, read, "files" if memory.idle == "files" else "host")

    names = (TEXT_ENCODER, VIDEO_VAE, AUDIO_VAE, *COMPONENTS)
    residency = Residency("cpu", [part(i, name) for i, name in enumerate(names)], stages(memory))
    for _ in range(calls):
        for name in SAMPLING:
            with residency.stage(name):
                pass
    return residency, reads


@pytest.mark.parametrize("idle", ["host", "files", "device"])
@pytest.mark.parametrize("expert", ["host", "device"])
def test_each_stage_has_what_is_declared_of_it(idle, expert):
    memory = MemoryConfig(idle=idle, expert=expert)
    residency, reads = sampled(memory)
    report, parts = residency.report(), {TEXT_ENCODER, VIDEO_VAE, AUDIO_VAE, *COMPONENTS}
    order = [one for one in stages(memory) if one.name in SAMPLING]
    assert {name: set(there) for name, there in report.stages.items()} == {
        name: set(there) for name, there in held(order, parts).items()
    }
    assert report.peak_bytes == max(sum(held.values()) for held in report.stages.values())
    once = sorted(parts)
    assert sorted(set(reads)) == once
    assert (sorted(reads) == once) == (idle != "files"), "what waits on the host is never read again"


def test_files_are_read_in_the_order_of_use():
    for calls in (1, 2):
        _, reads = sampled(MemoryConfig(), calls)
        tower, low = ["video_dit", "audio_dit", "dual_tower_bridge"], ["video_dit_2"]
        assert reads == [TEXT_ENCODER, VIDEO_VAE, *tower, *low, AUDIO_VAE]


def test_the_text_encoder_never_lies_beside_the_towers():
    report = sampled(MemoryConfig(), 3)[0].report()
    assert set(report.stages[ENCODE_TEXT]) == {TEXT_ENCODER}
    assert set(report.stages[DENOISE[1]]) == set(COMPONENTS)
    assert set(report.stages[DECODE_VIDEO]) == {VIDEO_VAE, *COMPONENTS}


def test_reading_ahead_goes_to_the_host_and_is_no_visit_to_the_device():
    residency, reads = sampled(MemoryConfig(expert="host"), calls=0)
    residency.read_ahead("video_dit", "video_dit_2", "no part")
    assert reads == ["video_dit", "video_dit_2"] and not residency.report().events
    with residency.stage(DENOISE[0]):
        pass
    assert reads[2:] == ["audio_dit", "dual_tower_bridge"]
    assert residency.report().parts["video_dit"] == PartReport(16, 0, 1, 1, False)
    residency, reads = sampled(MemoryConfig(idle="files", expert="host"), calls=0)
    residency.read_ahead("video_dit")
    assert not reads, "the host keeps nothing of what waits in files"


def test_a_device_without_room_leaves_a_module_as_it_was(monkeypatch):
    module = Tied()
    residency = Residency(META, [Part("vae", module)], ORDER)
    copied = torch.Tensor.to

    def full(x, *args, **kwargs):
        if x.shape == (3,):
            raise torch.OutOfMemoryError("no room")
        return copied(x, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(torch.OutOfMemoryError), residency.stage("pictures"):
        pass
    assert devices(module) == {"cpu"} and not residency.report().events


def test_names_are_their_own():
    with pytest.raises(ValueError, match="each part needs a different name"):
        Residency(META, [Part("a", Holder(None)), Part("a", Holder(None))])
