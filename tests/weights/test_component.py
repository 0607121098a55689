"""One component's folder: what is read, what is refused and in which words, and that saving never loses anything."""

import errno
import json
import os
import resource
import stat
from contextlib import contextmanager

import pytest
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mova_engine.errors import MovaError
from mova_engine.files import tensors
from mova_engine.files.folders import UNFINISHED, replaced_folder
from mova_engine.files.tensors import load_component, read_config, save_component, stored_tensors

STEM = "diffusion_pytorch_model"
CPU = {"device": "cpu", "dtype": None}


def _net(dim: int = 8) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(dim, 16), nn.GELU(), nn.Linear(16, dim, bias=False))
    net.register_buffer("steps", torch.arange(3))
    return net


@pytest.fixture
def net():
    return _net()


@pytest.fixture
def folder(net, tmp_path):
    save_component(net, {"dim": 8}, tmp_path / "net", "Net")
    return tmp_path / "net"


@pytest.fixture
def shards(net, tmp_path):
    save_component(net, {"dim": 8}, tmp_path / "shards", "Net", max_shard_bytes=600)
    return tmp_path / "shards"


def _same(module: nn.Module, other: nn.Module) -> bool:
    a, b = module.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("which", ["folder", "shards"])
def test_what_was_saved_is_loaded(which, net, request):
    path = request.getfixturevalue(which)
    with torch.device("meta"):
        other = _net()
    other[0].weight.requires_grad_(False)
    report = load_component(other, path, **CPU)
    assert _same(net, other) and report == ((), ())
    assert [p.requires_grad for p in other.parameters()] == [False, True, True]
    assert read_config(path) == {"_class_name": "Net", "dim": 8}


