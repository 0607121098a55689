"""Folders with quantised weights: written whole or not at all, loaded, streamed to the bit, trained beside."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from models.test_towers import TINY, build, inputs
from safetensors.torch import load_file, save_file
from weights.test_component import small_files

from mova_engine.adapters import add_lora, lora_parameters, merge_folder, save_lora
from mova_engine.adapters.lora import linear_layers
from mova_engine.backend import get_backend
from mova_engine.checkpoints import quantised_files
from mova_engine.checkpoints.fingerprint import fingerprint
from mova_engine.checkpoints.folder import listed_components, load_mova, save_mova
from mova_engine.checkpoints.integrity import damage
from mova_engine.checkpoints.quantised_files import open_component
from mova_engine.commands.describe import main as describe
from mova_engine.errors import MovaError
from mova_engine.memory import quantise_folder as module
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.memory.quantise_folder import quantise_folder
from mova_engine.memory.quantised import hold_weights
from mova_engine.memory.streamed_model import open_streamed
from mova_engine.memory.streaming import StreamedModel
from mova_engine.memory.weight_sources import HostArena, StoredWeights
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import FORMATS, known_format
from mova_engine.ops import bind

# Sizes that every format takes: TINY's with wider layers.
SIZES = replace(
    TINY,
    video=replace(TINY.video, dim=64, ffn_dim=128, num_layers=2),
    audio=replace(TINY.audio, dim=64, ffn_dim=128, num_heads=2, num_layers=1),
    bridge=replace(TINY.bridge, visual_layers=2, audio_layers=1, visual_hidden_dim=64, audio_hidden_dim=64),
)
KINDS = ("nf4", "int8", "fp8", "gguf")
TARGETS = ("q", "v", "ffn.0")
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def cpu():
    return get_backend("cpu")


@pytest.fixture(scope="module")
def ops(cpu):
    return bind(cpu)


@pytest.fixture(scope="module")
def source(tmp_path_factory, cpu, ops):
    folder = tmp_path_factory.mktemp("models") / "source"
    save_mova(build(ops, cpu, SIZES), folder)
    return folder


@pytest.fixture(scope="module")
def folders(source):
    """Makes the folder of a format, once."""
    made = {}

    def make(kind):
        if kind not in made:
            out = source.parent / kind
            write_gguf(source, out) if kind == "gguf" else quantise_folder(source, out, kind)
            made[kind] = out
        return made[kind]

    return make


def write_gguf(source, out):
    """The folder's video expert as city96's conversions have it: Q8_0, the rest in float32, five dimensions flat."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    shutil.copytree(source, out)
    weights = load_file(out / "video_dit" / FILE)
    writer = gguf.GGUFWriter(out / "video_dit" / "wan-Q8_0.gguf", "wan")
    for name, tensor in weights.items():
        if tensor.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
            tensor = tensor.flatten()
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (out / "video_dit" / FILE).unlink()


def dtype_of(kind):
    """fp8 computes in bfloat16 alone."""
    return torch.bfloat16 if kind == "fp8" else torch.float32


def loaded(ops, folder, kind, **options):
    return load_mova(folder, ops, device="cpu", **{"dtype": dtype_of(kind), **options}).requires_grad_(False)


def plain_twin(ops, folder, kind, dtype=torch.float32):
    """A model of plain weights that has the values of a quantised folder's."""
    model = loaded(ops, folder, kind)
    for layer in linear_layers(model).values():
        if layer.weight_format is not None:
            layer.hold(None, {"weight": layer.weight_format.dequantise(layer.held())})
    return model.to(dtype)


def adapted(model):
    add_lora(model, TARGETS, 4, 8.0, torch.Generator().manual_seed(0))
    for index, parameter in enumerate(lora_parameters(model).values()):
        with torch.no_grad():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return model


def gradients(model, args, expert, runner=None):
    model.zero_grad(set_to_none=True)
    video, audio = model(*args, expert=expert, **({} if runner is None else {"runner": runner}))
    (video.square().sum() + audio.square().sum()).backward()
    return [video, audio, *(p.grad for p in lora_parameters(model).values() if p.grad is not None)]


