"""The cache gives what encoding gives, knows every change, mends damage, and survives a full disk."""

import logging
import os
from dataclasses import replace

import pytest
import torch
from data_pipeline.conftest import CLIP, COUNT
from data_pipeline.test_encode import FullDisk

from mova_engine.data import cache as cache_module
from mova_engine.data.cache import main
from mova_engine.data.decode import read_clip
from mova_engine.data.metadata import Entry, read_metadata
from mova_engine.errors import MovaError
from mova_engine.models.codecs import build_audio_codec, build_text_encoder, build_video_codec, video_from_uint8


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
    monkeypatch.setattr(cache_module, "LARGE_FILE", large)
    entry = read_metadata(clips)[0]
    old = make_cache().get(entry)
    entry.path.write_bytes((clips / "1.mp4").read_bytes())
    os.utime(entry.path, ns=(1, 1))
    new = make_cache().get(entry)
    assert not torch.equal(old["video_latents"], new["video_latents"]) and len(encodings) == 2


def test_large_files_are_digested_once(clips, make_cache, monkeypatch):
    monkeypatch.setattr(cache_module, "LARGE_FILE", 1)
    entry = read_metadata(clips)[0]
    make_cache().get(entry)
    monkeypatch.setattr(cache_module.hashlib, "file_digest", None)
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


def test_a_full_disk_while_filling_is_one_clear_error(clips, make_cache, monkeypatch):
    entries = read_metadata(clips)
    make_cache().get(entries[0])
    before = {file: file.read_bytes() for file in make_cache().folder.rglob("*.safetensors")}
    monkeypatch.setattr("mova_engine.data.files.open", FullDisk, raising=False)
    with pytest.raises(MovaError, match="cannot write .*: No space left on device"):
        make_cache().fill(entries)
    assert {f: f.read_bytes() for f in make_cache().folder.rglob("*") if f.is_file()} == before


def test_a_full_disk_while_training_is_reported_once_and_training_goes_on(clips, make_cache, monkeypatch, caplog):
    entries = read_metadata(clips)
    expected = [make_cache(folder=clips / "elsewhere").get(entry) for entry in entries]
    monkeypatch.setattr("mova_engine.data.files.open", FullDisk, raising=False)
    cache = make_cache()
    for entry, clip in zip(entries, expected, strict=True):
        assert all(torch.equal(x, clip[name]) for name, x in cache.get(entry).items())
    assert caplog.text.count("No space left on device") == 1
    assert not [file for file in cache.folder.rglob("*") if file.is_file()]


def test_latents_that_are_not_finite_are_refused(clips, make_cache, monkeypatch):
    cache, entries = make_cache(), read_metadata(clips)
    monkeypatch.setattr(cache.audio_codec, "encode", lambda audio: torch.full((1, 128, 11), torch.nan))
    message = "0.mp4: its audio_latents come out not finite"
    with pytest.raises(MovaError, match=message):
        cache.get(entries[0])
    [problem] = cache.fill(entries[:1])
    assert message in problem.reason and not entry_files(cache.folder)


def test_the_command(clips, tmp_path, capsys, caplog):
    """The nano model's clips are longer than these: every one is named."""
    caplog.set_level(logging.ERROR)
    assert main(["--data", str(clips), "--model", "nano", "--cache", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert f"{clips / '0.mp4'}: too short" in out and f"0 of {COUNT} clips are in {tmp_path / 'out'}" in out
    with pytest.raises(MovaError, match="nowhere: no such folder"):
        main(["--data", str(tmp_path / "nowhere"), "--model", "nano"])
