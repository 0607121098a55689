"""Signs clips: says in the file, by C2PA (https://spec.c2pa.org), that a model made it, by which settings and weights.

A signature covers everything in the file but its own box. It is taken apart from the clip: pictures and sound, and all
boxes of the file but the place of its data, stay as they are. The same content signed with the same key and facts gives
the same bytes: identifiers and salts, which are random by the specification, are derived from content and key.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mova_engine import __version__
from mova_engine.data.media.c2pa_store import Resigned, repeatable_store
from mova_engine.data.media.signed_formats import HEAD, MP4, NAMES, SignedFormat, content_digests, format_of
from mova_engine.errors import MovaError, require_package
from mova_engine.files.atomic import require_file

# What the engine states of a clip, in a namespace of its own (C2PA 2.2, 6.2.1).
GENERATION = "org.mova-engine.generation"
MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CHANGED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
# What signing needs, of the extra `serve`.
PACKAGES = {"c2pa": "c2pa-python", "cryptography": "cryptography"}
# The smallest mp4 file, on which a signer is tried.
TRIAL = b"\0\0\0\x14ftypisom\0\0\0\0isom" + b"\0\0\0\x08mdat" + b"\0\0\0\x08moov"


class SigningKey(Protocol):
    """What signs: `signer.Signer`."""

    @property
    def algorithm(self) -> str:
        """C2PA's name of it, as ES256."""
        raise NotImplementedError

    @property
    def chain(self) -> bytes:
        """Certificates in PEM, the signer's own first."""
        raise NotImplementedError

    @property
    def repeatable(self) -> bool:
        """Whether the same bytes have the same signature each time."""
        raise NotImplementedError

    def sign(self, data: bytes) -> bytes:
        """The signature of the bytes."""
        raise NotImplementedError


def require_signing(what: str) -> None:
    """MovaError, with the command that installs them, where the packages that sign and verify are missing."""
    for module, package in PACKAGES.items():
        try:
            require_package(module, what)
        except MovaError:
            every = " ".join(PACKAGES.values())
            raise MovaError(
                f"{what} needs the package {package}, which is not installed: pip install {every}"
            ) from None


def signed(data: bytes, facts: Mapping[str, Any], signer: SigningKey, *, parent: str | Path | None = None) -> bytes:
    """An mp4 or wav file, signed. facts: what the engine states of it, as JSON has it.

    parent: the clip that it was made of, an mp4 file, whose own manifests come along; None: it was made by the model
    alone. Raises MovaError for a file of another format, and for a signer whose signatures readers do not accept.
    """
    from c2pa import Builder, C2paError, C2paSigningAlg
    from c2pa import Signer as NativeSigner

    form = format_of(data[:HEAD])
    if form is None:
        raise MovaError(f"cannot be signed: it is not {NAMES}")
    facts = {**facts, "content": content_digests(data)}
    content = hashlib.sha256(json.dumps([__version__, facts], sort_keys=True).encode())
    if parent is not None:
        content.update(_file_digest(parent))
    drawn = (
        signer.sign(b"mova_engine identifiers and salts" + content.digest()) if signer.repeatable else os.urandom(32)
    )
    identities = [_uuid(hashlib.sha256(drawn + bytes([number])).digest()) for number in range(3)]
    asked: list[bytes] = []

    def sign(claim: bytes) -> bytes:
        asked.append(claim)
        return signer.sign(claim)

    try:
        native = NativeSigner.from_callback(sign, C2paSigningAlg[signer.algorithm], signer.chain.decode())
        with native, Builder(_manifest(form.mime, facts, identities, parent)) as builder:
            if parent is not None:
                _add_parent(builder, parent, identities[2])
            made = io.BytesIO()
            builder.sign(native, form.mime, io.BytesIO(data), made)
    except C2paError as error:
        raise MovaError(f"cannot be signed ({one_line(error)})") from None
    result = made.getvalue()
    if signer.repeatable:
        result = _repeatable(form, result, asked[-1], signer, drawn)
    _check(form, result)
    return result


def _manifest(mime: str, facts: Mapping[str, Any], identities: list[str], parent: str | Path | None) -> dict[str, Any]:
    if parent is None:
        actions: list[dict[str, Any]] = [{"action": "c2pa.created", "digitalSourceType": MADE}]
    else:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [_instance(identities[2])]}}
        actions = [opened, {"action": "c2pa.edited", "digitalSourceType": CHANGED}]
    return {
        "label": f"urn:c2pa:{identities[0]}",
        "instance_id": _instance(identities[1]),
        "claim_generator_info": [{"name": "mova_engine", "version": __version__}],
        "format": mime,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            {"label": GENERATION, "data": dict(facts)},
        ],
    }


def _add_parent(builder: Any, parent: str | Path, identity: str) -> None:
    require_file(parent)
    said = {"title": Path(parent).name, "relationship": "parentOf", "instance_id": _instance(identity)}
    with open(parent, "rb") as file:
        builder.add_ingredient(said, MP4.mime, file)


def _repeatable(form: SignedFormat, data: bytes, claim: bytes, signer: SigningKey, drawn: bytes) -> bytes:
    """The signed file with salts that follow from what was drawn, and the signature that follows from those."""
    place = next((piece for piece in form.pieces(data) if form.is_store(data, piece)), None)
    assert place is not None, "a file that was signed has C2PA's manifests"
    store = repeatable_store(data[place.content : place.end], Resigned(claim, signer.sign), drawn)
    return data[: place.content] + store + data[place.end :]


def _check(form: SignedFormat, data: bytes) -> None:
    """MovaError if readers would not accept the signature."""
    from c2pa import C2paError, Reader

    try:
        with Reader(form.mime, io.BytesIO(data)) as reader:
            state, report = reader.get_validation_state(), json.loads(reader.json())
    except C2paError as error:
        raise MovaError(f"its signature cannot be read ({one_line(error)})") from None
    if state not in ("Valid", "Trusted"):
        found = report.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
        wrong = [each.get("explanation") or each["code"] for each in found if each["code"] != UNTRUSTED]
        raise MovaError(f"readers do not accept its signature: {'; '.join(wrong) or state}")


# Said of every certificate that is in no list of trusted ones.
UNTRUSTED = "signingCredential.untrusted"


def _uuid(digest: bytes) -> str:
    """A UUID of version 4's form."""
    value = bytearray(digest[:16])
    value[6], value[8] = value[6] & 0x0F | 0x40, value[8] & 0x3F | 0x80
    text = value.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _instance(identity: str) -> str:
    return f"xmp:iid:{identity}"


def _file_digest(path: str | Path) -> bytes:
    require_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def one_line(error: Exception) -> str:
    """An error's text."""
    return " ".join(str(error).split())
