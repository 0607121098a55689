"""The cache gives what encoding gives, knows every change, mends damage, and survives a full disk."""

import logging
import os
from dataclasses import replace

import pytest
import torch
from data_pipeline.conftest import CLIP, COUNT
from data_pipeline.test_encode import FullDisk

from mova_engine.checkpoints.folder import Codecs
from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec, video_from_uint8
from mova_engine.commands.encode import main
from mova_engine.config.model import PRESETS, get_preset
from mova_engine.config.recipes import load_config
from mova_engine.data import latent_cache as cache_module
from mova_engine.data.dataset import open_dataset
from mova_engine.data.media.decode import read_clip
from mova_engine.data.metadata import Entry, read_metadata
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.files import digests
from mova_engine.train.clip_data import open_clips


@pytest.fixture
def encodings(monkeypatch):
    """Ids of clips in the order in which their files are decoded."""
    seen = []

    def counting(path, *args, **options):
        seen.append(path.name)
        return read_clip(path, *args, **options)

    monkeypatch.setattr(cache_module, "read_clip", counting)
    return seen


def entry_files(folder):
    return sorted((folder / "clips").rglob("*.safetensors"))


def test_an_entry_is_what_the_codecs_give(clips, make_cache, encodings):
    entry = read_metadata(clips)[2]
    clip = read_clip(entry.path, CLIP)
    video = video_from_uint8(torch.from_numpy(clip.video))[None]
    still = torch.cat([video[:, :, :1], torch.zeros_like(video[:, :, 1:])], dim=2)
    codec = build_video_codec("dct")
    expected = {
        "video_latents": codec.encode(video)[0],
        "image_latents": codec.encode(still)[0],
        "audio_latents": build_audio_codec("mdct").encode(torch.from_numpy(clip.audio)[None, None])[0],
        "heard": torch.ones(1),
        "text": build_text_encoder("bytes", tokens=8, dim=16).encode([entry.caption])[0],
    }
    for _ in range(2):  # encoded, then read by another run
        found = make_cache().get(entry)
        assert found.keys() == expected.keys()
        for name, x in found.items():
            assert x.dtype == torch.float32
            torch.testing.assert_close(x, expected[name], rtol=0, atol=0)
    assert encodings == ["2.mp4"]


def test_bfloat16_halves_the_space_and_says_the_same_when_read_again(clips, make_cache):
    entry = read_metadata(clips)[0]
    exact = make_cache().get(entry)
    size = entry_files(make_cache().folder)[0].stat().st_size
    first, second = make_cache(dtype="bfloat16").get(entry), make_cache(dtype="bfloat16").get(entry)
    for name, x in first.items():
        assert x.dtype == torch.float32 and torch.equal(x, second[name])
        torch.testing.assert_close(x, exact[name], rtol=2**-8, atol=1e-6)
    assert not torch.equal(first["video_latents"], exact["video_latents"])
    assert min(file.stat().st_size for file in entry_files(make_cache().folder)) < 0.6 * size
    with pytest.raises(MovaError, match="unknown cache dtype 'float16'"):
        make_cache(dtype="float16")


def test_every_cause_of_a_difference_has_its_own_entry(clips, make_cache, encodings):
    entry = read_metadata(clips)[0]
    fitted = build_audio_codec("mdct").fitted([torch.randn(1, 1, 9600)])
    causes = [
        (make_cache(), entry),
        (make_cache(clip=replace(CLIP, width=32)), entry),
        (make_cache(silent="zeros"), entry),
        (make_cache(), replace(entry, start=1 / 24)),
        (make_cache(), replace(entry, path=clips / "1.mp4")),
    ]
    other_codec = make_cache()
    other_codec = type(other_codec)(other_codec.folder, CLIP, other_codec.video_codec, fitted, other_codec.text_encoder)
    for cache, wanted in [*causes, (other_codec, entry)]:
        cache.get(wanted)
    assert len(encodings) == len(causes) + 1 == len(entry_files(make_cache().folder))
    # Not a cause: the file's name, and the caption.
    (clips / "0.mp4").rename(clips / "renamed.mp4")
    make_cache().get(Entry(clips / "renamed.mp4", "other words", "renamed"))
    assert len(encodings) == len(causes) + 1


@pytest.mark.parametrize("large", [1, 1 << 40])
def test_a_changed_file_is_noticed(clips, make_cache, encodings, monkeypatch, large):
    """Whether or not digests of files of its size are kept."""
    monkeypatch.setattr(digests, "LARGE_FILE", large)
    entry = read_metadata(clips)[0]
    old = make_cache().get(entry)
    entry.path.write_bytes((clips / "1.mp4").read_bytes())
    os.utime(entry.path, ns=(1, 1))
    new = make_cache().get(entry)
    assert not torch.equal(old["video_latents"], new["video_latents"]) and len(encodings) == 2


