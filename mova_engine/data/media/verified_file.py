"""What a file says of its origin, by C2PA, and whether that still holds."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mova_engine.data.media.c2pa_store import flaw_of_store
from mova_engine.data.media.mp4_boxes import Box
from mova_engine.data.media.provenance import GENERATION, UNTRUSTED, one_line, require_signing
from mova_engine.data.media.signed_formats import HEAD, NAMES, SignedFormat, content_digests, format_of
from mova_engine.data.media.signer import AUTHORITY_FILE, own_folder
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file

State = Literal["valid", "altered", "invalid", "unsigned"]
_BOX = "the box of its signature (C2PA)"
# What codes of a broken signature mean (C2PA 2.2, 15.2); the first that fits.
_MEANINGS = (
    (("assertion.bmffHash", "assertion.dataHash", "assertion.boxesHash"), "it was changed after it was signed"),
    (
        ("signingCredential.expired", "claimSignature.outsideValidity"),
        "its certificate had run out, or did not hold yet",
    ),
    (("signingCredential.ocsp.revoked", "signingCredential.revoked"), "its certificate was revoked"),
    (("claimSignature", "signingCredential"), "its signature or certificate was changed, or is of a kind not known"),
    (("assertion", "claim", "ingredient"), "what it states was changed after it was signed"),
)
# Failures of the signature alone: the file may be what was signed.
_OF_SIGNATURE = ("signingCredential.expired", "claimSignature.outsideValidity", "signingCredential.ocsp.revoked")


@dataclass(frozen=True)
class VerifiedFile:
    """state: valid, the file is what was signed; altered; invalid, the signature does not hold, though nothing shows
    that the file was changed; unsigned. trusted: whether the certificate leads to a trusted one.

    signer, issuer, algorithm: of the certificate. generator: the program that signed. actions: what was done, as
    "c2pa.created". source: IPTC's term for how the content came to be, as "trainedAlgorithmicMedia". facts: what the
    engine states of its clips (`clip_manifest.stated_facts`); None: of another program. ingredients: what it was made
    of, each with its title, relationship and own state. problems: what is wrong, and in which part.
    """

    path: Path
    state: State
    trusted: bool = False
    signer: str | None = None
    issuer: str | None = None
    algorithm: str | None = None
    generator: str | None = None
    actions: tuple[str, ...] = ()
    source: str | None = None
    facts: Mapping[str, Any] | None = None
    ingredients: tuple[Mapping[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    codes: tuple[str, ...] = field(default=(), repr=False)


def verify_file(path: str | Path, trust: Sequence[str | Path] = ()) -> VerifiedFile:
    """Check an mp4 or wav file against what it says of itself. trust: PEM files of certificates to trust, beside the
    engine's own of this user. Nothing is fetched. Raises MovaError for a file of another format, and where packages are
    missing.
    """
    require_signing("verifying files")
    path = Path(path)
    if not require_file(path).st_size:
        raise MovaError(f"{path}: is empty")
    data = _read(path)
    form = format_of(data[:HEAD])
    if form is None:
        raise MovaError(f"{path}: not {NAMES}, which is what is signed")
    damage, found = _walk(form, data)
    report = _report(form, data, _anchors(trust))
    if isinstance(report, dict) and report.get("active_manifest") not in report.get("manifests", {}):
        report = "it names a manifest that it does not hold"
    if report is None or isinstance(report, str):
        # Also where the file ends within it.
        marked = form.mark in data
        if not marked and damage:
            raise MovaError(f"{path}: {damage}")
        if not marked and report is None:
            return VerifiedFile(path, "unsigned")
        return VerifiedFile(
            path, "altered", problems=_texts(damage, f"{_BOX} cannot be read: {report or 'no manifest'}")
        )
    return _judged(path, form, data, report, damage, found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MovaError(f"{path}: cannot be read ({error.strerror})") from None


def _walk(form: SignedFormat, data: bytes) -> tuple[str, list[Box]]:
    """What is wrong with the row of boxes or chunks, and those before."""
    found: list[Box] = []
    try:
        for piece in form.pieces(data):
            found.append(piece)
    except MovaError as error:
        return str(error), found
    return "", found


def _report(form: SignedFormat, data: bytes, anchors: str) -> dict[str, Any] | str | None:
    """What C2PA's reader says of a file; None: it holds no manifest; a text: why it cannot be read."""
    from c2pa import C2paError, Context, Reader

    settings: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    if anchors:
        settings["trust"] = {"user_anchors": anchors, "allowed_list": anchors}
        settings["verify"]["verify_trust"] = True
    try:
        with Reader(form.mime, io.BytesIO(data), context=Context.from_dict(settings)) as reader:
            return json.loads(reader.json())
    except C2paError as error:
        text = one_line(error)
        return None if text.startswith("ManifestNotFound") else text


