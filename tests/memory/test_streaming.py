"""Streamed weights: the same numbers as resident ones to the bit, from every source, and errors that say why."""

import os
import shutil
import time
from dataclasses import replace

import pytest
import torch
from models.test_towers import TINY, build, inputs

from mova_engine.adapters import add_lora, lora_parameters
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import listed_components, load_mova, save_mova
from mova_engine.checkpoints.quantised_files import open_component
from mova_engine.errors import MovaError
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.memory.streaming import StreamedModel, WeightStream, layer_count
from mova_engine.memory.weight_sources import HostArena, LayerUnit, StoredWeights
from mova_engine.models.modality import modalities
from mova_engine.models.mova import ForwardInputs
from mova_engine.ops import bind
from mova_engine.rehearsal.absent_files import _AtOnce


@pytest.fixture
def ops(backend):
    return bind(backend)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, cpu = tmp_path_factory.mktemp("model") / "tiny", get_backend("cpu")
    save_mova(build(bind(cpu), cpu), path)
    return path


def loaded(ops, folder, **options):
    return load_mova(folder, ops, **{"device": ops.device, **options}).requires_grad_(False)


def opened(folder):
    return {name: open_component(folder / name) for name in listed_components(folder)}


def stream(mova, backend, folder, kind, **options):
    """The model with its layers in a source; what is no layer lies on the device."""
    device = backend.device()

    def source(units):
        if kind == "host":
            return HostArena(units, device)
        return StoredWeights(units, opened(folder), device)

    return StreamedModel(mova, source, device=device, poison=True, **options)


def streamed(ops, backend, folder, kind, **options):
    mova = loaded(ops, folder)
    return mova, stream(mova, backend, folder, kind, **options)


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("kind", ["host", "files"])
def test_streamed_is_resident_to_the_bit(ops, backend, folder, kind, slots):
    args = modalities(*inputs(backend))
    with torch.no_grad():
        expected = [loaded(ops, folder)(*args, expert=expert) for expert in (0, 1)]
    mova, model = streamed(ops, backend, folder, kind, slots=slots)
    order = (0, 0, 1, 1, 0)
    model.stream.plan(unit for expert in order for unit in model.units(expert))
    with torch.no_grad():
        for expert in order:
            found = mova(*args, expert=expert)
            assert equal(found, expected[expert])
    report, size = model.stream.report(), max(unit.bytes for unit in model.stream.units)
    # Every unit of a pass is copied once, but for those that are there still.
    assert report.unforeseen == 0 and report.ring_bytes == slots * size
    assert report.copies <= layer_count(mova) * len(order)
    assert report.copies >= (layer_count(mova) - slots) * len(order)
    model.stream.close()
    mova.streamed = None
    with pytest.raises((RuntimeError, ValueError), match="meta"), torch.no_grad():
        mova(*args)


def test_forwards_side_by_side_copy_each_layer_once(ops, backend, folder):
    video, audio = modalities(*inputs(backend))
    other = replace(video, text=video.text * 0.5)
    calls = [ForwardInputs(video, audio), ForwardInputs(other, audio), ForwardInputs(video, audio, bridge=False)]
    resident = loaded(ops, folder)
    mova, model = streamed(ops, backend, folder, "files")
    with torch.no_grad():
        expected = [resident(*call[:2], bridge=call[2], expert=1) for call in calls]
        model.plan([(1, len(calls))])
        found = mova.forward_side_by_side(calls, expert=1)
        assert all(map(equal, found, expected)) and not equal(expected[0], expected[2])
        report = model.stream.report()
        assert (report.copies, report.unforeseen) == (layer_count(mova), 0)
        # Resident models take the same path; nothing planned: the stream plans for all of them.
        assert all(map(equal, resident.forward_side_by_side(calls, expert=1), expected))
        assert all(map(equal, mova.forward_side_by_side(calls, expert=1), expected))
    assert model.stream.report().unforeseen == 0


def test_a_shared_module_lies_on_the_host_once(ops, backend, folder):
    _, model = streamed(ops, backend, folder, "host")
    chunks = [chunk for unit in model.stream.units for chunk in unit.chunks]
    own = {id(chunk.module): chunk.end - chunk.begin for chunk in chunks}
    assert model.stream.source.arena.nbytes == sum(own.values()) < sum(unit.bytes for unit in model.stream.units)