def test_large_files_are_digested_once(clips, make_cache, monkeypatch):
    monkeypatch.setattr(digests, "LARGE_FILE", 1)
    entry = read_metadata(clips)[0]
    make_cache().get(entry)
    monkeypatch.setattr(digests.hashlib, "file_digest", None)
    make_cache().get(entry)


def flip_a_bit(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("damage", [flip_a_bit, cut, lambda data: b"", lambda data: b"x" * 99])
def test_a_damaged_entry_is_reported_and_made_anew(clips, make_cache, encodings, caplog, damage):
    entry = read_metadata(clips)[0]
    good = make_cache().get(entry)
    [file] = entry_files(make_cache().folder)
    for spoilt in (file, *(make_cache().folder / "text").rglob("*.safetensors")):
        spoilt.write_bytes(damage(spoilt.read_bytes()))
    mended = make_cache().get(entry)
    assert all(torch.equal(x, good[name]) for name, x in mended.items())
    assert str(file) in caplog.text and "is damaged" in caplog.text
    caplog.clear()
    make_cache().get(entry)
    assert len(encodings) == 2 and not caplog.text


def test_fill_encodes_what_is_missing_and_names_what_cannot_be_used(clips, make_cache, encodings):
    entries = read_metadata(clips)
    make_cache().get(entries[3])
    encodings.clear()
    (clips / "1.mp4").write_bytes(b"nonsense")
    (clips / "5.mp4").unlink()
    told = []
    problems = make_cache().fill(entries, told.append)
    reasons = {problem.entry.id: problem.reason for problem in problems}
    assert reasons.keys() == {"1.mp4", "5.mp4"}
    assert f"{clips / '1.mp4'}: damaged" in reasons["1.mp4"] and reasons["5.mp4"] == f"{clips / '5.mp4'}: no such file"
    assert told == list(range(1, COUNT + 1)) and sorted(encodings) == ["0.mp4", "1.mp4", "2.mp4", "4.mp4", "6.mp4"]
    assert len(entry_files(make_cache().folder)) == COUNT - 2
    encodings.clear()
    make_cache().fill([entry for entry in entries if entry.id not in ("1.mp4", "5.mp4")])
    assert not encodings


def test_text_features(clips, make_cache):
    cache = make_cache()
    encoder = cache.text_encoder
    assert torch.equal(cache.empty_text(), encoder.encode([""])[0]) and cache.empty_text().any()
    assert torch.equal(cache.text("a b"), encoder.encode(["a b"])[0])
    sizes = [file.stat().st_size for file in (cache.folder / "text").rglob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 8 * 16 * 4  # rows of zeros after the words are not stored


def test_memory_for_text_is_bounded(make_cache, monkeypatch):
    monkeypatch.setattr(cache_module, "TEXT_MEMORY", 3 * 8 * 16 * 4)
    cache = make_cache()
    found = [cache.text(f"caption {index}") for index in range(9)]
    assert len(cache._texts) == 3
    assert all(torch.equal(cache.text(f"caption {index}"), text) for index, text in enumerate(found))


def test_a_file_is_no_cache(make_cache, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MovaError, match="file: a file, not a folder for encoded clips; --loader.cache"):
        make_cache(folder=tmp_path / "file")


def test_a_full_disk_while_filling_is_one_clear_error(clips, make_cache, monkeypatch):
    entries = read_metadata(clips)
    make_cache().get(entries[0])
    before = {file: file.read_bytes() for file in make_cache().folder.rglob("*") if file.is_file()}
    monkeypatch.setattr("mova_engine.files.atomic.open", FullDisk, raising=False)
    with pytest.raises(MovaError, match="cannot write .*: No space left on device; --loader.cache FOLDER"):
        make_cache().fill(entries)
    assert {f: f.read_bytes() for f in make_cache().folder.rglob("*") if f.is_file()} == before


def test_a_full_disk_while_training_is_reported_once_and_training_goes_on(clips, make_cache, monkeypatch, caplog):
    entries = read_metadata(clips)
    expected = [make_cache(folder=clips / "elsewhere").get(entry) for entry in entries]
    monkeypatch.setattr("mova_engine.files.atomic.open", FullDisk, raising=False)
    cache = make_cache()
    for entry, clip in zip(entries, expected, strict=True):
        assert all(torch.equal(x, clip[name]) for name, x in cache.get(entry).items())
    assert caplog.text.count("No space left on device") == 1
    assert not [file for file in cache.folder.rglob("*") if file.is_file()]


def test_latents_that_are_not_finite_are_refused(clips, make_cache, monkeypatch):
    cache, entries = make_cache(), read_metadata(clips)
    monkeypatch.setattr(cache.audio_codec, "encode", lambda audio: torch.full((1, 128, 11), torch.nan))
    message = "0.mp4: its audio_latents are not finite"
    with pytest.raises(MovaError, match=message):
        cache.get(entries[0])
    [problem] = cache.fill(entries[:1])
    assert message in problem.reason and not entry_files(cache.folder)


def test_the_command(clips, tmp_path, capsys, caplog):
    """The nano model's clips are longer than these: every one is named."""
    caplog.set_level(logging.ERROR)
    # Their own size: resizing takes torch, which each new reader imports, and one that met a bad clip is replaced.
    size = ["--clip.height", str(CLIP.height), "--clip.width", str(CLIP.width)]
    assert main(["--data", str(clips), "--model", "nano", "--out", str(tmp_path / "out"), *size]) == 1
    out = capsys.readouterr().out
    assert f"{clips / '0.mp4'}: too short" in out and f"0 of {COUNT} clips are in {tmp_path / 'out'}" in out
    with pytest.raises(MovaError, match="nowhere: no such folder"):
        main(["--data", str(tmp_path / "nowhere"), "--model", "nano"])


CHANGES = [
    ({"dtype": "bfloat16"}, "dtype bfloat16, not float32; --loader.dtype bfloat16 takes them"),
    ({"silent": "zeros"}, "silent zeros, not refuse; --loader.silent-audio zeros takes them"),
    ({"dtype": "bfloat16", "silent": "zeros"}, "--loader.dtype bfloat16 --loader.silent-audio zeros takes them"),
    ({"clip": replace(CLIP, height=16)}, "5 frames of 16x48 at 24.0 fps, not 5 frames of 32x48 at 24.0 fps"),
]


@pytest.mark.parametrize(("options", "words"), CHANGES)
def test_clips_that_are_stored_in_another_form_are_named(clips, make_cache, caplog, options, words):
    lines = (clips / "metadata.jsonl").read_text().splitlines(keepends=True)[:2]
    (clips / "metadata.jsonl").write_text("".join(lines))
    entries, ahead = read_metadata(clips), "clip" in options
    assert make_cache(**options).fill(entries) == []
    open_dataset(clips, make_cache(), ahead=ahead)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "holds these clips in another form: " in said and words in said and said.endswith("they are encoded anew")
    caplog.clear()
    for given in ({}, options):
        make_cache(**given).fill(entries)
        open_dataset(clips, make_cache(**given), ahead=ahead)
    assert not caplog.records, "what is there is not complained of"


def test_other_clips_in_the_same_cache_are_no_other_form(clips, make_cache):
    entries = read_metadata(clips)
    make_cache(dtype="bfloat16").fill(entries[:3])
    cache = make_cache()
    assert "dtype bfloat16" in cache.stored_otherwise(entries)
    assert cache.stored_otherwise(entries[3:]) is None
    for path in (cache.folder / "forms").iterdir():
        path.write_text("[1")
    assert cache.stored_otherwise(entries) is None


@pytest.fixture
def tiny_preset(monkeypatch):
    """A size of model that fits the clips."""
    nano = replace(get_preset("nano"), name="tiny", clip=CLIP)
    monkeypatch.setitem(PRESETS, "tiny", nano)
    return nano


def test_shares_fill_one_cache_that_the_trainer_finds(clips, tmp_path, tiny_preset, capsys, encodings, caplog):
    """Three processes of the command, bfloat16: each clip is encoded once, and a run of bfloat16 finds all of them."""
    common = ["--data", str(clips), "--model", "tiny", "--dtype", "bfloat16"]
    for share in ("1/3", "2/3", "3/3"):
        assert main([*common, "--shard", share]) == 0
    assert sorted(encodings) == [f"{index}.mp4" for index in range(COUNT)]
    assert "share 2 of 3: 2 of 2 clips are in" in capsys.readouterr().out
    config = load_config("nano", data=clips, device="cpu", loader={"dtype": "bfloat16"})
    codecs = build_video_codec("dct"), build_audio_codec("mdct")
    text = build_text_encoder("bytes", tokens=tiny_preset.text_tokens, dim=tiny_preset.video.text_dim)

    def opened(config):
        return open_clips(config, tiny_preset, Codecs(*codecs, text), None, clips, lambda *_: None, Processes())

    encodings.clear()
    assert len(opened(config)) == COUNT and not encodings and not caplog.records
    opened(replace(config, loader=replace(config.loader, dtype="float32")))
    assert len(encodings) == COUNT and "--loader.dtype bfloat16 takes them" in caplog.text


def test_torchruns_ranks_are_shares(clips, tmp_path, tiny_preset, capsys, monkeypatch):
    common = ["--data", str(clips), "--model", "tiny", "--out", str(tmp_path / "out")]
    place = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert main(common) == 0
    assert "share 2 of 2: 3 of 3 clips are in" in capsys.readouterr().out
    with pytest.raises(MovaError, match="--shard and torchrun both divide the clips"):
        main([*common, "--shard", "1/2"])


@pytest.mark.parametrize("share", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2"])
def test_a_share_that_is_none_is_one_line(clips, share):
    with pytest.raises(MovaError, match=f"--shard takes I/N, .* got '{share}'"):
        main(["--data", str(clips), "--model", "nano", f"--shard={share}"])