def error(found, expected):
    return float((found.double() - expected.double()).norm().detach() / expected.double().norm())


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_is_resident_to_the_bit_and_so_are_gradients(ops, cpu, folders, kind):
    folder, args = folders(kind), modalities(*inputs(cpu))
    resident = adapted(loaded(ops, folder, kind))
    held = {x.weight_format.name for x in linear_layers(resident).values() if x.weight_format is not None}
    assert held == {"Q8_0" if kind == "gguf" else kind}
    with torch.no_grad():
        expected = [resident(*args, expert=expert) for expert in (0, 1)]
    expected_gradients, device = gradients(resident, args, 1), torch.device("cpu")

    opened = {name: open_component(folder / name) for name in listed_components(folder)}

    def stored(units):
        return StoredWeights(units, opened, device)

    # With what layers keep for the backward on the device, and on the host.
    runners = layer_runner("full"), layer_runner("selective", True, offload_saved=True)
    for make, runner in zip((stored, lambda units: HostArena(units, device, stored(units))), runners, strict=True):
        mova = adapted(loaded(ops, folder, kind))
        stream = StreamedModel(mova, make, device, poison=True)
        with torch.no_grad():
            for expert in (0, 1):
                assert all(map(torch.equal, mova(*args, expert=expert), expected[expert]))
        found = gradients(mova, args, 1, runner)
        assert len(found) == len(expected_gradients) > 2
        assert all(map(torch.equal, found, expected_gradients))
        stream.stream.close()


@pytest.mark.parametrize(("kind", "bound"), [("nf4", 1e-5), ("gguf", 1e-5), ("int8", 0.02), ("fp8", 0.08)])
def test_gradients_of_adapters_are_those_of_the_dequantised_weights(ops, cpu, folders, kind, bound):
    """In float64; int8 and fp8 quantise the activations too, and fp8 computes in bfloat16."""
    reference = bind(cpu, "reference")
    twin = adapted(plain_twin(reference, folders(kind), kind, torch.float64))
    model = adapted(loaded(ops, folders(kind), kind))
    args = [x.double() if x.is_floating_point() else x for x in inputs(cpu)]
    expected, found = gradients(twin, modalities(*args), 0), gradients(model, modalities(*inputs(cpu)), 0)
    whole = [torch.cat([x.double().flatten() for x in each]) for each in (found[2:], expected[2:])]
    assert 0 < error(*whole) < bound
    for name, parameter in lora_parameters(model).items():
        assert parameter.dtype == dtype_of(kind), name


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_changes_a_quantised_model_as_it_changes_the_original(ops, cpu, source, folders, kind):
    args = modalities(*inputs(cpu))
    changes = []
    for folder in (source, folders(kind)):
        model = loaded(ops, folder, kind)
        with torch.no_grad():
            before = model(*args)[0].double()
            changes.append(adapted(model)(*args)[0].double() - before)
    # Of NF4's 9 % error of weights, and of bfloat16's rounding of both outputs, some shows in the difference.
    assert 0 < error(changes[1], changes[0]) < 0.15


def test_layers_left_out_are_as_they_were(source, folders):
    before, after = (open_component(x / "video_dit") for x in (source, folders("nf4")))
    assert after.formats == ["nf4"] and len(after.quantised) == 20
    kept = [name for name in before.plain if name.removesuffix(".weight") not in after.quantised]
    one, other = (load_file(x / "video_dit" / FILE) for x in (source, folders("nf4")))
    assert kept and all(torch.equal(one[name], other[name]) for name in kept)
    assert {name.split(".")[0] for name in kept} >= {"patch_embedding", "text_embedding", "time_projection", "head"}
    assert all(name.startswith("blocks.") for name in after.quantised)


