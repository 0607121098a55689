"""`mova lora`: inspect, convert, merge, extract and combine on whole folders of a small model."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from mova_engine.adapters.form import Adapter, LowRank
from mova_engine.adapters.low_rank import approximated, truncated
from mova_engine.adapters.reading import base_of, read_adapter
from mova_engine.adapters.writing import write_adapter
from mova_engine.backend import get_backend
from mova_engine.checkpoints.fingerprint import fingerprint
from mova_engine.checkpoints.folder import load_mova, save_mova
from mova_engine.cli import main as mova
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.errors import MovaError
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

LAYERS = ("video_dit.blocks.0.self_attn.q", "video_dit_2.blocks.0.ffn.0", "audio_dit.blocks.0.ffn.2")
MODULATION = "video_dit.blocks.0.modulation"


@pytest.fixture(scope="module")
def model():
    sizes = {"dim": 32, "ffn_dim": 48, "num_heads": 2, "num_layers": 1, "text_dim": 16, "freq_dim": 16}
    config = MovaConfig(
        "small",
        VideoDiTConfig(**sizes),
        AudioDiTConfig(**sizes),
        BridgeConfig(1, 1, 32, 32, head_dim=16),
        ClipConfig(frames=5, height=32, width=32),
    )
    torch.manual_seed(0)
    return Mova(config, bind(get_backend("cpu")))


@pytest.fixture
def folder(model, tmp_path):
    save_mova(model, tmp_path / "base")
    return tmp_path / "base"


def small(model, source, scale=0.1):
    """An adapter of the model, rank 4 and alpha 8, with one full difference."""
    layers = {}
    for name in LAYERS:
        out, into = model.get_parameter(f"{name}.weight").shape
        drawn = [scale * torch.randn(shape, generator=source) for shape in ((4, into), (out, 4))]
        layers[name] = LowRank(*drawn, 8.0)
    return Adapter(layers, {MODULATION: torch.randn(1, 6, 32, generator=source)})


def weights(folder):
    return {
        f"{path.parent.name}.{name}": tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def test_merging_adds_the_update_and_nothing_else(model, folder, source, tmp_path, capsys):
    adapter = small(model, source)
    write_adapter(adapter, tmp_path / "x.safetensors", "mova-engine")
    given = ["lora", "merge", "--checkpoint", str(folder), "--lora", str(tmp_path / "x.safetensors:0.5")]
    assert mova([*given, "--out", str(tmp_path / "merged")]) == 0
    assert "4 layers merged into" in capsys.readouterr().out
    before, after = weights(folder), weights(tmp_path / "merged")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        layer = name.removesuffix(".weight")
        change = 0.5 * adapter.layers[layer].update() if layer in adapter.layers else torch.zeros(())
        change = 0.5 * adapter.deltas[name] if name in adapter.deltas else change
        assert torch.allclose(after[name], weight + change, atol=1e-6), name
        assert name in adapter.deltas or layer in adapter.layers or torch.equal(after[name], weight)
    loaded = load_mova(tmp_path / "merged", bind(get_backend("cpu")), device="cpu")
    assert loaded.config.clip == model.config.clip


def test_every_tensor_keeps_its_own_dtype_and_small_updates_survive(model, folder, source, tmp_path, capsys):
    """Of three kinds in one folder; the adapter itself is not rounded to the weight's dtype first."""
    kinds = {"video_dit": torch.bfloat16, "video_dit_2": torch.float16, "audio_dit": torch.float32}
    for part, dtype in kinds.items():
        file = folder / part / "diffusion_pytorch_model.safetensors"
        tensors = {n: (x if n.endswith("norm3.weight") else x.to(dtype)) for n, x in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    adapter = small(model, source, scale=0.004)
    write_adapter(adapter, tmp_path / "x.safetensors", "mova-engine")
    given = ["lora", "merge", "--checkpoint", str(folder), "--lora", str(tmp_path / "x.safetensors")]
    assert mova([*given, "--out", str(tmp_path / "merged")]) == 0
    assert "rounding error" in capsys.readouterr().out
    before, after = weights(folder), weights(tmp_path / "merged")
    assert {n: x.dtype for n, x in before.items()} == {n: x.dtype for n, x in after.items()}
    assert len({x.dtype for x in after.values()}) == 3
    for layer in LAYERS:
        change, update = (
            after[f"{layer}.weight"].float() - before[f"{layer}.weight"].float(),
            adapter.layers[layer].update(),
        )
        # Rounding to the nearest would lose most of it: the projection on the update stays.
        assert float((change * update).sum() / update.square().sum()) == pytest.approx(1, abs=0.35)
    untouched = [n for n in before if n.removesuffix(".weight") not in LAYERS and n != MODULATION]
    assert all(torch.equal(before[name], after[name]) for name in untouched)
    assert mova([*given, "--out", str(tmp_path / "wide"), "--dtype", "float32"]) == 0
    assert {x.dtype for x in weights(tmp_path / "wide").values()} == {torch.float32}


def test_a_strength_of_zero_leaves_every_bit(model, folder, source, tmp_path):
    write_adapter(small(model, source), tmp_path / "x.safetensors", "mova-engine")
    given = ["lora", "merge", "--checkpoint", str(folder), "--lora", str(tmp_path / "x.safetensors:0")]
    assert mova([*given, "--out", str(tmp_path / "merged")]) == 0
    before, after = weights(folder), weights(tmp_path / "merged")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_of_another_model_is_refused_or_told_of(model, folder, source, tmp_path, capsys):
    adapter = small(model, source)
    odd = {LAYERS[0]: LowRank(torch.zeros(4, 16), torch.zeros(32, 4), 8.0)}
    write_adapter(Adapter(odd), tmp_path / "odd.safetensors", "mova-engine")
    given = ["lora", "merge", "--checkpoint", str(folder), "--out", str(tmp_path / "merged"), "--lora"]
    with pytest.raises(MovaError, match=r"another size: video_dit.blocks.0.self_attn.q is \[32, 32\], A \[4, 16\]"):
        mova([*given, str(tmp_path / "odd.safetensors")])
    assert not (tmp_path / "merged").exists()
    named = Adapter(adapter.layers, metadata={"base": "of another model"})
    write_adapter(named, tmp_path / "named.safetensors", "mova-engine")
    assert mova([*given, str(tmp_path / "named.safetensors")]) == 0
    assert "was trained on another model" in capsys.readouterr().err
    same = Adapter(adapter.layers, metadata=base_of(folder))
    write_adapter(same, tmp_path / "same.safetensors", "mova-engine")
    assert mova([*given[:-2], str(tmp_path / "again"), "--lora", str(tmp_path / "same.safetensors")]) == 0
    assert capsys.readouterr().err == ""


def test_the_fingerprint_is_of_the_weights_and_not_of_their_files(model, folder, tmp_path):
    save_mova(model, tmp_path / "sharded", max_shard_bytes=20_000)
    assert len(list((tmp_path / "sharded" / "video_dit").glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path / "sharded") == fingerprint(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
        save_mova(model, tmp_path / "other")
        for parameter in model.parameters():
            parameter.div_(1.001)
    assert fingerprint(tmp_path / "other") != fingerprint(folder)


def test_what_was_merged_is_extracted_again(model, folder, source, tmp_path, capsys):
    adapter = small(model, source)
    write_adapter(adapter, tmp_path / "x.safetensors", "mova-engine")
    both = ["--checkpoint", str(folder), "--lora", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "merged")]
    mova(["lora", "merge", *both])
    models = ["--base", str(folder), "--tuned", str(tmp_path / "merged")]
    capsys.readouterr()
    assert mova(["lora", "extract", *models, "--rank", "4", "--out", str(tmp_path / "y.safetensors")]) == 0
    assert "3 layers at rank 4 and 1 full difference" in capsys.readouterr().out
    back = read_adapter(tmp_path / "y.safetensors")
    assert back.metadata["base"] == fingerprint(folder)
    for name, pair in adapter.layers.items():
        assert torch.allclose(back.layers[name].update(), pair.update(), atol=1e-5)
    assert torch.allclose(back.deltas[MODULATION], adapter.deltas[MODULATION], atol=1e-6)
    given = ["lora", "extract", *models, "--rank", "1", "--no-differences", "--out", str(tmp_path / "z.safetensors")]
    assert mova(given) == 0
    said = capsys.readouterr().out
    assert "left out: changes of other parameters" in said
    errors = {}
    for name, pair in adapter.layers.items():
        singular = torch.linalg.svdvals(pair.update())
        errors[name] = (float(singular[1:].norm()), float(singular.norm()))
    lost = torch.tensor([x for x, _ in errors.values()]).norm() / torch.tensor([x for _, x in errors.values()]).norm()
    assert f"relative error of the layers' change {float(lost):.3g}" in said
    with pytest.raises(MovaError, match="have the same weights"):
        mova(
            ["lora", "extract", "--base", str(folder), "--tuned", str(folder), "--out", str(tmp_path / "n.safetensors")]
        )


def test_combined_adapters_change_what_both_do(model, source, tmp_path, capsys):
    one, other = small(model, source), small(model, source)
    other = Adapter({name: other.layers[name] for name in LAYERS[:2]}, other.deltas)
    for name, each in (("one", one), ("other", other)):
        write_adapter(each, tmp_path / f"{name}.safetensors", "mova-engine")
    names = [str(tmp_path / "one.safetensors:0.5"), str(tmp_path / "other.safetensors:-2")]
    assert mova(["lora", "combine", *names, "--out", str(tmp_path / "x.safetensors")]) == 0
    both = read_adapter(tmp_path / "x.safetensors")
    for name in LAYERS:
        wanted = 0.5 * one.layers[name].update()
        wanted = wanted - 2 * other.layers[name].update() if name in other.layers else wanted
        assert torch.allclose(both.layers[name].update(), wanted, atol=1e-6)
    assert torch.allclose(both.deltas[MODULATION], 0.5 * one.deltas[MODULATION] - 2 * other.deltas[MODULATION])
    assert mova(["lora", "combine", *names, "--rank", "3", "--out", str(tmp_path / "y.safetensors")]) == 0
    assert {pair.rank for pair in read_adapter(tmp_path / "y.safetensors").layers.values()} == {3}


def test_truncation_is_the_nearest_of_its_rank(source):
    pair = LowRank(torch.randn(12, 30, generator=source), torch.randn(20, 12, generator=source), 6.0)
    u, s, vh = torch.linalg.svd(pair.update().double())
    for rank in (1, 5, 11):
        nearest = (u[:, :rank] * s[:rank]) @ vh[:rank]
        cut, lost = truncated(pair, rank)
        assert torch.allclose(cut.update().double(), nearest, atol=1e-5)
        assert lost == pytest.approx(float(s[rank:12].norm()), rel=1e-6)
        assert torch.allclose(approximated(pair.update(), rank).update().double(), nearest, atol=1e-4)
    # Large ones are taken by random projection.
    large = torch.randn(600, 8, generator=source) @ torch.randn(8, 700, generator=source)
    large += 1e-3 * torch.randn(600, 700, generator=source)
    best = float(torch.linalg.svdvals(large)[8:].norm())
    assert float((large - approximated(large, 8).update()).norm()) < 1.001 * best


def test_inspect_says_what_there_is(model, source, tmp_path, capsys):
    write_adapter(small(model, source), tmp_path / "x.safetensors", "mova-engine")
    assert mova(["lora", "inspect", str(tmp_path / "x.safetensors"), "--layers"]) == 0
    said = capsys.readouterr().out
    assert "mova-engine" in said and "audio_dit         (audio): 1 layer, rank 4, alpha 8, float32, norm" in said
    assert "1 full difference of norm" in said and re.search(
        r"not held by  diffusers, .*comfy, diffsynth: audio_dit, 1 layer\n", said
    )
    assert "  blocks.0.self_attn.q: rank 4, alpha 8, [32, 32], norm" in said
    norm = float(read_adapter(tmp_path / "x.safetensors").layers[LAYERS[2]].update().norm())
    assert f"blocks.0.ffn.2: rank 4, alpha 8, [32, 48], norm {norm:.4g}" in said
    save_file(load_file(tmp_path / "x.safetensors"), tmp_path / "bare.safetensors")
    with pytest.raises(MovaError, match="no LoRA file|no place in MOVA"):
        mova(["lora", "inspect", str(tmp_path / "bare.safetensors")])


def test_convert_says_what_stays_behind(model, source, tmp_path, capsys):
    write_adapter(small(model, source), tmp_path / "x.safetensors", "mova-engine")
    given = ["lora", "convert", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "y"), "--to"]
    assert mova([*given, "diffusers"]) == 0
    said = capsys.readouterr().out
    assert "not held by diffusers: audio_dit, 1 layer" in said and "full differences, 1 layer" in said
    assert f"2 of 4 layers written as diffusers to {tmp_path / 'y'} (read as mova-engine)" in said
    with pytest.raises(MovaError, match="unknown dialect 'difusers'. Did you mean 'diffusers'"):
        mova([*given, "difusers"])
    with pytest.raises(MovaError, match="unknown dialect 'kohya'. Did you mean 'musubi'"):
        mova([*given, "kohya"])
    config = json.loads(next((tmp_path / "y").glob("high*")).read_bytes()[8:].split(b"}}", 1)[0].decode() + "}}")
    assert config["__metadata__"]["mova_part"] == "high"


def test_merging_holds_one_tensor_at_a_time(model, folder, source, tmp_path, monkeypatch):
    """Of all tensors that are read, none is alive when the next one is."""
    import weakref

    from mova_engine.adapters import merge

    alive, most, read = weakref.WeakSet(), [], merge.read_stored

    def counted(stored, name):
        most.append(len(alive))
        tensor = read(stored, name)
        alive.add(tensor)
        return tensor

    monkeypatch.setattr(merge, "read_stored", counted)
    write_adapter(small(model, source), tmp_path / "x.safetensors", "mova-engine")
    mova(
        [
            "lora",
            "merge",
            "--checkpoint",
            str(folder),
            "--lora",
            str(tmp_path / "x.safetensors"),
            "--out",
            str(tmp_path / "m"),
        ]
    )
    assert len(most) > 100 and max(most) <= 1
