"""When parts come to the device and leave it. The meta device stands for the device: it counts, and holds nothing."""

import pytest
import torch
from torch import nn

from mova_engine.memory.residency import Part, PartReport, Residency, stage

META = torch.device("meta")


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
def loads() -> list[torch.device]:
    return []


@pytest.fixture
def residency(loads) -> Residency:
    """Text encoder, 400 bytes, that can be loaded again; codec, 76, that waits on the host; tower, 20, that stays."""

    def reload(device: torch.device) -> nn.Module:
        loads.append(device)
        return nn.Linear(10, 10, bias=False, device=device)

    parts = [
        Part("text", Holder(nn.Linear(10, 10, bias=False)), reload),
        Part("vae", Tied()),
        Part("tower", nn.Linear(5, 1, bias=False), stays=True),
        Part("toy", Holder(None)),
    ]
    return Residency(META, parts)


def test_a_part_is_on_the_device_within_its_block_alone(residency):
    vae = residency._parts["vae"].value
    before = {name: x.clone() for name, x in vae.state_dict().items()}
    with residency.use("vae") as module:
        assert module is vae and devices(module) == {"meta"}
        assert module.first.weight is module.second.weight, "tied weights stay tied"
    assert devices(vae) == {"cpu"} and vae.first.weight is vae.second.weight
    assert all(torch.equal(x, before[name]) for name, x in vae.state_dict().items())


def test_what_can_be_loaded_again_is_dropped(residency, loads):
    text = residency._parts["text"].value
    for _ in range(3):
        with residency.use("text") as given:
            assert given is text and devices(text.weights) == {"meta"}
        assert text.weights is None
    assert loads == [META] * 2, "the first time it came from the host"


def test_what_was_not_needed_is_dropped_when_asked_for(residency, loads):
    residency.drop_unused()
    assert residency._parts["text"].value.weights is None and devices(residency._parts["vae"].value) == {"cpu"}
    with residency.use("text") as text:
        assert devices(text.weights) == {"meta"} and loads == [META]
        residency.drop_unused()
        assert text.weights is not None, "it is in use"


def test_blocks_nest_and_end_with_errors_too(residency):
    with pytest.raises(KeyError, match="inside"), residency.use("vae"), residency.use("vae") as vae:
        with residency.use("vae"):
            pass
        assert devices(vae) == {"meta"}
        raise KeyError("inside")
    assert devices(vae) == {"cpu"}
    assert [event.what for event in residency.report().events] == ["loaded", "evicted"]


def test_the_report_counts_bytes_moves_and_the_peak(residency):
    with residency.use("text"):
        pass
    with stage(residency, "vae", "toy", "unknown"):
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
    assert report.parts == {
        "text": PartReport(400, 1, 1, False),
        "vae": PartReport(76, 1, 1, False),
        "tower": PartReport(20, 0, 0, True),
        "toy": PartReport(0, 1, 1, False),
    }
    assert "peak 0.000 GB: text, tower" in str(report)


def test_online_work_keeps_what_has_come(loads):
    residency = Residency(META, [Part("vae", Tied())], keep=True)
    for _ in range(2):
        with residency.use("vae"):
            pass
    report = residency.report()
    assert report.parts["vae"].resident and [event.what for event in report.events] == ["loaded"]


def test_a_device_without_room_leaves_a_module_as_it_was(monkeypatch):
    module = Tied()
    residency = Residency(META, [Part("vae", module)])
    copied = torch.Tensor.to

    def full(x, *args, **kwargs):
        if x.shape == (3,):
            raise torch.OutOfMemoryError("no room")
        return copied(x, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(torch.OutOfMemoryError), residency.use("vae"):
        pass
    assert devices(module) == {"cpu"} and not residency.report().events


def test_names_are_their_own():
    with pytest.raises(ValueError, match="names of their own"):
        Residency(META, [Part("a", Holder(None)), Part("a", Holder(None))])
