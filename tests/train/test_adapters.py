"""Runs that train adapters on a frozen checkpoint: what they leave, how they go on, and what they are good for."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from deep_model import DEEP, save_deep
from safetensors.torch import load_file, save_file

from mova_engine import __version__
from mova_engine.adapters.reading import read_adapter
from mova_engine.backend import get_backend
from mova_engine.checkpoints.fingerprint import fingerprint
from mova_engine.checkpoints.folder import load_mova
from mova_engine.checkpoints.locate import ADAPTERS, find_model
from mova_engine.commands.lora_merge import main as merge
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.recipes import load_config
from mova_engine.errors import MovaError
from mova_engine.inference.pipeline import load_pipeline
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
from mova_engine.train.trainer import Trainer

LORA = {"rank": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory, clips):
    """A nano model after three steps: its heads are zero no more."""
    out = tmp_path_factory.mktemp("base")
    settings = {"loader": {"batch": 2, "num_fit_clips": 4}, "validation": {"every": 0}, "log": {"tensorboard": False}}
    config = load_config("nano", data=clips, out=out, steps=3, device="cpu", optim={"ema": 0, "warmup": 0}, **settings)
    assert Trainer(config).run() == 0
    return out / "checkpoints" / "step-000003"


@pytest.fixture
def adapted(small, base):
    """Configurations of LoRA runs on the base."""

    def make(out: str = "lora", **overrides):
        lora = {**LORA, **overrides.pop("lora", {})}
        return small(out, lora=lora, model={"checkpoint": base}, **overrides)

    return make


def weights_of(folder):
    return {
        f"{path.parent.name}.{k}": x
        for path in sorted(folder.glob("*/*.safetensors"))
        for k, x in load_file(path).items()
    }


def test_b_may_learn_faster_and_the_scale_grow_with_the_root_of_the_rank(adapted, ran):
    """The first step of AdamW moves every weight by its learning rate; that of A is zero, for B is."""
    common = {"ema": 0, "warmup": 0, "weight_decay": 0.0}
    made = []
    for out, lora, factor in (("plain", {}, 1.0), ("plus", {"alpha": 6.0, "rank_stabilised": True}, 4.0)):
        run = ran(adapted(out, steps=1, lora=lora, optim={**common, "lora_plus": factor}))
        path = run.config.folder / "checkpoints/step-000001" / ADAPTERS
        made.append((read_adapter(path), run.rows[0]))
    (plain, rates), (plus, faster) = made
    name = next(name for name in plain.layers if plain.layers[name].b.any())
    assert {pair.alpha for pair in plus.layers.values()} == {6.0 * 4**0.5} and plain.layers[name].alpha == 4.0
    moved, moved_plain = (float(x.layers[name].b.abs().max()) for x in (plus, plain))
    assert moved == pytest.approx(4 * moved_plain, rel=1e-2)
    assert faster["lr/audio_dit/lora_B"] == 4 * faster["lr/audio_dit"] == 4 * rates["lr/audio_dit"]


def test_only_adapters_are_trained_and_saved(adapted, ran, base):
    before = weights_of(base)
    run = ran(adapted(optim={"ema": 0}, lora={"export": ("comfy", "peft", "diffusers")}))
    folder = run.config.folder / "checkpoints" / "step-000004"
    assert run.status == 0 and "adapters of rank 4 for " in run.said
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", ADAPTERS, "training"]
    adapters = load_file(folder / ADAPTERS)
    exported = run.config.folder / "export" / "step-000004"
    assert {path.name for path in exported.iterdir()} >= {"peft"}
    found = read_adapter(exported / "peft").layers
    assert {f"{name}.lora_B.weight" for name in found} == {name for name in adapters if "lora_B" in name}
    assert all(torch.equal(pair.b, adapters[f"{name}.lora_B.weight"]) for name, pair in found.items())
    masters = load_file(folder / "training" / "master.safetensors")
    assert adapters.keys() == masters.keys()
    # q, k, v, o of self-attention and text, two of the feed-forward in each block; q, k, v, o of each bridge layer.
    assert len(adapters) == 2 * (2 * (8 + 2) + 2 * 4 * len({k.split(".")[2] for k in adapters if "bridge" in k}))
    assert all(bool(x.any()) for name, x in adapters.items() if "lora_B" in name)
    after = weights_of(base)
    assert all(torch.equal(x, before[name]) for name, x in after.items() if "training" not in name)


def test_a_card_lies_beside_the_adapters_and_another_base_is_said(adapted, ran, base, clips, tmp_path):
    """On resume, from other adapters, and in use; weights that differ in one component."""
    settings = {"prompt": ["p3r5on smiles --d 3"], "every": 2, "steps": 1}
    run = ran(adapted(steps=2, lora={"words": ["p3r5on"], "alpha": 2.0}, validation=settings))
    folder = run.config.folder / "checkpoints" / "step-000002"
    card = (folder / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == base.name and yaml.safe_load(head)["instance_prompt"] == "p3r5on"
    for said in (f"`{fingerprint(base)}`", "| alpha | 2 |", "| rank | 4 |", "| steps | 2 of 2 |", "* p3r5on smiles\n"):
        assert said in text
    picture = re.search(r"\]\((\S+)\)", text)[1]
    assert (folder / picture).is_file(), "the samples that it shows are there"
    assert read_adapter(folder / ADAPTERS).metadata["words"] == "p3r5on"
    other = tmp_path / "other"
    shutil.copytree(base, other)
    weights = load_file(other / "audio_dit" / "diffusion_pytorch_model.safetensors")
    save_file({name: x + 1 for name, x in weights.items()}, other / "audio_dit" / "diffusion_pytorch_model.safetensors")
    (other / "training" / "checksums.json").unlink(missing_ok=True)
    warned = f"warning: {folder / ADAPTERS} was trained on another model than {other}"
    again = adapted(steps=3, lora={"words": ["p3r5on"], "alpha": 2.0})
    assert warned in ran(replace(again, model=replace(again.model, checkpoint=other))).said
    new = adapted("new", steps=1, lora={"init": folder / ADAPTERS})
    assert warned in ran(replace(new, model=replace(new.model, checkpoint=other))).said
    assert "another model" not in ran(adapted("same", steps=1, lora={"init": folder / ADAPTERS})).said


def test_an_adapted_run_that_was_cut_goes_on_bit_for_bit(adapted, ran):
    whole = ran(adapted("whole"))
    ran(adapted("cut", steps=2))
    cut = ran(adapted("cut"))
    assert "going on from" in cut.said and cut.losses[-2:] == whole.losses[-2:]
    for name in ("master", "ema", "optimizer"):
        one, other = (
            load_file(run.config.folder / "checkpoints/step-000004/training" / f"{name}.safetensors")
            for run in (whole, cut)
        )
        assert one.keys() == other.keys() and all(torch.equal(x, other[key]) for key, x in one.items())


def outputs(model):
    torch.manual_seed(1)
    config = model.config
    given = (
        torch.randn(1, config.video.in_dim, *config.clip.latent_shape),
        torch.randn(1, config.audio.in_dim, config.clip.audio_tokens),
        torch.randn(1, config.text_tokens, config.video.text_dim),
        torch.tensor([500.0]),
        torch.tensor([500.0]),
    )
    with torch.no_grad():
        return model(*modalities(*given))


def read(pipeline):
    """The model of a pipeline, with its weights."""
    pipeline.read_weights()
    return pipeline.mova


def test_the_adapters_are_sampled_beside_their_base_and_merged_into_it(adapted, ran, base, tmp_path, capsys):
    run = ran(adapted(optim={"lr": 0.01}))
    file = run.config.folder / "checkpoints" / "step-000004" / ADAPTERS
    with pytest.raises(MovaError, match=f"holds adapters, .*trained on, {base} .*--lora {file.parent}"):
        find_model(run.config.folder)
    beside = read(load_pipeline(base, get_backend("cpu"), lora=[AdapterSpec(file)]))
    assert merge(["--checkpoint", str(base), "--lora", str(file), "--out", str(tmp_path / "merged")]) == 0
    merged = read(load_pipeline(tmp_path / "merged", get_backend("cpu")))
    plain = load_mova(base, bind(get_backend("cpu")), device="cpu")
    for ours, same, other in zip(outputs(beside), outputs(merged), outputs(plain), strict=True):
        size = other.abs().max()
        assert (ours - same).abs().max() < 1e-5 * size and (ours - other).abs().max() > 1e-3 * size
    # What was averaged is what is saved.
    average = load_file(file.parent / "training" / "ema.safetensors")
    assert all(torch.equal(x, average[name]) for name, x in load_file(file).items())


def test_a_run_starts_from_another_runs_adapters(adapted, ran, base):
    """The file as it is, with its alpha; the run is new: its steps, moments and order of clips begin anew."""
    first = ran(adapted("first", steps=2, lora={"alpha": 6.0}, optim={"ema": 0, "lr": 0.01}))
    file = first.config.folder / "checkpoints" / "step-000002" / ADAPTERS
    second = ran(adapted("second", steps=1, lora={"init": first.config.folder}, optim={"ema": 0, "lr": 0.0}))
    assert second.status == 0 and f"from {file}" in second.said and second.rows[0]["step"] == 1
    found = second.config.folder / "checkpoints" / "step-000001" / ADAPTERS
    ours, theirs = read_adapter(found), read_adapter(file).layers
    assert {pair.alpha for pair in ours.layers.values()} == {6} and ours.layers.keys() == theirs.keys()
    assert ours.metadata == {"base": fingerprint(base), "recipe": "nano", "step": "1", "engine": __version__}
    for name, pair in ours.layers.items():
        assert torch.equal(pair.a, theirs[name].a) and torch.equal(pair.b, theirs[name].b)
    # What was learned is there from the first step on: its loss is not that of new adapters.
    new = ran(adapted("new", steps=1, lora={"alpha": 6.0}))
    assert abs(new.rows[0]["loss"] - second.rows[0]["loss"]) > 1e-4


def test_adapters_that_do_not_fit_the_run_are_refused_before_the_work(adapted, ran, base, tmp_path):
    first = ran(adapted("first", steps=1))
    file = first.config.folder / "checkpoints" / "step-000001" / ADAPTERS
    for lora, reason in (
        ({"rank": 8}, f"{file} has adapters of rank 4, and lora.rank is 8: give --lora.rank 4"),
        ({"targets": ("q", "k")}, f"{file} adapts layers that lora.targets does not name: audio_dit"),
        ({"alpha": 2.0}, f"{file} has alpha 4, and lora.alpha is 2: leave --lora.alpha out"),
    ):
        with pytest.raises(MovaError, match=re.escape(reason)):
            ran(adapted("second", lora={"init": file, **lora}))
    fewer = tmp_path / "fewer.safetensors"
    pairs = {name: x for name, x in load_file(file).items() if ".q." in name}
    save_file(pairs, fewer, metadata={"alpha": "4"})
    with pytest.raises(MovaError, match=r"does not adapt layers that lora.targets names: .*, \.\.\.$"):
        ran(adapted("second", lora={"init": fewer}))
    with pytest.raises(MovaError, match="none.safetensors: no such"):
        ran(adapted("second", lora={"init": tmp_path / "none.safetensors"}))
    with pytest.raises(MovaError, match="is a whole model, no file or run of adapters"):
        ran(adapted("second", lora={"init": base}))
    with pytest.raises(MovaError, match="lora.init needs lora.rank"):
        adapted(lora={"rank": 0, "init": file})


@pytest.mark.parametrize("frozen", ["activations", "fp8"])
def test_bfloat16_keeps_float32_masters_and_the_base_as_it_is_held(adapted, ran, frozen):
    run = ran(adapted(dtype="bfloat16", memory={"checkpointing": "selective", "frozen": frozen}, steps=2))
    folder = run.config.folder / "checkpoints" / "step-000002"
    assert run.status == 0
    assert {x.dtype for x in load_file(folder / ADAPTERS).values()} == {torch.bfloat16}
    assert {x.dtype for x in load_file(folder / "training" / "master.safetensors").values()} == {torch.float32}
    assert ("frozen weights in fp8" in run.said) == (frozen == "fp8")


def test_layers_that_do_not_fit_a_format_stay_as_they_are_and_are_said(small, adapted, ran, tmp_path):
    """Where none fits, nothing is done: NF4 takes inputs in multiples of 64, and nano's are 96 and 288."""
    settings = {"dtype": "bfloat16", "steps": 1, "memory": {"checkpointing": "selective", "frozen": "nf4"}}
    with pytest.raises(MovaError, match=r"memory.frozen nf4: no layer fits nf4, .* 64; .*self_attn.q is \[96, 96\]"):
        ran(adapted("none", **settings))
    sizes = replace(DEEP, video=replace(DEEP.video, ffn_dim=128))
    base = save_deep(tmp_path / "base", sizes)
    run = ran(small("some", lora={"rank": 2}, optim={"ema": 0}, model={"checkpoint": base}, **settings))
    linears = {
        n: x for n, x in Mova(sizes, bind(get_backend("cpu")), "meta").named_modules() if isinstance(x, torch.nn.Linear)
    }
    plain = [n for n, x in linears.items() if ("blocks." in n or "conditioners." in n) and x.in_features % 64]
    assert run.status == 0 and len(plain) > 200
    assert f"frozen weights in nf4 ({len(plain)} layers in bfloat16, {plain[0]} the first)" in run.said


def test_what_cannot_be_adapted_is_refused(small, adapted, ran):
    with pytest.raises(MovaError, match="give --model.checkpoint, its folder"):
        ran(small(lora=LORA))
    with pytest.raises(MovaError, match="diffusion.prediction_type is velocity, but .* was trained with x0"):
        ran(adapted(diffusion={"prediction_type": "velocity"}))
    with pytest.raises(MovaError, match="task must be joint"):
        small(lora=LORA, task="audio")
    with pytest.raises(MovaError, match="quantised ones go with adapters"):
        small(memory={"frozen": "fp8"})
    with pytest.raises(MovaError, match="LoRA target 'nothing' matches no linear layer"):
        ran(adapted(lora={"targets": ("nothing",)}))