def test_a_folder_says_what_it_is(source, folders):
    folder = folders("int8")
    facts = json.loads((folder / "quantisation.json").read_text())
    row = facts["errors"]["video_dit.blocks.*.ffn.0"]
    assert facts["weights"] == "int8" and row["layers"] == 2 and 0.002 < row["relative"] < 0.006
    assert fingerprint(folder) == fingerprint(source) == facts["source_fingerprint"]
    assert damage(folder) is None
    assert "quantization_config" not in json.loads((folder / "video_dit" / "config.json").read_text())
    config = json.loads((folders("nf4") / "video_dit" / "config.json").read_text())["quantization_config"]
    assert config["bnb_4bit_quant_type"] == "nf4" and "head.head" in config["llm_int8_skip_modules"]
    spoilt = shutil.copytree(folder, folder.parent / "spoilt")
    file = spoilt / "video_dit" / FILE
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    assert damage(spoilt) == f"video_dit/{FILE} has other bytes than were written"


def test_describe_shows_formats_and_bytes_and_streaming_reads_headers_once(cpu, folders, capsys, monkeypatch):
    folder = folders("nf4")
    assert describe([str(folder)]) == 0
    table = capsys.readouterr().out.split("\nstored")[1].splitlines()
    rows = [line.split() for line in table]
    assert rows[1][:3] == ["video_dit", "F32", "49"] and rows[2][:3] == ["video_dit", "nf4", "20"]
    # Files have headers, maps of values and descriptions beside that.
    written = sum(each.stat().st_size for each in folder.glob("*/*.safetensors"))
    assert 0.5 < float(rows[-1][-1]) * 1e6 / written < 1
    read = []
    whole = quantised_files.stored_tensors
    monkeypatch.setattr(quantised_files, "stored_tensors", lambda of: read.append(of) or whole(of))
    opened = {name: open_component(folder / name) for name in listed_components(folder)}
    mova = Mova(SIZES, bind(cpu), "meta").requires_grad_(False)
    parts = open_streamed(mova, opened, cpu.device(), torch.float32, "files")
    assert len(parts) == len(read) == 4 and mova.streamed is not None


def test_other_bytes_of_one_layer_give_another_output(ops, cpu, folders, tmp_path):
    args = modalities(*inputs(cpu))
    changed = shutil.copytree(folders("nf4"), tmp_path / "changed")
    tensors = load_file(changed / "video_dit" / FILE)
    tensors["blocks.0.ffn.0.weight"][:64] ^= 0x77
    save_file(tensors, changed / "video_dit" / FILE)
    with torch.no_grad():
        one, other = (loaded(ops, x, "nf4")(*args) for x in (folders("nf4"), changed))
    assert not torch.equal(one[0], other[0])


def test_components_are_chosen_and_the_rest_is_linked(source, tmp_path):
    report = quantise_folder(source, tmp_path / "one", "nf4", components=("video_dit",))
    assert {kind.split(".")[0] for kind in report.errors} == {"video_dit"} and report.after < report.before
    assert str(report).splitlines()[0].split()[:3] == ["layer", "layers", "weights"]
    for part in ("video_dit_2", "audio_dit"):
        assert (tmp_path / "one" / part / FILE).samefile(source / part / FILE)


def test_an_interrupted_or_refused_run_leaves_nothing(source, folders, tmp_path, monkeypatch):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise_folder(source, tmp_path / "out", "int8", progress=stop)
    spoilt = shutil.copytree(source, tmp_path / "nan")
    tensors = load_file(spoilt / "audio_dit" / FILE)
    tensors["blocks.0.ffn.2.weight"][3, 5] = float("nan")
    save_file(tensors, spoilt / "audio_dit" / FILE)
    with pytest.raises(MovaError, match=r"audio_dit: blocks\.0\.ffn\.2\.weight holds values that are not finite"):
        quantise_folder(spoilt, tmp_path / "out", "int8")
    with pytest.raises(MovaError, match="is in nf4 already: name the folder that it was made of"):
        quantise_folder(folders("nf4"), tmp_path / "out", "int8")
    with pytest.raises(MovaError, match="unknown component 'vidio_dit'. Did you mean 'video_dit'"):
        quantise_folder(source, tmp_path / "out", "int8", components=("vidio_dit",))
    with pytest.raises(MovaError, match="unknown format of weights 'int4'"):
        quantise_folder(source, tmp_path / "out", "int4")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(MovaError, match=r"would take 0\.02 GB, and its disk has 0\.00 GB free"):
        quantise_folder(source, tmp_path / "out", "int8")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["nan"]


