"""A whole folder in the released layout: written from the recorded weights, read by diffusers and by us."""

import json
import shutil
import sys
import types
from dataclasses import replace

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file

from mova_engine.adapters.lora import add_lora
from mova_engine.checkpoints.folder import (
    boundary_ratio,
    component_configs,
    load_codecs,
    load_mova,
    mova_config_from_folder,
    save_mova,
)
from mova_engine.codecs import DctVideoCodec, MdctAudioCodec
from mova_engine.config.clip import ClipSettings
from mova_engine.config.model import COMPONENTS, get_preset
from mova_engine.errors import MovaError
from mova_engine.models.mova import Mova

CPU = {"device": "cpu"}


def _state(mova: Mova) -> dict[str, torch.Tensor]:
    return mova.state_dict()


def _equal(a: Mova, b: Mova) -> bool:
    a, b = _state(a), _state(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if value is not ...}))


def test_the_folder_is_in_the_released_layout(tiny_folder):
    index = json.loads((tiny_folder / "model_index.json").read_text())
    assert index["_class_name"] == "MOVA"
    assert index["audio_vae_type"] == "dac" and index["boundary_ratio"] == 0.9
    assert index["video_dit"] == index["video_dit_2"] == ["mova.diffusion.models.wan_video_dit", "WanModel"]
    assert index["audio_dit"] == ["mova.diffusion.models.wan_audio_dit", "WanAudioModel"]
    assert index["dual_tower_bridge"] == ["mova.diffusion.models.interactionv2", "DualTowerConditionalBridge"]
    assert index["scheduler"] == ["mova.diffusion.schedulers.flow_match_pair", "FlowMatchPairScheduler"]
    assert index["video_vae"] == index["audio_vae"] == index["text_encoder"] == index["tokenizer"] == [None, None]
    for name in COMPONENTS:
        files = sorted(path.name for path in (tiny_folder / name).iterdir())
        assert files == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_config_files_say_what_the_recorded_ones_say(tiny_folder, recorded):
    for name, file in recorded.items():
        theirs = json.loads(file.with_suffix(".json").read_text())["config"]
        ours = json.loads((tiny_folder / name / "config.json").read_text())
        assert {key: ours.get(key) for key in theirs} == theirs, name


