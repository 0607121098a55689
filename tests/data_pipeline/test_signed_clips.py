"""Signed clips: what is signed plays as before, is the same each time, and every change of it is found."""

import os
import random
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import av
import numpy as np
import pytest

pytest.importorskip("c2pa", reason="signing needs the extra `serve`")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mova_engine.data.media import signer as signer_module
from mova_engine.data.media.mp4_boxes import boxes, header_first, without_c2pa
from mova_engine.data.media.provenance import signed
from mova_engine.data.media.signed_formats import content_digests
from mova_engine.data.media.signer import Signer
from mova_engine.data.media.verified_file import verify_file
from mova_engine.data.media.write import encode_mp4
from mova_engine.errors import MovaError

FACTS = {"seed": 3, "weights": {"video_dit/model.safetensors": "ab" * 32}}


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return Signer.open(tmp_path_factory.mktemp("signing"))


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def clip() -> bytes:
    draw = np.random.default_rng(0)
    video = draw.integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)
    return encode_mp4("clip.mp4", video, 0.1 * draw.standard_normal(10000).astype(np.float32))


@pytest.fixture(scope="module")
def signed_clip(clip, signer) -> bytes:
    return signed(clip, FACTS, signer)


@pytest.fixture
def verified(tmp_path):
    def verify(data, **more):
        (tmp_path / "verified.mp4").write_bytes(data)
        return verify_file(tmp_path / "verified.mp4", **more)

    return verify


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def box_of(data: bytes, kind: bytes):
    return next(box for box in boxes(data) if box.kind == kind)


def decoded(path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray().tobytes() for frame in container.decode()]


def packets(path) -> list[tuple]:
    with av.open(str(path)) as container:
        return [(p.stream_index, p.pts, p.dts, bytes(p)) for p in container.demux()]


def test_pictures_sound_and_times_are_those_of_the_unsigned_clip(clip, signer, tmp_path):
    for name, data in {"as_written": clip, "header_first": header_first(clip)}.items():
        before, after = tmp_path / f"{name}.mp4", tmp_path / f"{name}.signed.mp4"
        before.write_bytes(data)
        after.write_bytes(signed(data, FACTS, signer))
        assert decoded(before) == decoded(after)
        assert packets(before) == packets(after)
        assert without_c2pa(after.read_bytes()) == data
        kinds = [[box.kind for box in boxes(path.read_bytes())] for path in (before, after)]
        assert [kind for kind in kinds[1] if kind != b"uuid"] == kinds[0]


def test_the_header_goes_first_and_every_frame_is_where_it_was(clip, tmp_path):
    moved = header_first(clip)
    kinds = [box.kind for box in boxes(moved)]
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    assert header_first(moved) == moved
    for name, data in {"clip": clip, "moved": moved}.items():
        (tmp_path / name).write_bytes(data)
    assert packets(tmp_path / "clip") == packets(tmp_path / "moved")


def test_the_same_clip_signs_to_the_same_bytes(clip, signed_clip, signer, tmp_path):
    assert signed(clip, FACTS, signer) == signed_clip
    assert signed(clip, {**FACTS, "seed": 4}, signer) != signed_clip
    for data in (clip, signed_clip):
        parent = tmp_path / "parent.mp4"
        parent.write_bytes(data)
        first, again = (signed(clip, FACTS, signer, parent=parent) for _ in range(2))
        assert first == again


def test_what_is_stated_is_read_back(signed_clip, clip, verified, signer):
    found = verified(signed_clip)
    assert (found.state, found.trusted, found.problems) == ("valid", False, ())
    assert (found.actions, found.source) == (("c2pa.created",), "trainedAlgorithmicMedia")
    assert found.facts == {**FACTS, "content": content_digests(clip)}
    assert (found.signer, found.issuer, found.algorithm) == (signer.name, "mova_engine", "Es256")


def test_a_signer_is_trusted_by_its_authority_and_by_its_own_user(clip, verified, tmp_path, signed_clip):
    own, other = Signer.open(tmp_path / "own"), Signer.open(tmp_path / "other")
    authority = tmp_path / "own" / "authority.pem"
    assert verified(signed(clip, FACTS, own), trust=[authority]).trusted
    assert not verified(signed(clip, FACTS, other), trust=[authority]).trusted
    assert verified(signed(clip, FACTS, Signer.open())).trusted
    with pytest.raises(MovaError, match=r"text.txt: holds no certificate in PEM"):
        (tmp_path / "text.txt").write_text("none")
        verified(signed_clip, trust=[tmp_path / "text.txt"])