@pytest.mark.parametrize("policy", ["full", "selective", "selective on the host"])
@pytest.mark.parametrize("kind", ["host", "files"])
def test_gradients_of_adapters_are_those_of_a_resident_base(ops, backend, folder, kind, policy):
    policy, _, away = policy.partition(" ")
    args = modalities(*inputs(backend))

    def gradients(mova, runner, expert):
        mova.zero_grad(set_to_none=True)
        video, audio = mova(*args, expert=expert, runner=runner)
        (video.square().sum() + audio.square().sum()).backward()
        return [video, audio, *(p.grad for p in lora_parameters(mova).values() if p.grad is not None)]

    def adapted(mova):
        add_lora(mova, ("q", "v", "ffn.0"), 4, 8.0, torch.Generator().manual_seed(0))
        for index, parameter in enumerate(lora_parameters(mova).values()):
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        return mova

    resident, mova = adapted(loaded(ops, folder)), adapted(loaded(ops, folder))
    model, runner = stream(mova, backend, folder, kind), layer_runner(policy, bool(away), offload_saved=bool(away))
    for expert in (0, 1, 0):
        model.stream.plan((*model.units(expert), *model.units(expert, backward=True)))
        found = gradients(mova, runner, expert)
        expected = gradients(resident, layer_runner(policy), expert)
        assert len(found) == len(expected) > 2 and equal(found, expected)
    assert model.stream.report().unforeseen == 0


def test_selective_checkpointing_does_not_compare_copies_of_layers(ops, backend, folder, monkeypatch):
    """Copies in the calling thread, as in a dry run: the backward makes others than the forward did."""
    monkeypatch.setattr("mova_engine.memory.streaming.ThreadPoolExecutor", _AtOnce)
    test_gradients_of_adapters_are_those_of_a_resident_base(ops, backend, folder, "host", "selective")


def test_a_backward_without_checkpointing_is_refused(ops, backend, folder):
    mova, _ = streamed(ops, backend, folder, "host")
    with pytest.raises(MovaError, match="keep none of them for a backward"):
        mova(*modalities(*inputs(backend)))


def test_what_the_plan_does_not_name_comes_all_the_same(ops, backend, folder):
    args = modalities(*inputs(backend))
    with torch.no_grad():
        expected = loaded(ops, folder)(*args, expert=1)
        mova, model = streamed(ops, backend, folder, "files")
        model.stream.plan(model.units(0))
        assert equal(mova(*args, expert=1), expected)
    assert model.stream.report().unforeseen == layer_count(mova)


@pytest.mark.parametrize("change", ["shorter", "rewritten"])
def test_a_file_that_changes_under_way_is_one_line(ops, backend, folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    mova = loaded(ops, copy)
    stream(mova, backend, copy, "files")
    file = next((copy / "video_dit").glob("*.safetensors"))
    time.sleep(0.01)
    if change == "shorter":
        os.truncate(file, 4096)
    else:
        file.write_bytes(file.read_bytes())
    with torch.no_grad(), pytest.raises(MovaError, match="become shorter|was changed while weights are read"):
        mova(*modalities(*inputs(backend)))


def test_a_replaced_file_is_read_as_it_was(ops, backend, folder, tmp_path):
    """A new file in its place is another file: the one that is open stays."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    args = modalities(*inputs(backend))
    with torch.no_grad():
        expected = loaded(ops, copy)(*args)
        mova = loaded(ops, copy)
        stream(mova, backend, copy, "files")
        file = next((copy / "video_dit").glob("*.safetensors"))
        other = tmp_path / "other"
        other.write_bytes(b"x" * file.stat().st_size)
        other.replace(file)
        assert equal(mova(*args), expected)


def test_weights_that_are_missing_are_named(ops, backend, folder):
    mova = loaded(ops, folder)
    units = [LayerUnit.of({"video_dit.blocks.9": mova.video_dit.blocks[0]})]
    with pytest.raises(MovaError, match=r"video_dit does not hold blocks\.9\."):
        StoredWeights(units, opened(folder), backend.device())
    with pytest.raises(MovaError, match="at least 2 slots"):
        WeightStream(units, None, backend.device(), slots=1)


def test_stored_weights_are_converted_on_the_way(ops, backend, folder):
    args = modalities(*inputs(backend))
    with torch.no_grad():
        half = loaded(ops, folder, dtype=torch.bfloat16)
        expected = half(*args)
        stream(half, backend, folder, "files")
        assert equal(half(*args), expected)
    assert TINY.experts == 2
