"""Files that other tools wrote with their own code, and ours as those tools read them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mova_engine.adapters.form import Adapter
from mova_engine.adapters.lora import apply_adapters
from mova_engine.adapters.reading import read_adapter
from mova_engine.adapters.writing import write_adapter

from .conftest import pair

WAN = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16, "out_channels": 16, "text_dim": 16}


def test_musubis_own_files_mean_the_same_in_both_of_its_forms(repo_root):
    folder = repo_root / "tests" / "data" / "adapters"
    first = read_adapter(folder / "musubi.safetensors", part="low")
    other = read_adapter(folder / "musubi_other.safetensors", part="low")
    assert (first.dialect, other.dialect) == ("musubi", "comfy") and len(first.layers) == 10
    assert first.layers.keys() == other.layers.keys()
    assert {(p.rank, p.alpha) for p in first.layers.values()} == {(3, 2.0)}
    for name, one in first.layers.items():
        assert torch.allclose(one.update(), other.layers[name].update(), atol=1e-6) and one.update().norm() > 0.01


def test_a_musubi_file_is_written_as_musubi_writes_it(repo_root, tmp_path):
    file = repo_root / "tests" / "data" / "adapters" / "musubi.safetensors"
    write_adapter(read_adapter(file, part="high"), tmp_path / "x.safetensors", "musubi")
    ours, theirs = load_file(tmp_path / "x.safetensors"), load_file(file)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype and torch.equal(ours[key], tensor), key


@pytest.mark.parametrize(
    ("file", "dialect", "layers"),
    [
        ("mova", "mova", 38),
        ("mova_low_resource.pt", "mova-low-resource", 24),
        ("videox_kohya.safetensors", "videox-kohya", 10),
        ("diffsynth.safetensors", "diffsynth", 10),
        ("diffusion_pipe", "comfy", 10),
    ],
)
def test_what_a_tools_own_code_has_saved_is_what_it_computes(repo_root, file, dialect, layers):
    """Every layer, and no other; tests/data/adapters/README.md says who saved what."""
    folder = repo_root / "tests" / "data" / "adapters"
    own = dialect.startswith("mova")
    found = read_adapter(folder / file, part=None if own else "low")
    tool = file.partition(".")[0]
    expected = {
        name.partition("/")[2] if own else f"video_dit_2.{name.partition('/')[2]}": update
        for name, update in load_file(folder / "expected.safetensors").items()
        if name.partition("/")[0] == tool
    }
    assert found.dialect == dialect and found.layers.keys() == expected.keys() and len(expected) == layers
    for name, update in expected.items():
        assert torch.allclose(found.layers[name].update(), update, rtol=1e-6, atol=1e-6) and update.norm() > 0.1


class Tower(torch.nn.Module):
    """Wan's names of a block."""

    def __init__(self):
        super().__init__()
        block = torch.nn.Module()
        block.self_attn, block.ffn = torch.nn.Module(), torch.nn.Sequential(torch.nn.Linear(24, 40))
        block.self_attn.q, block.self_attn.k = torch.nn.Linear(24, 40), torch.nn.Linear(24, 40)
        self.blocks = torch.nn.ModuleList([block])

    def forward(self, x):
        block = self.blocks[0]
        return block.self_attn.q(x) + block.self_attn.k(x) * block.ffn(x)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("rslora", [False, True], ids=["", "rslora"])
def test_pefts_folders_compute_what_peft_does(tmp_path, dora, rslora):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra [dev])")
    torch.manual_seed(0)
    tower = Tower()
    before = {name: x.detach().clone() for name, x in tower.named_parameters()}
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q", "ffn.0"],
        rank_pattern={"ffn.0": 2},
        alpha_pattern={"ffn.0": 3},
        use_dora=dora,
        use_rslora=rslora,
    )
    model = peft.get_peft_model(tower, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
            parameter.data.abs_()
    model.save_pretrained(tmp_path / "x")
    merged = model.merge_and_unload().state_dict()
    adapter = read_adapter(tmp_path / "x", part="high")
    assert {p.rank for p in adapter.layers.values()} == {2, 4}
    for name, each in adapter.layers.items():
        key = f"{name.removeprefix('video_dit.')}.weight"
        assert torch.allclose(each.applied(before[key]), merged[key], atol=1e-5)
        assert not torch.allclose(merged[key], before[key], atol=1e-2)


def test_peft_reads_the_folders_that_are_written(tmp_path, source):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra [dev])")
    layers = {"blocks.0.self_attn.q": (3, 5.0), "blocks.0.self_attn.k": (3, 5.0), "blocks.0.ffn.0": (2, 1.0)}
    adapter = Adapter({f"video_dit.{n}": pair(source, r, a) for n, (r, a) in layers.items()})
    write_adapter(adapter, tmp_path / "x", "peft")
    whole = torch.nn.Module()
    whole.video_dit = Tower()
    before = {name: x.detach().clone() for name, x in whole.named_parameters()}
    merged = peft.PeftModel.from_pretrained(whole, tmp_path / "x").merge_and_unload().state_dict()
    for name, each in adapter.layers.items():
        assert torch.allclose(each.applied(before[f"{name}.weight"]), merged[f"{name}.weight"], atol=1e-4)


