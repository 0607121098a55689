"""CLAP's arithmetic around the network, and a network of a few channels: padding, pieces of long sounds, prompts."""

import json

import numpy as np
import pytest
import torch

from mova_engine.errors import MovaError
from mova_engine.scores import clap_score
from mova_engine.scores.networks.clap import Clap, ClapSizes
from mova_engine.scores.networks.htsat import HtsatSizes
from mova_engine.scores.networks.official_networks import open_tokenizer
from mova_engine.scores.networks.roberta import RobertaSizes

SOUND = HtsatSizes(8000, 8000, 64, 80, 8, 50.0, 4000.0, 3, size=32, width=8, depths=(2, 2), heads=(2, 4), window=4)
SIZES = ClapSizes(SOUND, RobertaSizes(20, 12, 16, 2, 2, 32), 8)


def random():
    return np.random.RandomState(7)


@pytest.mark.parametrize("n", [1000, 3500, 7999, 8000])
def test_short_sounds_are_repeated_whole_and_then_silent(n):
    sound = torch.randn(n)
    read = clap_score.fused_mels(sound, SOUND, random())
    times = 8000 // n
    expected = clap_score.log_mel(torch.cat([sound.repeat(times), torch.zeros(8000 - times * n)]), SOUND)
    assert not read.longer and read.mels.shape == (4, 101, 8)
    for mel in read.mels:
        torch.testing.assert_close(mel, expected, atol=0, rtol=0)


def test_long_sounds_are_shrunk_and_heard_in_three_pieces():
    sound = torch.randn(12000)
    whole = clap_score.log_mel(sound, SOUND)
    read = clap_score.fused_mels(sound, SOUND, random())
    front, middle, back = read.starts
    assert read.longer and 0 <= front < 17 <= middle < 34 <= back < 51
    for mel, start in zip(read.mels[1:], read.starts, strict=True):
        torch.testing.assert_close(mel, whole[start : start + 101], atol=0, rtol=0)
    torch.testing.assert_close(read.mels[0].mean(0), whole.mean(0), atol=0.2, rtol=0)
    # A few samples more than a clip have no frame more, and one frame more has no place for three pieces.
    assert not clap_score.fused_mels(torch.randn(8030), SOUND, random()).longer
    assert clap_score.fused_mels(torch.randn(8080), SOUND, random()).starts[2] == 0


def test_an_embedding_depends_on_no_other_sound_of_the_batch():
    network = Clap(SIZES).eval()
    sounds = [torch.randn(n) for n in (12000, 900, 8000, 13000)]
    together = clap_score.sound_embeddings(network, sounds)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    for sound, embedding in zip(sounds, together, strict=True):
        torch.testing.assert_close(clap_score.sound_embeddings(network, [sound])[0], embedding, atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], clap_score.sound_embeddings(network, sounds[:1], seed=1)[0], atol=1e-5)


def test_texts_do_not_hear_their_padding():
    network = Clap(SIZES).eval()
    tokens = torch.tensor([[0, 5, 6, 2, 1, 1, 1], [0, 7, 8, 9, 10, 11, 2]])
    together = clap_score.text_embeddings(network, tokens, tokens != 1)
    alone = clap_score.text_embeddings(network, tokens[:1, :4], torch.ones(1, 4))
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)
    with pytest.raises(MovaError, match="11 tokens are more than this network's 10 positions"):
        clap_score.text_embeddings(network, torch.zeros(1, 11), torch.ones(1, 11))


def test_the_published_convention_hears_32_khz_as_48():
    sound = np.sin(2 * np.pi * 600 * np.arange(24000) / 48000).astype(np.float32) * 0.1
    published = clap_score.heard_by_clap(sound, 48000, "mova")
    corrected = clap_score.heard_by_clap(sound, 48000, "corrected")
    assert (len(published), len(corrected)) == (16000, 24000)
    for heard, hertz in ((published, 900), (corrected, 600)):
        assert heard.abs().max() == pytest.approx(10 ** (-1 / 20), abs=1e-4)
        assert torch.fft.rfft(heard).abs().argmax() * 48000 / len(heard) == hertz
        assert (heard * 32767 - (heard * 32767).round()).abs().max() < 4e-3
    for silence in (np.zeros(100, np.float32), np.zeros(0, np.float32)):
        with pytest.raises(MovaError, match="digital silence"):
            clap_score.heard_by_clap(silence, 32000, "mova")


def test_prompts_by_prefix_and_by_whole_id():
    prompts = {"1": "one", "12": "twelve", "clip_a1": "hex"}
    names = ["1_x", "12_a", "12", "120", "x_clip_a1_y", "clip_a1", "b"]
    published = {"1_x": "one", "12_a": "one", "12": "one", "120": "one", "x_clip_a1_y": "hex", "clip_a1": "hex"}
    assert clap_score.prompts_of_files(names, prompts, "mova") == published
    corrected = {"1_x": "one", "12_a": "twelve", "12": "twelve", "clip_a1": "hex"}
    assert clap_score.prompts_of_files(names, prompts, "corrected") == corrected


@pytest.mark.networks  # the tokenizers package takes seconds to import
def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(MovaError, match="holds no tokenizer of roberta-base"):
        clap_score.tokenise(["a dog"], tmp_path)


@pytest.mark.networks
def test_the_files_of_a_tokenizer_are_tried(tmp_path):
    """roberta-base's own numbers of one sentence in a small vocabulary, and files that are no such tokenizer."""
    pytest.importorskip("transformers")
    pieces = ["H", "e", "l", "o", "He", "ll", "Hell", "\u0120", "w", "r", "d", "\u0120w", "or", "\u0120wor", "ld"]
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "Hello": 31414, "\u0120world": 232}
    vocabulary = special | {piece: 10 + i for i, piece in enumerate(pieces)}
    merges = ["H e", "l l", "He ll", "Hell o", "\u0120 w", "o r", "\u0120w or", "l d", "\u0120wor ld"]
    good = {
        "vocab.json": json.dumps(vocabulary),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "config.json": json.dumps({"model_type": "roberta"}),
    }
    others = {
        "whole": good,
        "garbage": good | {"vocab.json": "garbage"},
        "numbers": good | {"vocab.json": json.dumps(vocabulary | {"Hello": 7})},
        "empty": dict.fromkeys(good, "{}"),
        "text": dict.fromkeys(good, "some text"),
    }
    for name, files in others.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content, encoding="utf-8")
        if name == "whole":
            assert open_tokenizer(tmp_path / name) == tmp_path / name
        else:
            with pytest.raises(MovaError, match=r"tokenizer (of|than) roberta-base"):
                open_tokenizer(tmp_path / name)
