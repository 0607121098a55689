"""A complete folder, with the released kinds of codecs and text encoder at tiny sizes: fine-tune, save, use again."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_codecs, load_mova, save_mova
from mova_engine.codecs.dac import Dac, DacConfig
from mova_engine.config.memory import MemoryConfig
from mova_engine.inference.denoising import EXPERTS
from mova_engine.inference.pipeline import SampleSettings, load_pipeline
from mova_engine.inference.requests import Request


@pytest.fixture
def complete(tiny_folder):
    """The tiny checkpoint with video_vae, audio_vae, text_encoder and tokenizer as their own packages save them."""
    for package in ("diffusers", "transformers", "tokenizers", "ftfy"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra [codecs])")
    from diffusers import AutoencoderKLWan
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(tiny_folder / "video_vae")
    dac = Dac(DacConfig(encoder_dim=2, encoder_rates=(2, 3), latent_dim=128, decoder_dim=8, decoder_rates=(3, 2)))
    (tiny_folder / "audio_vae").mkdir()
    (tiny_folder / "audio_vae" / "config.json").write_text(json.dumps({"_class_name": "DAC", **asdict(dac.config)}))
    save_file(dac.state_dict(), tiny_folder / "audio_vae" / "diffusion_pytorch_model.safetensors")
    config = UMT5Config(vocab_size=8, d_model=32, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(tiny_folder / "text_encoder")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "ball": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(tiny_folder / "tokenizer")
    index = json.loads((tiny_folder / "model_index.json").read_text())
    index |= {
        "video_vae": ["diffusers", "AutoencoderKLWan"],
        "audio_vae": ["mova.diffusion.models.dac_vae", "DAC"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
    }
    (tiny_folder / "model_index.json").write_text(json.dumps(index))
    return tiny_folder


def test_a_fine_tuned_model_keeps_its_codecs(complete, tmp_path, ops):
    mova = load_mova(complete, ops, device="cpu")
    with torch.no_grad():
        mova.audio_dit.head.head.bias.add_(1.0)
    save_mova(mova, tmp_path / "tuned", base=complete)
    before = load_codecs(complete)
    shutil.rmtree(complete)
    after = load_codecs(tmp_path / "tuned")
    assert [codec.name for codec in after] == ["wan", "dac", "umt5"]
    assert [codec.fingerprint() for codec in after] == [codec.fingerprint() for codec in before]
    again = load_mova(tmp_path / "tuned", ops, device="cpu")
    assert torch.equal(again.audio_dit.head.head.bias, mova.audio_dit.head.head.bias)
    index = json.loads((tmp_path / "tuned" / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "T5TokenizerFast"]
    assert after.text.encode(["ball"]).shape == (1, mova.config.text_tokens, 32)


@pytest.mark.parametrize("expert", ["device", "host"])
def test_codecs_that_come_and_go_change_no_bit_of_a_clip(complete, expert):
    backend = get_backend("cpu")
    staged = load_pipeline(complete, backend, memory=MemoryConfig(expert=expert))
    staying = replace(load_pipeline(complete, backend), codecs=load_codecs(complete), residency=None)
    requests = [Request(caption, seed) for seed, caption in enumerate(["ball", "", "ball"])]
    settings = SampleSettings(2)
    for ours, theirs in zip(
        staged.generate(requests, settings, batch=2), staying.generate(requests, settings, batch=2), strict=True
    ):
        assert np.array_equal(ours.video, theirs.video) and np.array_equal(ours.audio, theirs.audio)
    report = staged.residency.report()
    moves = [(event.part, event.what) for event in report.events]
    experts = [(name, what) for name in EXPERTS for what in ("loaded", "evicted")] if expert == "host" else []
    decoding = [("video_vae", "loaded"), ("audio_vae", "loaded"), ("audio_vae", "evicted"), ("video_vae", "evicted")]
    encoding = [(name, what) for name in ("text_encoder", "video_vae") for what in ("loaded", "evicted")]
    encoding[1] = ("text_encoder", "dropped")
    assert moves == encoding + (experts + decoding) * 2, "words of both batches are encoded at once"
    assert staged.codecs.text.weights is None
    assert not {"text_encoder", "video_vae", "audio_vae"} & {name for name, x in report.parts.items() if x.resident}
    # Once more: what was dropped is loaded from the folder.
    (again,) = staged.generate(requests[:1], settings)
    (expected,) = staying.generate(requests[:1], settings)
    assert np.array_equal(again.video, expected.video) and np.array_equal(again.audio, expected.audio)
