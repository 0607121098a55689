"""Signed wav files: the sound is as it was, the signature the same each time, every change found and named."""

import av
import numpy as np
import pytest

pytest.importorskip("c2pa", reason="signing needs the extra `serve`")

from mova_engine.data.media.provenance import signed
from mova_engine.data.media.signed_formats import content_digests
from mova_engine.data.media.signer import Signer
from mova_engine.data.media.verified_file import verify_file
from mova_engine.data.media.wav_chunks import C2PA_CHUNK, chunks, without_c2pa_chunk
from mova_engine.data.media.write_sound import encode_sound_file
from mova_engine.errors import MovaError

FACTS = {"seed": 3, "weights": {"audio_dit/model.safetensors": "ab" * 32}}


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return Signer.open(tmp_path_factory.mktemp("signing"))


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def sound() -> bytes:
    return encode_sound_file("sound.wav", 0.1 * np.random.default_rng(0).standard_normal(2000).astype(np.float32))


@pytest.fixture(scope="module")
def signed_sound(sound, signer) -> bytes:
    return signed(sound, FACTS, signer)


@pytest.fixture
def verified(tmp_path):
    def verify(data):
        (tmp_path / "verified.wav").write_bytes(data)
        return verify_file(tmp_path / "verified.wav")

    return verify


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def decoded(path) -> bytes:
    with av.open(str(path)) as container:
        return b"".join(frame.to_ndarray().tobytes() for frame in container.decode(audio=0))


def store_of(data: bytes):
    return next(chunk for chunk in chunks(data) if chunk.kind == C2PA_CHUNK)


def test_the_sound_is_as_it_was_and_the_signature_the_same_each_time(sound, signed_sound, signer, tmp_path):
    for name, data in {"before": sound, "after": signed_sound}.items():
        (tmp_path / f"{name}.wav").write_bytes(data)
    assert decoded(tmp_path / "before.wav") == decoded(tmp_path / "after.wav")
    assert without_c2pa_chunk(signed_sound) == sound
    assert signed(sound, FACTS, signer) == signed_sound
    assert signed(sound, {**FACTS, "seed": 4}, signer) != signed_sound


def test_what_is_stated_of_a_sound_is_read_back(sound, signed_sound, signer, verified):
    found = verified(signed_sound)
    assert (found.state, found.signer, found.problems) == ("valid", signer.name, ())
    assert (found.actions, found.source) == (("c2pa.created",), "trainedAlgorithmicMedia")
    assert found.facts == {**FACTS, "content": content_digests(sound)}
    assert content_digests(sound).keys() == {"sha256", "data", "fmt"}
    removed = verified(without_c2pa_chunk(signed_sound))
    assert (removed.state, removed.facts) == ("unsigned", None)


def test_a_flipped_byte_of_each_part_of_a_sound_is_found_and_named(signed_sound, verified):
    parts = {chunk.kind: chunk for chunk in chunks(signed_sound)}
    media, header, info = (parts[kind] for kind in (b"data", b"fmt ", b"LIST"))
    places = {
        "its sound (data)": (media.content, (media.content + media.end) // 2, media.end - 1),
        "its header (fmt": (header.content, header.end - 1),
        "outside of data and fmt": (info.content + 9,),
    }
    for words, every in places.items():
        for place in every:
            found = verified(flipped(signed_sound, place))
            assert found.state == "altered", place
            assert words in found.problems[0], (place, found.problems)
    # The length in the file's head, which is not covered by the digests of the parts.
    assert verified(flipped(signed_sound, 4)).state == "altered"
    store = store_of(signed_sound)
    # Its kind and its length, then what it holds.
    drawn = np.random.default_rng(0).choice(np.arange(store.content, store.end), 40, replace=False).tolist()
    for place in (*range(store.begin, store.content), *drawn):
        assert verified(flipped(signed_sound, place)).state == "altered", place - store.begin


@pytest.mark.long
def test_a_change_of_any_byte_of_the_chunk_is_found(signed_sound, verified):
    store = store_of(signed_sound)
    # All but most of the zeros that fill it.
    for place in (*range(store.begin, store.begin + 2600), *range(store.end - 120, store.end)):
        assert verified(flipped(signed_sound, place)).state == "altered", place - store.begin


def test_a_sound_that_was_cut_or_appended_to_is_found(sound, signed_sound, verified):
    store = store_of(signed_sound)
    for end in (store.begin + 60, store.end - 1):
        found = verified(signed_sound[:end])
        assert (found.state, "is cut short" in found.problems[0]) == ("altered", True), end
    for more in (b"\0" * 8, b"data\4\0\0\0\1\0\1\0"):
        assert verified(signed_sound + more).state == "altered"
    with pytest.raises(MovaError, match="its chunk 'data' has 10 bytes fewer"):
        verified(sound[:-10])
    with pytest.raises(MovaError, match="not an mp4 or wav file"):
        verified(b"RIFF" + sound[4:8] + b"AVI " + sound[12:])


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_chunk_of_odd_length_is_filled_up(length, sound, signer, verified):
    odd = sound + b"note" + length.to_bytes(4, "little") + b"x" * length + bytes(length % 2)
    odd = odd[:4] + (len(odd) - 8).to_bytes(4, "little") + odd[8:]
    data = signed(odd, FACTS, signer)
    assert without_c2pa_chunk(data) == odd
    assert verified(data).state == "valid"
