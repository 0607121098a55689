"""The adapter of transformers' UMT5 encoder, on a tiny random one with a small word tokenizer."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mova_engine.codecs import TextEncoder, build_text_encoder
from mova_engine.errors import MovaError

WORDS = ["a", "red", "ball", "bouncing", "on", "the", "floor", "&", "'", '"', "café"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder with text_encoder and tokenizer."""
    for package in ("transformers", "tokenizers", "ftfy"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra [codecs])")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    folder = tmp_path_factory.mktemp("umt5")
    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=16, d_model=12, d_kv=4, d_ff=24, num_layers=2, num_heads=3)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


def build(folder: Path, tokens: int = 8, dtype: torch.dtype | None = torch.float32) -> TextEncoder:
    return build_text_encoder("umt5", folder, tokens=tokens, dim=12, dtype=dtype)


def test_features_end_with_the_prompt(folder: Path) -> None:
    encoder = build(folder)
    assert isinstance(encoder, TextEncoder)
    features = encoder.encode(["a red ball", ""])
    assert features.shape == (2, 8, 12)
    # Words and the end token; the empty prompt is the end token alone.
    assert (features.abs().sum(2) > 0).sum(1).tolist() == [4, 1]
    assert not features.requires_grad
    torch.testing.assert_close(features[:1], encoder.encode(["a red ball"]))
    unpadded = build(folder, tokens=4).encode(["a red ball"])
    torch.testing.assert_close(features[:1, :4], unpadded, atol=1e-6, rtol=1e-5)


def test_prompts_are_cleaned_as_in_wan(folder: Path) -> None:
    encoder = build(folder)
    plain = encoder.encode(["a & ' café"])
    assert plain[0, 4].abs().sum() > 0
    # Twice-escaped entity, curly quote, mojibake, white space.
    assert torch.equal(encoder.encode(["  a &amp;amp;\n\u2019  cafÃ© "]), plain)


def test_long_prompts_are_cut_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = build(folder, tokens=4)
    fits = encoder.encode(["a red ball"])
    assert not caplog.records
    cut = encoder.encode(["a red ball bouncing on the floor"])
    assert "8 tokens, only the first 4 are used: 'a red ball bouncing" in caplog.text
    torch.testing.assert_close(cut, fits)


def test_dtype_and_fingerprint(folder: Path) -> None:
    encoder, half = build(folder), build(folder, dtype=None)
    assert half.encode(["a"]).dtype == torch.bfloat16
    prints = {e.fingerprint() for e in (encoder, half, build(folder, tokens=4))}
    assert len(prints) == 3
    assert build(folder).fingerprint() == encoder.fingerprint()


def test_folders_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MovaError, match="gives 12 features, the model needs 64"):
        build_text_encoder("umt5", folder, tokens=8, dim=64)
    with pytest.raises(MovaError, match="list of strings"):
        build(folder).encode("a red ball")
    with pytest.raises(MovaError, match="none was given"):
        build_text_encoder("umt5", tokens=8, dim=12)
    with pytest.raises(MovaError, match="text_encoder is not a folder"):
        build(tmp_path)
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / name).mkdir()
        for file in (folder / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights.pop("encoder.final_layer_norm.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(MovaError, match="encoder.final_layer_norm.weight"):
        build(tmp_path)
    weights["encoder.final_layer_norm.weight"] = torch.ones(5)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(MovaError, match="text encoder 'umt5'"):
        build(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MovaError, match="cannot load"):
        build(tmp_path)
    path.unlink()
    with pytest.raises(MovaError, match="cannot load"):
        build(tmp_path)
