"""LoRA adapters: the recorded reference run (golden case 9), the file, the targets, merging."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mova_engine.adapters.lora import (
    adapted_layers,
    add_lora,
    find_linears,
    load_lora,
    lora_parameters,
    merged_lora,
    remove_lora,
    save_lora,
)
from mova_engine.checkpoints.folder import load_mova, save_mova
from mova_engine.commands.lora_merge import main as merge
from mova_engine.config.model import COMPONENTS
from mova_engine.errors import MovaError
from mova_engine.models.modality import modalities
from mova_engine.models.mova import dual_tower_forward

ALPHA = 8.0


@pytest.fixture
def adapter(golden):
    return golden / "case9_lora_weights.safetensors"


@pytest.fixture(scope="module")
def case(golden):
    return load_file(golden / "case9_lora.safetensors")


def _forward(mova, case, expert=0, visual=None, audio=None):
    return dual_tower_forward(
        mova.expert(expert),
        mova.audio_dit,
        mova.dual_tower_bridge,
        *modalities(
            case["in.visual_latents"] if visual is None else visual,
            case["in.audio_latents"] if audio is None else audio,
            case["in.context"],
            case["in.timestep"],
            case["in.timestep"],
        ),
    )


def _close(actual, expected, bound, floor=0.0):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= bound * max(expected.abs().max(), floor)


@pytest.mark.parametrize("expert, name", [(0, "video_dit"), (1, "video_dit_2")])
def test_outputs_with_adapters_are_the_reference_s(tiny, case, adapter, expert, name):
    load_lora(tiny, adapter, alpha=ALPHA)
    visual, audio = _forward(tiny, case, expert)
    _close(visual, case[f"out.{name}.visual"], 1e-5)
    _close(audio, case[f"out.{name}.audio"], 1e-5)


def test_adapters_matter(tiny, case):
    visual, _ = _forward(tiny, case)
    assert (visual - case["out.video_dit.visual"]).abs().max() > 1e-2 * case["out.video_dit.visual"].abs().max()


def test_gradients_are_the_reference_s(tiny, case, adapter):
    load_lora(tiny, adapter, alpha=ALPHA)
    inputs = [case[f"in.{name}"].clone().requires_grad_() for name in ("visual_latents", "audio_latents")]
    visual, audio = _forward(tiny, case, visual=inputs[0], audio=inputs[1])
    ((case["in.cot_visual"] * visual).sum() + (case["in.cot_audio"] * audio).sum()).backward()
    ours = {name: parameter.grad for name, parameter in lora_parameters(tiny).items()}
    ours |= {"visual_latents": inputs[0].grad, "audio_latents": inputs[1].grad}
    expected = {name.removeprefix("grad."): tensor for name, tensor in case.items() if name.startswith("grad.")}
    assert len(expected) == 6
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        _close(ours[name], tensor, 3e-5, 1e-6 * largest)


def test_merged_outputs_are_the_reference_s_and_the_model_comes_back(tiny, case, adapter):
    load_lora(tiny, adapter, alpha=ALPHA)
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    with merged_lora(tiny):
        assert not adapted_layers(tiny) and not any("lora" in name for name in tiny.state_dict())
        visual, audio = _forward(tiny, case)
    _close(visual, case["out.video_dit.merged.visual"], 1e-5)
    _close(audio, case["out.video_dit.merged.audio"], 1e-5)
    after = tiny.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_merged_weights_are_exported_as_a_plain_checkpoint(tiny, case, adapter, tmp_path, ops):
    load_lora(tiny, adapter, alpha=ALPHA)
    with merged_lora(tiny):
        save_mova(tiny, tmp_path / "merged")
    visual, _ = _forward(load_mova(tmp_path / "merged", ops, device="cpu"), case)
    _close(visual, case["out.video_dit.merged.visual"], 1e-5)


def test_small_updates_survive_merging_a_bfloat16_model_on_average(tiny):
    """Each is 4% of half a step of weights of one: rounded to the nearest, all of them would be lost."""
    tiny.to(torch.bfloat16)
    [name] = add_lora(tiny, ["video_dit.blocks.0.self_attn.q"], rank=1, alpha=1.0)
    layer = tiny.get_submodule(name)
    update = 0.04 * 2**-8
    for value, tensor in ((1.0, layer.weight), (update, layer.lora_A.weight), (1.0, layer.lora_B.weight)):
        torch.nn.init.constant_(tensor, value)
    with merged_lora(tiny):
        merged = layer.weight.detach().float()
        assert layer.weight.dtype == torch.bfloat16 and set(merged.unique().tolist()) == {1.0, 1 + 2**-7}
    with merged_lora(tiny):
        assert torch.equal(layer.weight.float(), merged)
    drawn = (0.02 * 0.98 / merged.numel()) ** 0.5 * 2**-7
    assert abs(float(merged.double().mean() - 1) - update) < 4 * drawn
    with merged_lora(tiny, torch.float32):
        assert (layer.weight - 1 - update).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_a_merged_bfloat16_folder_computes_what_the_adapters_do(tiny, case, adapter, ops, tmp_path, dtype):
    save_mova(tiny.to(torch.bfloat16), tmp_path / "mova-360p")
    given = ["--checkpoint", str(tmp_path / "mova-360p"), "--lora", str(adapter), "--alpha", str(ALPHA)]
    assert merge([*given, "--out", str(tmp_path / "merged"), *(["--dtype", dtype] if dtype else [])]) == 0
    merged = load_mova(tmp_path / "merged", ops, device="cpu")
    stored = torch.float32 if dtype == "float32" else torch.bfloat16
    assert {x.dtype for x in merged.state_dict().values()} == {stored}
    load_lora(tiny, adapter, ALPHA)
    tiny.to(stored)
    inputs = {name: x.to(stored) if x.is_floating_point() else x for name, x in case.items()}
    every = zip(_forward(merged, inputs), _forward(tiny, inputs), _without(tiny, inputs), strict=True)
    for found, expected, plain in every:
        difference = (found.float() - expected.float()).norm()
        assert difference < 0.02 * expected.float().norm() and difference < 0.2 * (plain - expected).float().norm()


def _without(mova, inputs):
    remove_lora(mova)
    return _forward(mova, inputs)


def test_merging_into_a_folder_of_the_users_changes_nothing(tiny_folder, adapter, tmp_path):
    for out in (tiny_folder, tiny_folder.parent):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(MovaError, match="exists and holds files; it is not replaced: give another folder"):
            merge(["--checkpoint", str(tiny_folder), "--lora", str(adapter), "--alpha", "8", "--out", str(out)])
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_file_makes_a_round_trip_byte_for_byte(tiny, adapter, tmp_path, tiny_folder, ops):
    names = load_lora(tiny, adapter, alpha=ALPHA)
    assert len(names) == 10 + 10 + 10 + 8
    save_lora(tiny, tmp_path / "out" / "lora.safetensors")
    ours, theirs = load_file(tmp_path / "out" / "lora.safetensors"), load_file(adapter)
    assert ours.keys() == theirs.keys()
    assert all(ours[n].dtype == theirs[n].dtype and torch.equal(ours[n], theirs[n]) for n in theirs)
    with safe_open(tmp_path / "out" / "lora.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "alpha": "8"}
    other = load_mova(tiny_folder, ops, device="cpu")
    load_lora(other, tmp_path / "out" / "lora.safetensors")
    assert {layer.lora_scale for layer in adapted_layers(other).values()} == {2.0}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lora.safetensors"]


def test_alpha_must_be_known(tiny, adapter, tmp_path):
    with pytest.raises(MovaError, match="does not say its alpha.*its default is 16.*give one"):
        load_lora(tiny, adapter)
    assert not adapted_layers(tiny)
    save_file(load_file(adapter), tmp_path / "x.safetensors", metadata={"alpha": "many"})
    with pytest.raises(MovaError, match="alpha 'many' is not a number"):
        load_lora(tiny, tmp_path / "x.safetensors")
    for alpha in ("nan", "inf", "0", "-8"):
        save_file(load_file(adapter), tmp_path / "y.safetensors", metadata={"alpha": alpha})
        with pytest.raises(MovaError, match=f"y.safetensors: alpha must be a positive number, got {alpha}"):
            load_lora(tiny, tmp_path / "y.safetensors")
        for use in (lambda x: load_lora(tiny, adapter, alpha=x), lambda x: add_lora(tiny, ["ffn.0"], 2, x)):
            with pytest.raises(MovaError, match=f"alpha must be a positive number, got {alpha}"):
                use(float(alpha))
    load_lora(tiny, tmp_path / "x.safetensors", alpha=4)
    assert {layer.lora_scale for layer in adapted_layers(tiny).values()} == {1.0}


@pytest.mark.parametrize("alpha, rank", [(1.0, 49), (0.1, 3), (16, 16), (7.5, 4)])
def test_alpha_survives_the_division_by_rank(tiny, tmp_path, alpha, rank):
    add_lora(tiny, ["ffn.0"], rank, alpha)
    save_lora(tiny, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert float(file.metadata()["alpha"]) == alpha


def test_new_adapters_change_nothing_until_trained_and_are_reproducible(tiny, case):
    before = _forward(tiny, case)
    tiny.requires_grad_(False)
    names = add_lora(tiny, ["q", "v"], rank=3, alpha=6, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(before, _forward(tiny, case), strict=True))
    trained = [name for name, parameter in tiny.named_parameters() if parameter.requires_grad]
    assert sorted(trained) == sorted(lora_parameters(tiny)) and len(trained) == 2 * len(names)
    a = {name: p.clone() for name, p in lora_parameters(tiny).items()}
    sum(x.sum() for x in _forward(tiny, case)).backward()
    # The other expert takes no part in this forward.
    active = {name: p.grad for name, p in lora_parameters(tiny).items() if not name.startswith("video_dit_2.")}
    assert all(active[name].abs().max() > 0 for name in active if name.endswith("lora_B.weight"))
    remove_lora(tiny)
    assert not lora_parameters(tiny)
    add_lora(tiny, ["q", "v"], rank=3, alpha=6, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a[name], p) for name, p in lora_parameters(tiny).items())


def test_targets_are_matched_part_by_part(tiny):
    assert find_linears(tiny, ["video_dit.blocks.0.self_attn.o"]) == ["video_dit.blocks.0.self_attn.o"]
    assert find_linears(tiny, ["o"]) == [
        *(f"{tower}.blocks.0.{kind}.o" for tower in COMPONENTS[:3] for kind in ("self_attn", "cross_attn")),
        "dual_tower_bridge.audio_to_video_conditioners.0.inner.o",
        "dual_tower_bridge.video_to_audio_conditioners.0.inner.o",
    ]
    assert find_linears(tiny, ["audio_dit.blocks.*.ffn.0", "audio_dit.blocks.*.ffn.2"]) == [
        "audio_dit.blocks.0.ffn.0",
        "audio_dit.blocks.0.ffn.2",
    ]


@pytest.mark.parametrize(
    "targets, words",
    [
        (["self_atn.q"], r"'self_atn.q' matches no linear layer. Did you mean 'self_attn.q'"),
        (["q", "blocks"], "'blocks' matches no linear layer"),
        (["norm_q"], "'norm_q' matches no linear layer"),
        ([], "no LoRA target"),
    ],
)
def test_a_target_that_matches_nothing_is_an_error(tiny, targets, words):
    with pytest.raises(MovaError, match=words):
        add_lora(tiny, targets, rank=2, alpha=2)
    assert not adapted_layers(tiny)


def _edited(adapter, tmp_path, edit):
    tensors = load_file(adapter)
    edit(tensors)
    save_file(tensors, tmp_path / "edited.safetensors")
    return tmp_path / "edited.safetensors"


Q = "video_dit.blocks.0.self_attn.q"
OTHERS = [(number, half) for number in "56789" for half in "AB"]


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda t: t.clear(), "is no LoRA file"),
        (lambda t: t.pop(f"{Q}.lora_B.weight"), f"must hold A, B pairs; see {Q} has no B"),
        (lambda t: t.update({"stray.weight": torch.zeros(1)}), "1 key with no place in MOVA: stray.weight"),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 64)}),
            rf"another size: {Q} is \[128, 128\], A \[4, 64\]",
        ),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(3, 128)}), "no low-rank pair"),
        (
            lambda t: [
                t.update({f"audio_dit.blocks.{n}.ffn.0.lora_{x}.weight": torch.zeros(2, 2)})
                for n in "56789"
                for x in "AB"
            ],
            r"layers that the model does not have: audio_dit.blocks.5.ffn.0, .*\(5 in all\)",
        ),
    ],
    ids=["empty", "half a pair", "stray", "width", "rank", "unknown layers"],
)
def test_a_wrong_file_is_refused_and_adds_nothing(tiny, adapter, tmp_path, edit, words):
    with pytest.raises(MovaError, match=words):
        load_lora(tiny, _edited(adapter, tmp_path, edit), alpha=ALPHA)
    assert not adapted_layers(tiny)


def test_damaged_missing_and_pickled_files(tiny, adapter, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(adapter.read_bytes()[:-1])
    with pytest.raises(MovaError, match="damaged or incomplete"):
        load_lora(tiny, tmp_path / "cut.safetensors", alpha=ALPHA)
    with pytest.raises(MovaError, match="no such file"):
        load_lora(tiny, tmp_path / "none.safetensors", alpha=ALPHA)
    torch.save({f"{Q}.lora_A.weight": torch.zeros(4, 128), "x": pytest.raises}, tmp_path / "lora_weights.pt")
    with pytest.raises(MovaError, match="holds more than tensors and plain values.*it is not loaded"):
        load_lora(tiny, tmp_path / "lora_weights.pt", alpha=ALPHA)


def test_an_adapter_is_neither_doubled_nor_saved_empty(tiny, adapter, tmp_path):
    with pytest.raises(MovaError, match="no LoRA adapters to save"):
        save_lora(tiny, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
    load_lora(tiny, adapter, alpha=ALPHA)
    with pytest.raises(MovaError, match="has a LoRA adapter already"):
        load_lora(tiny, adapter, alpha=ALPHA)
    remove_lora(tiny)
    add_lora(tiny, ["q"], rank=2, alpha=2)
    add_lora(tiny, ["k"], rank=2, alpha=4)
    with pytest.raises(MovaError, match="one alpha, but the model's adapters have 2, 4"):
        save_lora(tiny, tmp_path / "x.safetensors")


def test_a_rank_below_one_is_refused(tiny):
    with pytest.raises(MovaError, match="rank must be at least 1"):
        add_lora(tiny, ["q"], rank=0, alpha=1)
