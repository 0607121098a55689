"""A complete folder, with the released kinds of codecs and text encoder at tiny sizes: fine-tune, save, use again."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from mova_engine.checkpoints.folder import load_codecs, load_mova, save_mova
from mova_engine.codecs.dac import Dac, DacConfig


@pytest.fixture
def complete(tiny_folder):
    """The tiny checkpoint with video_vae, audio_vae, text_encoder and tokenizer as their own packages save them."""
    for package in ("diffusers", "transformers", "tokenizers", "ftfy"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra [codecs])")
    from diffusers import AutoencoderKLWan
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(tiny_folder / "video_vae")
    dac = Dac(DacConfig(encoder_dim=2, encoder_rates=(2, 3), latent_dim=6, decoder_dim=8, decoder_rates=(3, 2)))
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