def test_a_change_in_each_part_is_found_and_named(signed_clip, verified):
    media, header, store = (box_of(signed_clip, kind) for kind in (b"mdat", b"moov", b"uuid"))
    places = {
        "pictures or sound": (media.content, (media.content + media.end) // 2, media.end - 1),
        "header (moov": (header.content + 30, header.end - 1),
        "outside of mdat and moov": (12,),
    }
    for words, every in places.items():
        for place in every:
            found = verified(flipped(signed_clip, place))
            assert found.state == "altered", place
            assert words in found.problems[0], (place, found.problems)
    draw = random.Random(0)
    # What identifies the box ends 24 bytes after its beginning: without that it is no box of C2PA.
    for place in [store.content + 16, *draw.sample(range(store.content + 16, store.end), 40)]:
        found = verified(flipped(signed_clip, place))
        assert found.state == "altered", place - store.begin


@pytest.mark.long
def test_a_change_of_any_byte_of_the_box_is_found(signed_clip, verified):
    store = box_of(signed_clip, b"uuid")
    # All but most of the zeros that fill it.
    for place in (*range(store.content + 16, store.begin + 2600), *range(store.end - 120, store.end)):
        assert verified(flipped(signed_clip, place)).state == "altered", place - store.begin


def test_what_was_cut_removed_appended_or_encoded_anew(signed_clip, clip, verified):
    store, media = box_of(signed_clip, b"uuid"), box_of(signed_clip, b"mdat")
    for end in (store.begin + 60, store.end - 1, media.begin + 500, len(signed_clip) - 10):
        found = verified(signed_clip[:end])
        assert (found.state, "is cut short" in found.problems[0]) == ("altered", True), end
    for more in (b"\0" * 8, b"\0\0\0\x10free12345678", b"\0\0\0\x10skip12345678"):
        assert verified(signed_clip + more).state == "altered"
    removed = without_c2pa(signed_clip)
    assert removed == clip
    assert verified(removed).state == "unsigned"


def test_what_is_no_mp4_is_an_error(clip, verified, tmp_path):
    wrong = {
        "is empty": b"", "not an mp4 or wav file": b"plain text, no clip", "is cut short": clip[:-10],
    }  # fmt: skip
    for words, data in wrong.items():
        with pytest.raises(MovaError, match=words):
            verified(data)
    for path, words in ((tmp_path / "nowhere.mp4", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(MovaError, match=words):
            verify_file(path)


def test_a_parent_comes_along_with_its_own_state(clip, signed_clip, signer, verified, tmp_path):
    media = box_of(signed_clip, b"mdat")
    states = {"unsigned": clip, "valid": signed_clip, "altered": flipped(signed_clip, media.end - 9)}
    for state, data in states.items():
        (tmp_path / "parent.mp4").write_bytes(data)
        found = verified(signed(clip, FACTS, signer, parent=tmp_path / "parent.mp4"))
        assert found.state == "valid"
        assert found.actions == ("c2pa.opened", "c2pa.edited")
        assert found.source == "compositeWithTrainedAlgorithmicMedia"
        assert found.ingredients == ({"title": "parent.mp4", "relationship": "parentOf", "state": state},)


def test_what_is_no_clip_is_refused(signer):
    with pytest.raises(MovaError):
        signed(b"no clip at all", FACTS, signer)


def test_the_own_key_is_made_once_and_for_its_owner_alone(tmp_path):
    folder = tmp_path / "made"
    with ThreadPoolExecutor(8) as pool:
        chains = {signer.chain for signer in pool.map(lambda _: Signer.open(folder), range(8))}
    assert len(chains) == 1
    assert stat.S_IMODE(os.stat(folder / "signer.pem").st_mode) == 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["authority.pem", "signer.pem"]
    assert b"PRIVATE" not in (folder / "authority.pem").read_bytes()


def test_a_certificate_that_ran_out_is_renewed_with_a_warning(tmp_path, monkeypatch, caplog, clip, verified):
    with monkeypatch.context() as patched:
        patched.setattr(signer_module, "_LIFE", timedelta(hours=25))
        old = Signer.open(tmp_path)
    later = old.ends + timedelta(hours=1)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return later

    monkeypatch.setattr(signer_module, "_LIFE", timedelta(days=400))
    monkeypatch.setattr(signer_module, "datetime", Later)
    new = Signer.open(tmp_path)
    assert new.chain != old.chain
    assert "ran out on" in caplog.text
    assert (tmp_path / "authority.pem").read_bytes() in new.chain


def bought(folder, key, days=(-1, 100), usage=True, name="A Studio"):
    """A certificate as an authority sells them: its chain and its key as files."""
    authority, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)

    def make(subject, public, is_authority):
        named = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in ("An Authority", subject)]
        made = x509.CertificateBuilder(*named, public, x509.random_serial_number())
        made = made.not_valid_before(now + timedelta(days[0])).not_valid_after(now + timedelta(days[1]))
        made = made.add_extension(x509.BasicConstraints(is_authority, None), True)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
        made = made.add_extension(issuer, False)
        bits = [not is_authority, False, False, False, False, is_authority, is_authority, False, False]
        made = made.add_extension(x509.KeyUsage(*bits), True)
        if usage and not is_authority:
            made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        return made.sign(authority, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)

    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(make(name, key.public_key(), False) + make("An Authority", authority.public_key(), True))
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    private.chmod(0o600)
    return chain, private


KEYS = {
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ED25519": ed25519.Ed25519PrivateKey.generate,
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("algorithm", KEYS)
def test_bought_certificates_sign_by_every_algorithm(algorithm, clip, tmp_path, verified):
    signer = Signer.open(None, *bought(tmp_path, KEYS[algorithm]()))
    assert (signer.algorithm, signer.name, signer.own) == (algorithm, "A Studio", False)
    first, again = (signed(clip, FACTS, signer) for _ in range(2))
    found = verified(first)
    assert (found.state, found.signer) == ("valid", "A Studio")
    # Signatures of RSA are random.
    assert (first == again) == (algorithm != "PS256")
    assert without_c2pa(first) == without_c2pa(again) == clip


def test_certificates_that_cannot_sign_are_refused_at_the_start(tmp_path):
    chain, key = bought(tmp_path, KEYS["ES256"]())
    other = tmp_path / "other"
    other.mkdir()
    _, wrong_key = bought(other, KEYS["ES256"]())
    with pytest.raises(MovaError, match="go together"):
        Signer.open(None, chain, None)
    with pytest.raises(MovaError, match="is not the private key of the first certificate"):
        Signer.open(None, chain, wrong_key)
    with pytest.raises(MovaError, match="no such file"):
        Signer.open(None, chain, tmp_path / "nowhere.pem")
    with pytest.raises(MovaError, match="holds no private key"):
        Signer.open(None, chain, chain)
    with pytest.raises(MovaError, match="holds no certificates"):
        Signer.open(None, key, key)
    first, second = chain.read_bytes().split(b"-----BEGIN")[1:]
    chain.write_bytes(b"-----BEGIN" + second + b"-----BEGIN" + first)
    with pytest.raises(MovaError, match="put the signer's own certificate first"):
        Signer.open(None, chain, key)
    refused = {
        "ran out on": {"days": (-10, -1)},
        "holds from .* is the clock right": {"days": (1, 10)},
        "does not sign clips": {"usage": False},
    }
    for words, more in refused.items():
        with pytest.raises(MovaError, match=words):
            Signer.open(None, *bought(tmp_path, KEYS["ES256"](), **more))
    with pytest.raises(MovaError, match="does not sign with this kind of key"):
        Signer.open(None, *bought(tmp_path, ec.generate_private_key(ec.SECP256K1())))


@pytest.mark.long
def test_a_certificate_that_ran_out_since_is_no_change_of_the_clip(clip, tmp_path, verified):
    signer = Signer.open(None, *bought(tmp_path, KEYS["ES256"](), days=(-1, 5 / 86400)))
    data = signed(clip, FACTS, signer)
    assert verified(data).state == "valid"
    time.sleep((signer.ends - datetime.now(UTC)).total_seconds() + 1)
    found = verified(data)
    assert (found.state, found.problems) == ("invalid", ("its certificate had run out, or did not hold yet",))