def test_diffusers_own_file_and_ours_in_three_dialects_as_diffusers_reads_them(tmp_path, source):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra [codecs])")
    peft = pytest.importorskip("peft", reason="peft is not installed (extra [dev])")
    from peft.utils import get_peft_model_state_dict

    model = diffusers.WanTransformer3DModel(**WAN, ffn_dim=48, num_layers=1, freq_dim=16)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, alpha_pattern={"to_k": 2}))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=source)
    config = model.peft_config["default"].to_dict()
    diffusers.WanPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(model), transformer_lora_adapter_metadata=config
    )
    adapter = read_adapter(tmp_path / "pytorch_lora_weights.safetensors", part="high")
    assert adapter.dialect == "diffusers" and len(adapter.layers) == 10
    assert {(n.rpartition(".")[2], p.alpha) for n, p in adapter.layers.items() if ".k" in n} == {("k", 2.0)}
    before = {name: x.detach().clone() for name, x in model.named_parameters() if name.endswith("base_layer.weight")}
    model.fuse_lora()
    fused = dict(model.named_parameters())
    theirs = {
        "video_dit.blocks.0.cross_attn.o": "blocks.0.attn2.to_out.0",
        "video_dit.blocks.0.ffn.2": "blocks.0.ffn.net.2",
    }
    theirs["video_dit.blocks.0.self_attn.k"] = "blocks.0.attn1.to_k"
    for name, key in theirs.items():
        weight = f"{key}.base_layer.weight"
        assert torch.allclose(adapter.layers[name].applied(before[weight]), fused[weight], atol=1e-5)
    for dialect in ("diffusers", "comfy", "musubi"):
        write_adapter(adapter, tmp_path / f"{dialect}.safetensors", dialect)
        state = diffusers.WanPipeline.lora_state_dict(tmp_path / f"{dialect}.safetensors")
        for name, key in theirs.items():
            a, b = (state[f"transformer.{key}.lora_{half}.weight"] for half in "AB")
            scale = adapter.layers[name].scale if dialect == "diffusers" else 1.0  # else folded by their own reader
            assert torch.allclose(scale * b @ a, adapter.layers[name].update(), atol=1e-5), (dialect, name)


def test_the_written_configuration_is_json_that_diffusers_has(tmp_path, source):
    write_adapter(Adapter({"video_dit.head.head": pair(source)}), tmp_path / "x.safetensors", "diffusers")
    from safetensors import safe_open

    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        stated = json.loads(file.metadata()["lora_adapter_metadata"])
    assert stated["transformer.r"] == 16 and stated["transformer.lora_alpha"] == 64.0


def test_several_adapters_with_strengths_compute_the_sum_and_leave_no_trace(tiny_tower, source):
    """Low-rank ones beside the weights, differences and DoRA in them; removed, every bit is as before."""
    from mova_engine.adapters.lora import remove_lora

    tower, names = tiny_tower
    before = {name: x.detach().clone() for name, x in tower.state_dict().items()}
    first = Adapter({name: pair(source, 4, 8.0, rows=24) for name in names})
    more = {f"{names[0]}.bias": torch.randn(24, generator=source)}
    second = Adapter({names[0]: pair(source, 2, 1.0, rows=24)}, more)
    third = Adapter({names[1]: pair(source, 3, 3.0, rows=24, magnitude=True)})
    x = torch.randn(5, 24, generator=source)
    plain = [tower.get_submodule(name)(x) for name in names]
    apply_adapters(tower, [(first, 0.5), (second, -2.0)])
    w = before[f"{names[0]}.weight"] + 0.5 * first.layers[names[0]].update() - 2.0 * second.layers[names[0]].update()
    wanted = x @ w.T + before[f"{names[0]}.bias"] - 2.0 * more[f"{names[0]}.bias"]
    assert torch.allclose(tower.get_submodule(names[0])(x), wanted, rtol=1e-4, atol=1e-3)
    remove_lora(tower)
    assert all(torch.equal(x, before[name]) for name, x in tower.state_dict().items())
    apply_adapters(tower, [(third, 1.0)])
    wanted = x @ third.layers[names[1]].applied(before[f"{names[1]}.weight"]).T + before[f"{names[1]}.bias"]
    assert torch.allclose(tower.get_submodule(names[1])(x), wanted, rtol=1e-4, atol=1e-4)
    remove_lora(tower)
    assert all(torch.equal(x, before[name]) for name, x in tower.state_dict().items())
    assert all(torch.equal(a, tower.get_submodule(n)(x)) for a, n in zip(plain, names, strict=True))


@pytest.fixture
def tiny_tower():
    """(a module of two linear layers that take adapters, their names)."""
    from mova_engine.backend import get_backend
    from mova_engine.models.layers import Linear
    from mova_engine.ops import bind

    torch.manual_seed(0)
    tower, ops = torch.nn.Module(), bind(get_backend("cpu"))
    tower.one, tower.two = Linear(24, 24, ops), Linear(24, 24, ops)
    return tower.requires_grad_(False), ["one", "two"]