def test_weights_are_the_recorded_ones(tiny_folder, recorded):
    for name, file in recorded.items():
        ours = load_file(tiny_folder / name / "diffusion_pytorch_model.safetensors")
        theirs = load_file(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_it_comes_back_whole(tiny, tiny_folder, ops):
    config = mova_config_from_folder(tiny_folder)
    assert config == tiny.config
    assert boundary_ratio(tiny_folder) == 0.9
    loaded = load_mova(tiny_folder, ops, **CPU)
    assert _equal(tiny, loaded)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert {p.dtype for p in load_mova(tiny_folder, ops, dtype=torch.bfloat16, **CPU).parameters()} == {torch.bfloat16}


def _reference_class(name: str, body: type[nn.Module]):
    """A diffusers model of the released constructor's signature; `body` builds the parameters."""
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin

    class Model(ModelMixin, ConfigMixin):
        pass

    Model.__name__ = name
    Model.__init__ = register_to_config(body)
    return Model


@pytest.fixture
def reference_classes(ops, tiny_config):
    """Stand-ins with the released classes' names, constructor arguments and parameters, for diffusers to build."""
    pytest.importorskip("diffusers", reason="extra [codecs]: diffusers is not installed")
    from mova_engine.models.audio_dit import AudioDiT
    from mova_engine.models.bridge import Bridge
    from mova_engine.models.video_dit import VideoDiT

    def adopt(model, source):
        for child, module in source.named_children():
            setattr(model, child, module)

    def wan(
        self, dim, in_dim, ffn_dim, out_dim, text_dim, freq_dim, eps, patch_size, num_heads, num_layers,
        has_image_input, has_image_pos_emb=False, has_ref_conv=False, add_control_adapter=False,
        in_dim_control_adapter=24, seperated_timestep=False, require_vae_embedding=True, require_clip_embedding=True,
        fuse_vae_embedding_in_latents=False,
    ):  # fmt: skip
        assert dim == tiny_config.video.dim and require_vae_embedding and not require_clip_embedding
        super(type(self), self).__init__()
        adopt(self, VideoDiT(tiny_config.video, ops))

    def wan_audio(
        self, dim, in_dim, ffn_dim, out_dim, text_dim, freq_dim, eps, patch_size, num_heads, num_layers,
        has_image_input, has_image_pos_emb=False, has_ref_conv=False, add_control_adapter=False,
        in_dim_control_adapter=24, seperated_timestep=False, require_vae_embedding=True, require_clip_embedding=True,
        fuse_vae_embedding_in_latents=False, vae_type="oobleck",
    ):  # fmt: skip
        assert vae_type == "dac" and not require_vae_embedding
        super(type(self), self).__init__()
        adopt(self, AudioDiT(tiny_config.audio, ops))

    def bridge(
        self, visual_layers=30, audio_layers=30, visual_hidden_dim=3072, audio_hidden_dim=1536,
        audio_fps=44100.0 / 2048.0, head_dim=128, interaction_strategy="shallow_focus", apply_cross_rope=False,
        apply_first_frame_bias_in_rope=False, trainable_condition_scale=False, pooled_adaln=False,
    ):  # fmt: skip
        assert (interaction_strategy, apply_cross_rope, apply_first_frame_bias_in_rope) == ("full", True, True)
        super(type(self), self).__init__()
        adopt(self, Bridge(tiny_config.bridge, ops))

    return {
        "WanModel": _reference_class("WanModel", wan),
        "WanAudioModel": _reference_class("WanAudioModel", wan_audio),
        "DualTowerConditionalBridge": _reference_class("DualTowerConditionalBridge", bridge),
    }


@pytest.mark.parametrize("max_shard_bytes", [10**9, 300_000], ids=["whole", "sharded"])
def test_diffusers_own_loader_reads_every_component(tiny, tmp_path, reference_classes, max_shard_bytes):
    save_mova(tiny, tmp_path / "folder", max_shard_bytes=max_shard_bytes)
    sharded = list((tmp_path / "folder" / "video_dit").glob("*.index.json"))
    assert bool(sharded) == (max_shard_bytes < 10**9)
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    for name in COMPONENTS:
        model, info = reference_classes[index[name][1]].from_pretrained(
            tmp_path / "folder", subfolder=name, output_loading_info=True, low_cpu_mem_usage=False
        )
        assert not any(info.values()), info
        ours = getattr(tiny, name).state_dict()
        theirs = model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_we_read_what_diffusers_saves(tiny, tiny_folder, tmp_path, ops, reference_classes):
    """A folder whose components diffusers wrote, in shards and with entries of its own in the config files."""
    saved = tmp_path / "saved"
    shutil.copytree(tiny_folder, saved)
    for name, kind in (("video_dit", "WanModel"), ("audio_dit", "WanAudioModel")):
        shutil.rmtree(saved / name)
        model = reference_classes[kind].from_pretrained(tiny_folder, subfolder=name, low_cpu_mem_usage=False)
        model.save_pretrained(saved / name, max_shard_size="300KB")
        assert (saved / name / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert _equal(load_mova(saved, ops, **CPU), tiny)


def test_diffusers_pipeline_loads_the_folder(tiny_folder, reference_classes, monkeypatch):
    """model_index.json leads diffusers to the right classes, and our own entry does not disturb it."""
    from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config

    class FlowMatchPairScheduler(SchedulerMixin, ConfigMixin):
        @register_to_config
        def __init__(
            self, num_inference_steps=100, num_train_timesteps=1000, shift=3.0, sigma_max=1.0, sigma_min=0.003 / 1.002,
            inverse_timesteps=False, extra_one_step=False, reverse_sigmas=False, exponential_shift=False,
            exponential_shift_mu=None, shift_terminal=None,
        ):  # fmt: skip
            pass

    class MOVA(DiffusionPipeline):
        @register_to_config
        def __init__(
            self, video_vae, audio_vae, text_encoder, tokenizer, scheduler, video_dit, video_dit_2, audio_dit,
            dual_tower_bridge, audio_vae_type="dac", boundary_ratio=0.9,
        ):  # fmt: skip
            super().__init__()
            self.register_modules(
                scheduler=scheduler,
                video_dit=video_dit,
                video_dit_2=video_dit_2,
                audio_dit=audio_dit,
                dual_tower_bridge=dual_tower_bridge,
            )

    index = json.loads((tiny_folder / "model_index.json").read_text())
    classes = {**reference_classes, "FlowMatchPairScheduler": FlowMatchPairScheduler}
    for library, class_name in (entry for entry in index.values() if isinstance(entry, list) and entry[0]):
        parts = library.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or types.ModuleType(name))
        setattr(sys.modules[library], class_name, classes[class_name])
        # diffusers asks the class's own module for its base classes; the released modules import them.
        sys.modules[library].ModelMixin, sys.modules[library].SchedulerMixin = ModelMixin, SchedulerMixin
        classes[class_name].__module__ = library
    absent = dict.fromkeys(("video_vae", "audio_vae", "text_encoder", "tokenizer"))
    pipe = MOVA.from_pretrained(tiny_folder, low_cpu_mem_usage=False, **absent)
    assert pipe.config.boundary_ratio == 0.9 and pipe.scheduler.config.shift == 5.0
    assert isinstance(pipe.video_dit_2, reference_classes["WanModel"])


def test_a_release_says_its_sizes_itself(tiny_folder, tiny):
    """Without our own entry: sizes from the config files; the clip by name, or as it is asked for."""
    _edit(tiny_folder / "model_index.json", _mova_engine=...)
    with pytest.raises(MovaError, match="'tiny' is no released model's name: give --clip.height"):
        mova_config_from_folder(tiny_folder)
    config = mova_config_from_folder(tiny_folder, ClipSettings(height=352, width=640))
    assert config.video == tiny.config.video and config.clip == get_preset("mova-360p").clip
    assert config.text_tokens == 512 and config.name == "tiny"
    named = tiny_folder.rename(tiny_folder.with_name("MOVA-720p"))
    assert mova_config_from_folder(named).clip == get_preset("mova-720p").clip


def test_unknown_entries_and_other_components_are_taken_over(tiny, tiny_folder, tmp_path):
    _edit(
        tiny_folder / "model_index.json",
        _diffusers_version="0.36.0",
        boundary_ratio=0.875,
        video_vae=["diffusers", "AutoencoderKLWan"],
    )
    _edit(tiny_folder / "video_dit" / "config.json", in_dim_control_adapter=24, note="theirs")
    (tiny_folder / "video_vae").mkdir()
    (tiny_folder / "video_vae" / "config.json").write_text('{"z_dim": 16}')
    save_mova(tiny, tmp_path / "next", base=tiny_folder)
    index = json.loads((tmp_path / "next" / "model_index.json").read_text())
    assert index["_diffusers_version"] == "0.36.0" and boundary_ratio(tmp_path / "next") == 0.875
    assert index["video_vae"] == ["diffusers", "AutoencoderKLWan"]
    assert json.loads((tmp_path / "next" / "video_vae" / "config.json").read_text()) == {"z_dim": 16}
    config = json.loads((tmp_path / "next" / "video_dit" / "config.json").read_text())
    assert config["note"] == "theirs" and config["in_dim_control_adapter"] == 24 and config["dim"] == 128
    with pytest.raises(MovaError, match="tiny exists and holds files; it is not replaced"):
        save_mova(tiny, tiny_folder, base=tiny_folder)


@pytest.mark.parametrize(
    "component, changes, words",
    [
        ("video_dit", {"has_image_input": True}, "video_dit.config.json: has_image_input = true is not supported"),
        ("audio_dit", {"vae_type": "oobleck"}, 'vae_type = "oobleck" is not supported'),
        ("video_dit", {"seperated_timestep": True}, "seperated_timestep = true"),
        ("audio_dit", {"dim": ..., "eps": ...}, "audio_dit.config.json lacks dim, eps"),
        ("video_dit", {"num_heads": 3}, "video_dit.config.json: .*not a multiple of num_heads 3"),
        ("video_dit", {"dim": "128"}, "video_dit.config.json"),
        ("dual_tower_bridge", {"interaction_strategy": "ful"}, "Did you mean 'full'"),
        ("video_dit_2", {"ffn_dim": 32}, "video_dit and video_dit_2 have different sizes"),
        ("dual_tower_bridge", {"visual_layers": 2}, "bridge.visual_layers is 2"),
        ("", {"audio_dit": [None, None]}, "lists no audio_dit"),
        ("", {"audio_dit": "WanAudioModel"}, r"audio_dit must be \[library, class\]"),
        ("", {"video_vae": ["x", "AutoencoderKLCogVideoX"]}, "video_vae is of class AutoencoderKLCogVideoX"),
        ("", {"audio_vae_type": "oobleck"}, 'audio_vae_type = "oobleck" is not supported'),
        ("", {"_mova_engine": {"clip": {"frames": 4}}}, "_mova_engine.clip"),
    ],
)
def test_a_wrong_checkpoint_is_one_clear_line(tiny_folder, component, changes, words):
    file = tiny_folder / component / "config.json" if component else tiny_folder / "model_index.json"
    _edit(file, **changes)
    with pytest.raises(MovaError, match=words) as caught:
        mova_config_from_folder(tiny_folder)
    assert "\n" not in str(caught.value)


def test_sizes_that_the_weights_do_not_have(tiny_folder, ops):
    for name in ("video_dit", "video_dit_2"):
        _edit(tiny_folder / name / "config.json", ffn_dim=96)
    with pytest.raises(
        MovaError, match=r"video_dit does not fit the model: 3 of another shape \(blocks.0.ffn.0.weight"
    ):
        load_mova(tiny_folder, ops, **CPU)


def test_an_adapted_model_is_not_saved_as_if_it_were_plain(tiny, tiny_folder, ops):
    add_lora(tiny, ["self_attn.q"], rank=2, alpha=2.0)
    with pytest.raises(MovaError, match="carries a LoRA adapter"):
        save_mova(tiny, tiny_folder.parent / "adapted")
    assert [path.name for path in tiny_folder.parent.iterdir()] == ["tiny"]


@pytest.fixture
def nano(ops):
    mova = Mova(get_preset("nano"), ops)
    mova.init_weights(torch.Generator().manual_seed(0))
    return mova


def test_embedded_codecs_travel_with_the_model(nano, tmp_path, ops):
    video = DctVideoCodec().fitted([torch.rand(2, 3, 5, 16, 16) * 2 - 1])
    audio = MdctAudioCodec().fitted([torch.rand(2, 1, 9600) * 2 - 1])
    save_mova(nano, tmp_path / "nano", video_codec=video, audio_codec=audio)
    assert mova_config_from_folder(tmp_path / "nano") == nano.config
    assert _equal(load_mova(tmp_path / "nano", ops, **CPU), nano)
    codecs = load_codecs(tmp_path / "nano")
    assert codecs.video.fingerprint() == video.fingerprint() != DctVideoCodec().fingerprint()
    assert codecs.audio.fingerprint() == audio.fingerprint()
    assert codecs.text.encode(["a ball"]).shape == (1, nano.config.text_tokens, nano.config.video.text_dim)
    save_mova(nano, tmp_path / "again", base=tmp_path / "nano")
    assert load_codecs(tmp_path / "again").video.fingerprint() == video.fingerprint()


def test_an_embedded_codec_is_not_forgotten(nano, tmp_path):
    with pytest.raises(MovaError, match=r"needs its video_vae \(DctVideoCodec\)"):
        save_mova(nano, tmp_path / "nano")
    with pytest.raises(MovaError, match="audio_vae is a MdctAudioCodec, got a DctVideoCodec"):
        save_mova(nano, tmp_path / "nano", video_codec=DctVideoCodec(), audio_codec=DctVideoCodec())
    assert not any(tmp_path.iterdir())


def test_released_models_write_the_options_that_the_reference_asks_for():
    configs = component_configs(get_preset("mova-360p"))
    assert configs["video_dit"] == configs["video_dit_2"]
    assert configs["video_dit"]["require_vae_embedding"] and not configs["audio_dit"]["require_vae_embedding"]
    assert "interaction_layers" not in configs["dual_tower_bridge"]
    custom = replace(get_preset("nano").bridge, interaction_strategy="custom", interaction_layers=(0, 2))
    assert component_configs(replace(get_preset("nano"), bridge=custom))["dual_tower_bridge"]["interaction_layers"] == (
        0,
        2,
    )