def test_a_disk_that_is_full_before_the_end_is_one_line_and_leaves_nothing(source, tmp_path):
    """After the header of the first component and a part of its layers."""
    with pytest.raises(MovaError, match=r"^cannot write \S*out: File too large$"), small_files(20_000):
        quantise_folder(source, tmp_path / "out", "int8")
    assert not list(tmp_path.iterdir())


def test_a_model_that_no_layer_fits_is_refused(ops, cpu, tmp_path):
    save_mova(build(ops, cpu, TINY), tmp_path / "small")
    with pytest.raises(MovaError, match="no layer of .*small fits nf4"):
        quantise_folder(tmp_path / "small", tmp_path / "out", "nf4")


def test_weights_are_held_in_every_format_as_the_folder_has_them(ops, source, folders):
    """memory.frozen, on load: the same bytes as `mova quantise` writes."""
    for kind in FORMATS:
        model, stored = loaded(ops, source, "int8"), loaded(ops, folders(kind), kind)
        assert len(hold_weights(model.video_dit, known_format(kind))) == 20
        for name, layer in linear_layers(model.video_dit).items():
            other = stored.video_dit.get_submodule(name).held()
            assert all(torch.equal(tensor, other[key]) for key, tensor in layer.held().items()), name


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_merge_into_quantised_weights(ops, cpu, folders, tmp_path, kind):
    model = adapted(loaded(ops, folders(kind), kind))
    save_lora(model, tmp_path / "adapters.safetensors")
    report = merge_folder(folders(kind), tmp_path / "adapters.safetensors", tmp_path / "merged")
    assert report.changed == len(linear_layers(model)) - sum(x.lora_A is None for x in linear_layers(model).values())
    # What is below a step of the format is lost, and said.
    assert 0 < report.error < report.update
    twin, merged = loaded(ops, folders(kind), kind), loaded(ops, tmp_path / "merged", kind)
    lost = changed = 0.0
    for name, layer in linear_layers(merged).items():
        before, pair = twin.get_submodule(name), model.get_submodule(name)
        assert layer.weight_format is before.weight_format
        if pair.lora_A is None:
            assert all(torch.equal(x, before.held()[key]) for key, x in layer.held().items())
            continue
        old, new = (x.weight_format.dequantise(x.held()) for x in (before, layer))
        update = (pair.lora_scale * pair.lora_B.weight @ pair.lora_A.weight).detach()
        lost, changed = lost + float((new - old - update).square().sum()), changed + float(update.square().sum())
    assert lost**0.5 == pytest.approx(report.error, rel=1e-3) and changed**0.5 == pytest.approx(report.update, rel=1e-3)
    assert fingerprint(tmp_path / "merged") != fingerprint(folders(kind))
    with pytest.raises(MovaError, match="which keep their formats: leave --dtype out"):
        merge_folder(folders(kind), tmp_path / "adapters.safetensors", tmp_path / "other", dtype="bfloat16")


def test_gguf_is_read_only_and_in_its_own_words(folders, tmp_path, monkeypatch):
    folder = folders("gguf")
    (tmp_path / "broken").mkdir()
    file = next((folder / "video_dit").glob("*.gguf"))
    (tmp_path / "broken" / "x.gguf").write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(MovaError, match="x.gguf is damaged or incomplete"):
        open_component(tmp_path / "broken")
    shutil.copy(file, tmp_path / "broken" / "y.gguf")
    with pytest.raises(MovaError, match=r"holds several GGUF files \(x.gguf, y.gguf\)"):
        open_component(tmp_path / "broken")
    adapters = tmp_path / "adapters.safetensors"
    save_lora(adapted(loaded(bind(get_backend("cpu")), folder, "gguf")), adapters)
    with pytest.raises(MovaError, match="is in Q8_0, which is not written: merge into the folder it was made of"):
        merge_folder(folder, adapters, tmp_path / "merged")


def test_gguf_without_its_package_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MovaError, match="x.gguf: GGUF files need the package gguf, which is not installed"):
        open_component(tmp_path)