def test_shards_keep_their_limit_and_the_index_names_them(net, shards):
    index = json.loads((shards / f"{STEM}.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in net.state_dict().values())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"{STEM}-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 1
    for file in files:
        held = load_file(shards / file)
        assert sorted(held) == sorted(name for name, where in index["weight_map"].items() if where == file)
        assert sum(t.numel() * t.element_size() for t in held.values()) <= 600
        with safe_open(shards / file, "pt") as tensors:
            assert tensors.metadata() == {"format": "pt"}


def test_dtype_is_converted_for_floating_point_only(folder):
    other = _net()
    load_component(other, folder, device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
    assert other.steps.dtype == torch.int64


def test_loaded_weights_do_not_depend_on_the_file(folder, net):
    other = _net()
    load_component(other, folder, **CPU)
    os.truncate(folder / f"{STEM}.safetensors", 0)
    assert _same(net, other)


def test_all_mismatches_come_in_one_line(folder):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.extra = nn.ParameterList(torch.zeros(1) for _ in range(5))
            self.add_module("0", nn.Linear(4, 16))

    with pytest.raises(MovaError) as caught:
        load_component(Other(), folder, **CPU)
    text = str(caught.value)
    assert "\n" not in text
    assert "1 of another shape (0.weight is [16, 8], the model needs [16, 4])" in text
    assert "5 missing (extra.0, extra.1, extra.2, ...)" in text
    assert "2 unexpected (2.weight, steps)" in text


def test_a_lenient_load_reports_names_and_still_refuses_shapes(folder):
    other = nn.Sequential(nn.Linear(8, 16), nn.Linear(3, 3))
    report = load_component(other, folder, strict=False, **CPU)
    assert report.missing == ("1.weight", "1.bias") and report.unexpected == ("2.weight", "steps")
    with pytest.raises(MovaError, match="of another shape"):
        load_component(_net(4), folder, strict=False, **CPU)


def test_a_failed_load_changes_nothing(folder):
    other = _net(4)
    before = {name: t.clone() for name, t in other.state_dict().items()}
    with pytest.raises(MovaError):
        load_component(other, folder, **CPU)
    assert all(torch.equal(before[name], t) for name, t in other.state_dict().items())


@pytest.mark.parametrize(
    "content, words",
    [(lambda raw: raw[:-5], "damaged"), (lambda raw: raw[:10], "damaged"), (lambda raw: b"", "damaged")],
    ids=["truncated", "header cut", "empty"],
)
def test_a_damaged_file_is_named(folder, content, words):
    path = folder / f"{STEM}.safetensors"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(MovaError, match=rf"{STEM}.safetensors is {words}.*again"):
        load_component(_net(), folder, **CPU)


def test_a_missing_shard_is_named(shards):
    (shards / f"{STEM}-00002-of-00002.safetensors").unlink()
    with pytest.raises(MovaError, match=f"names {STEM}-00002-of-00002.safetensors, which is not there"):
        load_component(_net(), shards, **CPU)


@pytest.mark.parametrize(
    "weight_map, words",
    [
        (None, "has no weight_map"),
        ({"0.weight": 3}, "has no weight_map"),
        ({"0.weight": "../net/x.safetensors"}, "not a file of its own folder"),
        ({"ghost": f"{STEM}-00001-of-00002.safetensors"}, r"1 absent \(ghost in"),
    ],
)
def test_a_wrong_index_is_refused(shards, weight_map, words):
    (shards / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(MovaError, match=words):
        stored_tensors(shards)


def test_pickles_are_refused_unopened(tmp_path):
    (tmp_path / f"{STEM}.bin").write_bytes(b"whatever")
    with pytest.raises(MovaError, match="pickle.*never loaded: convert it to safetensors"):
        load_component(_net(), tmp_path, **CPU)


@pytest.mark.parametrize("text, words", [("{", "not readable JSON"), ("[]", "JSON object"), (None, "does not exist")])
def test_a_bad_config_is_named(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(MovaError, match=f"config.json.*{words}"):
        read_config(tmp_path)


def test_an_absent_folder_and_a_folder_without_weights(tmp_path):
    with pytest.raises(MovaError, match="is not a folder"):
        stored_tensors(tmp_path / "none")
    save_file({"a": torch.zeros(1)}, tmp_path / f"{STEM}.fp16.safetensors")
    with pytest.raises(MovaError, match=f"has no {STEM}.safetensors.*it holds {STEM}.fp16.safetensors"):
        stored_tensors(tmp_path)


def test_files_have_ordinary_permissions(folder):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1 and modes.pop() & stat.S_IRUSR


def test_views_and_tied_weights_are_written_out(tmp_path):
    weight = torch.randn(6, 4)
    tensors = {"a": weight, "tied": weight, "turned": weight.T, "row": weight[2]}
    save_component(tensors, {}, tmp_path / "net", "Net")
    held = load_file(tmp_path / "net" / f"{STEM}.safetensors")
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items())


def test_meta_tensors_cannot_be_saved(tmp_path):
    with pytest.raises(MovaError, match="0.weight is on the meta device"):
        save_component(nn.Sequential(nn.Linear(2, 2, device="meta")), {}, tmp_path / "net", "Net")
    assert not any(tmp_path.iterdir())


def test_a_folder_that_holds_anything_is_not_replaced(folder, net, tmp_path):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(MovaError, match="net exists and holds files; it is not replaced: give another folder"):
        save_component(_net(), {"dim": 9}, folder, "Net")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(MovaError, match="file is a file, which is not replaced"):
        save_component(net, {}, tmp_path / "file", "Net")
    (tmp_path / "empty").mkdir()
    save_component(net, {}, tmp_path / "empty", "Net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "net"]


def test_folders_beside_are_used_only_where_a_save_left_them(net, tmp_path):
    theirs, left = tmp_path / ".net.new", tmp_path / ".other.new"
    for path in (theirs, left):
        path.mkdir()
        (path / "half").write_text("")
    with pytest.raises(MovaError, match=r"\.net\.new, where the folder is to be written first, holds other files"):
        save_component(net, {}, tmp_path / "net", "Net")
    (left / UNFINISHED).touch()
    save_component(net, {}, tmp_path / "other", "Net")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".net.new", "other"]


def own(folder) -> bool:
    """Stands for the proof that the engine wrote a folder."""
    return True


def replace(folder, net) -> None:
    with replaced_folder(folder, own) as fresh:
        tensors.write_component(net, {"dim": 9}, fresh, "Net")


def test_what_the_engine_is_known_to_have_written_is_replaced(folder):
    replace(folder, _net())
    assert read_config(folder)["dim"] == 9
    assert [path.name for path in folder.parent.iterdir()] == ["net"]


@contextmanager
def small_files(size: int = 700):
    """No file may grow above `size` bytes: a write that really fails in the middle.

    Not a fixture, which would outlast the call: pytest's own report may go to a longer file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_old_folder(folder, net):
    failure = pytest.raises(MovaError, match=r"cannot write .*net: File too large; what was there before is untouched")
    with failure, small_files():
        replace(folder, _net())
    other = _net()
    load_component(other, folder, **CPU)
    assert _same(net, other) and read_config(folder)["dim"] == 8
    assert [path.name for path in folder.parent.iterdir()] == ["net"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_clear_line(folder, net, error, monkeypatch):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(MovaError, match=r"^cannot write .*net: no space left on the disk; what was .* untouched$"):
        replace(folder, _net())
    monkeypatch.undo()
    other = _net()
    load_component(other, folder, **CPU)
    assert _same(net, other)


def test_a_failure_while_exchanging_puts_the_old_folder_back(folder, net, monkeypatch):
    rename = tensors.Path.rename

    def failing(self, target):
        if self.name.endswith(".new"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(tensors.Path, "rename", failing)
    with pytest.raises(MovaError, match="untouched"):
        replace(folder, _net())
    monkeypatch.undo()
    other = _net()
    load_component(other, folder, **CPU)
    assert _same(net, other)


def test_an_interrupted_exchange_says_where_the_old_folder_is(folder):
    folder.rename(folder.with_name(".net.old"))
    with pytest.raises(MovaError, match=r"an interrupted save left it as .*\.net\.old"):
        stored_tensors(folder)
