"""Every dialect: what goes in comes out, bit for bit; nothing is read that has no place; alpha is never guessed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mova_engine.adapters.dialects import DIALECTS, get_dialect
from mova_engine.adapters.form import Adapter, AlphaMissing, LowRank
from mova_engine.adapters.layer_names import (
    from_diffusers,
    full_name,
    full_parameter,
    layer_of,
    to_diffusers,
    unflattened,
)
from mova_engine.adapters.reading import read_adapter
from mova_engine.adapters.writing import held_by, write_adapter
from mova_engine.backend import get_backend
from mova_engine.config.model import get_preset
from mova_engine.errors import MovaError
from mova_engine.models.layers import Linear
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

from .conftest import out_of, pair

# Of dialects whose files each hold one expert, without its name.
PER_PART = [name for name in DIALECTS if get_dialect(name).per_part]


def same(one: LowRank, other: LowRank) -> bool:
    return one.alpha == other.alpha and same_tensor(one.a, other.a) and same_tensor(one.b, other.b)


def same_tensor(x, y) -> bool:
    return x.dtype == y.dtype and torch.equal(x, y)


def files_of(path: Path) -> list[Path]:
    return sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]


def edit(path: Path, change) -> None:
    """Change the tensors of the first file."""
    file = next(iter(files_of(path)), None)
    if file is not None and file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata)
        return
    file = path / "lora_weights.pt" if path.is_dir() else path
    content = torch.load(file, weights_only=True)
    change(content.get("lora_state_dict", content))
    torch.save(content, file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_there_and_back_is_the_same_bit_for_bit(adapter, dialect, dtype, written):
    """r 16 and alpha 64, which dialects without alpha would triple or lose."""
    given = {n: LowRank(p.a.to(dtype), p.b.to(dtype), p.alpha) for n, p in adapter.layers.items()}
    path = written(dialect, replace(adapter, layers=given))
    back = read_adapter(path)
    held = [name for name in given if name.split(".")[0] in get_dialect(dialect).components]
    assert back.dialect == (dialect if dialect != "lightx2v" else "lightning")
    assert sorted(back.layers) == sorted(held) and not back.deltas and len(held) >= 17
    if dialect == "lightning":  # which reads float32 alone
        given = {n: LowRank(p.a.float(), p.b.float(), p.alpha) for n, p in given.items()}
    assert all(same(back.layers[name], given[name]) for name in held)
    # And from there once more to the same files.
    again = path.with_name("again" + path.suffix)
    write_adapter(back, again, dialect)
    for file, second in zip(files_of(path), files_of(again), strict=True):
        if file.suffix == ".safetensors":
            one, other = load_file(file), load_file(second)
            assert one.keys() == other.keys() and all(same_tensor(one[key], other[key]) for key in one)
            with safe_open(file, "pt") as x, safe_open(second, "pt") as y:
                assert x.metadata() == y.metadata()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_ranks_and_alphas_of_their_own_keep_the_update(source, dialect, tmp_path):
    ranks = {
        "video_dit.blocks.0.ffn.0": (4, 3.0),
        "video_dit.blocks.1.ffn.0": (16, 0.1),
        "video_dit_2.head.head": (2, 2.0),
    }
    adapter = Adapter({name: pair(source, rank, alpha) for name, (rank, alpha) in ranks.items()})
    out = out_of(dialect, tmp_path)
    notes = write_adapter(adapter, out, dialect).notes
    back = read_adapter(out)
    assert set(back.layers) == set(ranks)
    for name, original in adapter.layers.items():
        assert torch.allclose(back.layers[name].update(), original.update(), rtol=1e-6, atol=1e-6)
        assert notes or same(back.layers[name], original)
    assert bool(notes) == get_dialect(dialect).one_scale


@pytest.mark.parametrize("key", ["unknown.thing.lora_A.weight", "blocks.0.cross_attn.k_img.lora_up.weight"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_foreign_key_is_refused_by_name_and_can_be_left_out(dialect, key, written):
    path = written(dialect)
    edit(path, lambda tensors: tensors.update({key: torch.zeros(3, 3)}))
    with pytest.raises(MovaError, match=f"1 key with no place in MOVA: {key}.*--skip-foreign"):
        read_adapter(path)
    back = read_adapter(path, skip_foreign=True)
    assert f"1 key: {key}" in back.notes[0] and len(back.layers) >= 17


@pytest.mark.parametrize("dialect", DIALECTS)
def test_values_that_are_not_finite_are_refused_by_name(dialect, written):
    path = written(dialect)
    broken = []

    def change(tensors):
        key = next(key for key in sorted(tensors) if tensors[key].ndim == 2)
        broken.append(key)
        tensors[key] = tensors[key].clone()
        tensors[key][1, 2] = float("nan")

    edit(path, change)
    with pytest.raises(MovaError, match="holds values that are not finite"):
        read_adapter(path)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_half_a_pair_and_files_cut_short_are_refused(dialect, written):
    path = written(dialect)
    edit(path, lambda tensors: tensors.pop(next(k for k in sorted(tensors) if tensors[k].shape == (40, 16))))
    with pytest.raises(MovaError, match="must hold A, B pairs; see .* has no B"):
        read_adapter(path)
    file = path / "lora_weights.pt" if dialect == "mova" else files_of(path)[0]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(MovaError, match="damaged or incomplete|or is damaged"):
        read_adapter(path)


@pytest.mark.parametrize("dialect", PER_PART)
def test_the_expert_comes_from_metadata_or_the_user_but_from_no_file_name(dialect, adapter, written, tmp_path):
    folder = written(dialect)
    file = next(file for file in files_of(folder) if file.parent.name != "dual_tower_bridge")
    whole = read_adapter(folder)
    # As the tool writes it itself: without our metadata, and moved to where its folder says nothing.
    bare = tmp_path / "low_noise.safetensors"
    save_file(load_file(file), bare)
    with pytest.raises(MovaError, match="does not say which part.*give --part high, low, both, audio or bridge"):
        read_adapter(bare, alpha=64)
    layers = sorted(layer_of(name) for name in read_adapter(file).layers)
    for part, component in (("high", "video_dit"), ("low", "video_dit_2")):
        taken = read_adapter(bare, part=part, alpha=64)
        assert sorted(taken.layers) == sorted(f"{component}.{layer}" for layer in layers)
    both = read_adapter(bare, part="both", alpha=64)
    assert len(both.layers) == 2 * len(layers) and set(whole.components) >= {"video_dit", "video_dit_2"}
    with pytest.raises(MovaError, match="part bridge does not have"):
        read_adapter(bare, part="bridge", alpha=64)


def test_videox_has_the_experts_names_swapped(adapter, written):
    for dialect in ("videox-peft", "videox-kohya"):
        folder = written(dialect)
        low = read_adapter(folder / "transformer" / "lora_diffusion_pytorch_model.safetensors")
        high = read_adapter(folder / "transformer_2" / "lora_diffusion_pytorch_model.safetensors")
        assert low.components == ["video_dit_2"] and high.components == ["video_dit"]
        assert {place.name for place in folder.iterdir()} == {
            "transformer",
            "transformer_2",
            "transformer_audio",
            "dual_tower_bridge",
        }
        # VideoX-Fun's own files have no metadata of ours: the folder says it.
        file = folder / "transformer" / "lora_diffusion_pytorch_model.safetensors"
        save_file(load_file(file), file, {"format": "pt"})
        assert read_adapter(file).components == ["video_dit_2"]


def test_ai_toolkit_keeps_both_experts_in_one_file(source, tmp_path):
    p, q = pair(source), pair(source)
    tensors = {}
    for expert, each in (("transformer_1", p), ("transformer_2", q)):
        tensors[f"diffusion_model.{expert}.blocks.0.ffn.0.lora_A.weight"] = each.a
        tensors[f"diffusion_model.{expert}.blocks.0.ffn.0.lora_B.weight"] = each.b
    save_file(tensors, tmp_path / "x.safetensors")
    back = read_adapter(tmp_path / "x.safetensors")
    assert torch.equal(back.layers["video_dit.blocks.0.ffn.0"].a, p.a)
    assert torch.equal(back.layers["video_dit_2.blocks.0.ffn.0"].a, q.a)
    assert (
        back.layers["video_dit.blocks.0.ffn.0"].alpha == 16 and "alpha is taken as each layer's rank" in back.notes[0]
    )


@pytest.mark.parametrize("dialect", ["mova-engine", "mova", "mova-low-resource", "musubi", "lightning", "peft"])
def test_an_alpha_that_is_not_stated_must_be_given(dialect, adapter, written):
    path = written(dialect)
    if dialect in ("mova", "peft"):
        (path / ("lora_config.pt" if dialect == "mova" else "adapter_config.json")).unlink()
    elif dialect == "mova-low-resource":
        content = torch.load(path, weights_only=True)
        del content["alpha"]
        torch.save(content, path)
    elif dialect == "mova-engine":
        save_file(load_file(path), path)
    else:
        edit(path, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.endswith(".alpha")])
    chosen = dialect if dialect == "lightning" else None  # without alphas it is ComfyUI's, where alpha is the rank
    with pytest.raises(AlphaMissing, match="does not say its alpha.*--alpha"):
        read_adapter(path, dialect=chosen)
    assert {p.alpha for p in read_adapter(path, dialect=chosen, alpha=5).layers.values()} >= {5.0}


def test_musubi_states_the_alpha_of_its_training_in_metadata_too(source, tmp_path):
    p = pair(source)
    name = "lora_unet_blocks_0_self_attn_q"
    tensors = {f"{name}.lora_down.weight": p.a, f"{name}.lora_up.weight": p.b}
    save_file(tensors, tmp_path / "x.safetensors", {"ss_network_alpha": "1"})
    back = read_adapter(tmp_path / "x.safetensors", part="high")
    assert back.layers["video_dit.blocks.0.self_attn.q"].scale == 1 / 16


def test_differences_and_dora_are_held_where_the_dialect_can_and_named_where_not(source, tmp_path):
    deltas = {
        "video_dit.blocks.0.self_attn.q.bias": torch.randn(40, generator=source),
        "video_dit.blocks.0.norm3.weight": torch.randn(24, generator=source),
        "video_dit.blocks.0.modulation": torch.randn(1, 6, 24, generator=source),
        "video_dit.head.modulation": torch.randn(1, 2, 24, generator=source),
        "video_dit.head.head.weight": torch.randn(4, 24, generator=source),
    }
    adapter = Adapter({"video_dit.blocks.0.self_attn.q": pair(source, magnitude=True)}, deltas)
    held = {"mova-engine": (1, 5), "comfy": (1, 5), "lightx2v": (0, 5), "musubi": (1, 0), "peft": (1, 0)}
    for dialect in DIALECTS:
        layers, full = held.get(dialect, (0, 0))
        if not layers and not full:
            with pytest.raises(MovaError, match="nothing of the adapter can be written.*DoRA"):
                write_adapter(adapter, out_of(dialect, tmp_path, dialect), dialect)
            continue
        notes = write_adapter(adapter, out_of(dialect, tmp_path, dialect), dialect).notes
        assert bool(notes) == ((layers, full) != (1, 5)), dialect
        back = read_adapter(out_of(dialect, tmp_path, dialect))
        assert (len(back.layers), len(back.deltas)) == (layers, full), dialect
        assert all(torch.equal(back.deltas[name], deltas[name]) for name in back.deltas)
        for name, each in back.layers.items():
            assert torch.equal(each.magnitude.flatten(), adapter.layers[name].magnitude)
            weight = torch.randn(40, 24, generator=source)
            assert torch.equal(each.applied(weight), adapter.layers[name].applied(weight))


def test_dora_is_the_weight_with_rows_of_given_lengths(source):
    p, weight = pair(source, magnitude=True), torch.randn(40, 24, generator=source)
    changed = p.applied(weight)
    assert torch.allclose(changed.norm(dim=1), p.magnitude, rtol=1e-5)
    plain = LowRank(p.a, p.b, p.alpha).applied(weight)
    assert torch.allclose(torch.nn.functional.normalize(changed), torch.nn.functional.normalize(plain), atol=1e-6)
    assert torch.equal(p.applied(weight, 0.0), weight)


def test_lokr_and_text_encoders_are_named_for_what_they_are(written):
    for key, words in (("lora_unet_blocks_0_ffn_0.lokr_w1", "LoKr"), ("lora_te_x.lora_up.weight", "text encoder")):
        path = written("musubi")
        edit(path, lambda tensors, key=key: tensors.update({key: torch.zeros(2, 2)}))
        with pytest.raises(MovaError, match=words):
            read_adapter(path)
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def test_a_pickle_with_code_is_not_opened(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"video_dit.blocks.0.ffn.0.lora_A": Evil()}, tmp_path / "x.pt")
    with pytest.raises(MovaError, match="could run code, and it is not loaded"):
        read_adapter(tmp_path / "x.pt")
    assert not marker.exists()
    (tmp_path / "y.pt").write_bytes(b"no pickle")
    with pytest.raises(MovaError, match="damaged"):
        read_adapter(tmp_path / "y.pt")
    torch.save([1, 2], tmp_path / "z.pt")
    with pytest.raises(MovaError, match="but a list"):
        read_adapter(tmp_path / "z.pt")


def test_what_is_no_adapter_is_said(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(MovaError, match="is no LoRA file of a dialect that is known.*its keys are weight"):
        read_adapter(tmp_path / "x.safetensors")
    with pytest.raises(MovaError, match="Did you mean 'musubi'"):
        read_adapter(tmp_path / "x.safetensors", dialect="musubbi")


def test_peft_configurations_that_ask_for_more_are_refused(written):
    path = written("peft")
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"bias": "all"}))
    with pytest.raises(MovaError, match="bias = all is not supported"):
        read_adapter(path)
    (path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    assert {p.scale for p in read_adapter(path).layers.values()} == {64 / 4}


@pytest.mark.parametrize("preset", ["mova-360p", "nano"])
def test_every_layer_and_parameter_of_the_model_has_its_name(preset):
    mova = Mova(get_preset(preset), bind(get_backend("cpu")), "meta")
    for name, _ in mova.named_parameters():
        component, _, rest = name.partition(".")
        assert full_parameter(rest, component) == name
    for name, module in mova.named_modules():
        if isinstance(module, Linear | torch.nn.Linear):
            layer = layer_of(name)
            assert full_name(layer, name.split(".")[0]) == name
            assert unflattened(layer.replace(".", "_")) == layer
            if not name.startswith("dual_tower_bridge"):
                assert from_diffusers(to_diffusers(layer)) == layer


def test_nothing_is_replaced_and_nothing_half_is_left(adapter, tmp_path):
    (tmp_path / "x.safetensors").write_text("mine")
    with pytest.raises(MovaError, match="exists and is not replaced"):
        write_adapter(adapter, tmp_path / "x.safetensors", "mova-engine")
    with pytest.raises(MovaError, match="comfy has 2 files, .*give a folder's name"):
        write_adapter(adapter, tmp_path / "y.safetensors", "comfy")
    with pytest.raises(MovaError, match="mova-engine has one file: give its name"):
        write_adapter(adapter, tmp_path / "y", "mova-engine")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "mine").touch()
    with pytest.raises(MovaError, match="exists and holds files; it is not replaced"):
        write_adapter(adapter, tmp_path / "z", "comfy")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "x.safetensors", "z"]


def test_one_expert_is_written_as_a_file_where_a_file_is_asked_for(adapter, tmp_path):
    high = Adapter({name: p for name, p in adapter.layers.items() if name.startswith("video_dit.")})
    write_adapter(high, tmp_path / "x.safetensors", "comfy")
    assert sorted(read_adapter(tmp_path / "x.safetensors").layers) == sorted(high.layers)


def test_what_stays_behind_is_counted(adapter):
    _, notes = held_by(adapter, get_dialect("comfy"))
    assert notes == [
        "not held by comfy: audio_dit, 8 layers",
        "not held by comfy: dual_tower_bridge, 1 layer",
    ]