def _anchors(trust: Sequence[str | Path]) -> str:
    """The trusted certificates as one text of PEM."""
    from cryptography import x509

    own = own_folder() / AUTHORITY_FILE
    texts: list[str] = []
    for path in (*map(Path, trust), *([own] if own.is_file() else [])):
        require_file(path)
        try:
            content = path.read_bytes()
            x509.load_pem_x509_certificates(content)
            texts.append(content.decode())
        except (OSError, ValueError) as error:
            raise MovaError(f"{path}: holds no certificate in PEM ({one_line(error)})") from None
    return "\n".join(texts)


def _judged(
    path: Path, form: SignedFormat, data: bytes, report: dict[str, Any], damage: str, found: list[Box]
) -> VerifiedFile:
    manifest = report["manifests"][report["active_manifest"]]
    codes = [each["code"] for each in report.get("validation_results", {}).get("activeManifest", {}).get("failure", [])]
    codes = [code for code in codes if code != UNTRUSTED]
    facts, actions, source = _stated(manifest)
    covered = [code for code in codes if not code.startswith(_OF_SIGNATURE)]
    problems = [damage] if damage else _parts_of(form, data, facts)
    if not problems or any("Hash" not in code for code in codes):
        meanings = (_meaning(code) for code in codes)
        problems += [text for text in dict.fromkeys(meanings) if not (problems and text == _MEANINGS[0][1])]
    stores = [data[piece.content : piece.end] for piece in found if form.is_store(data, piece)]
    problems += [f"{_BOX} {flaw}" for store in stores if (flaw := flaw_of_store(store, form.headed))]
    altered = bool(covered or damage or (problems and not codes))
    said = manifest.get("signature_info", {})
    generators = manifest.get("claim_generator_info") or [{}]
    return VerifiedFile(
        path,
        "altered" if altered else "invalid" if codes else "valid",
        trusted=report.get("validation_state") == "Trusted",
        signer=said.get("common_name") or said.get("issuer"),
        issuer=said.get("issuer"),
        algorithm=said.get("alg"),
        generator=" ".join(filter(None, (generators[0].get("name"), generators[0].get("version")))) or None,
        actions=actions,
        source=source,
        facts=facts,
        ingredients=tuple(_ingredients(manifest)),
        problems=tuple(problems),
        codes=tuple(codes),
    )


def _stated(manifest: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, tuple[str, ...], str | None]:
    """What the engine states, the actions, and the kind of source that they name."""
    facts, actions = None, list[Mapping[str, Any]]()
    for each in manifest.get("assertions", []):
        if each["label"] == GENERATION:
            facts = each.get("data")
        elif each["label"].startswith("c2pa.actions"):
            actions += each.get("data", {}).get("actions", [])
    sources = [str(each["digitalSourceType"]).rsplit("/", 1)[-1] for each in actions if "digitalSourceType" in each]
    names = tuple(str(each.get("action")) for each in actions)
    return facts if isinstance(facts, Mapping) else None, names, sources[0] if sources else None


def _parts_of(form: SignedFormat, data: bytes, facts: Mapping[str, Any] | None) -> list[str]:
    """Which parts of a clip of the engine are other ones than were signed."""
    wanted = {} if facts is None else facts.get("content")
    if not isinstance(wanted, Mapping):
        return []
    try:
        content = form.without_store(data)
    except MovaError as error:
        return [str(error)]
    parts = [name for name, digest in content_digests(content).items() if wanted.get(name) != digest]
    named = [form.parts[name].changed for name in parts if name in form.parts]
    return named or ([f"it was changed after it was signed, outside of {' and '.join(form.parts)}"] if parts else [])


def _meaning(code: str) -> str:
    return next((text for starts, text in _MEANINGS if code.startswith(starts)), f"it is not accepted ({code})")


def _ingredients(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for each in manifest.get("ingredients", []):
        results = each.get("validation_results", {}).get("activeManifest")
        failures = [] if results is None else [x["code"] for x in results.get("failure", []) if x["code"] != UNTRUSTED]
        state = "unsigned" if results is None else "altered" if failures else "valid"
        yield {"title": each.get("title"), "relationship": each.get("relationship"), "state": state}


def _texts(*texts: str) -> tuple[str, ...]:
    return tuple(text for text in texts if text)
