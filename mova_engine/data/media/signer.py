"""Who signs clips: a certificate that was bought, or one of the engine's own, made when it is first needed.

    FOLDER/signer.pem        key and certificates, for the owner's eyes (mode 0600)
    FOLDER/authority.pem     the certificate to trust, for others: mova verify --trust authority.pem

The own one is a chain of two, as C2PA wants it (C2PA 2.2, 14.5): an authority signs the signer's certificate, and its
key is then forgotten, so that nothing else can be signed by it. Both hold for 20 years: a clip has no time stamp of
another party, and readers take a signature for broken once its certificate has run out.
"""

import itertools
import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mova_engine.data.media.provenance import TRIAL, require_signing, signed
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file, write_atomic
from mova_engine.files.user_folders import config_folder

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SIGNER_FILE, AUTHORITY_FILE = "signer.pem", "authority.pem"
_LIFE = timedelta(days=20 * 365)
# The clocks of those who check may be behind.
_BEFORE = timedelta(days=1)
log = logging.getLogger(__name__)


def own_folder() -> Path:
    """Where the engine's own key is, where no other folder is named."""
    return config_folder() / "signing"


@dataclass(frozen=True)
class Signer:
    """A key and its certificates. algorithm: C2PA's name of it. chain: PEM, the signer's own first. own: the engine's.

    name: the certificate's common name, or organisation. ends: when the certificate runs out.
    """

    algorithm: str
    chain: bytes
    name: str
    ends: datetime
    own: bool
    key: Any

    @classmethod
    def open(
        cls, folder: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
    ) -> "Signer":
        """The signer of these files. certificate, key: PEM, of a bought one: its chain, the signer's own first, and its
        private key. Without them the engine's own in `folder` (None: `own_folder()`), which is made where there is none
        or it has run out.

        Raises MovaError for files that cannot be used: a key of another certificate, an algorithm that C2PA does not
        know, a certificate that has run out, does not hold yet, or is not for signing content.
        """
        require_signing("signing clips")
        if (certificate is None) != (key is None):
            raise MovaError("a certificate and its private key go together: give both, as PEM files")
        if certificate is not None and key is not None:
            _say_readable(Path(key))
            return _checked(_read(Path(certificate), Path(key), own=False), Path(certificate))
        folder = own_folder() if folder is None else Path(folder)
        return _own(folder)

    @property
    def repeatable(self) -> bool:
        """Whether the same content gives the same signature each time. That of RSA holds random bytes."""
        return self.algorithm != "PS256"

    def sign(self, data: bytes) -> bytes:
        """The signature as COSE has it (RFC 9053): of ECDSA both numbers in a row, with the nonce of RFC 6979."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        if self.algorithm == "ED25519":
            return self.key.sign(data)
        if self.algorithm == "PS256":
            salted = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            return self.key.sign(data, salted, hashes.SHA256())
        digest = {"ES256": hashes.SHA256(), "ES384": hashes.SHA384(), "ES512": hashes.SHA512()}[self.algorithm]
        size = (self.key.key_size + 7) // 8
        pair = decode_dss_signature(self.key.sign(data, ec.ECDSA(digest, deterministic_signing=True)))
        return b"".join(number.to_bytes(size, "big") for number in pair)


def _own(folder: Path) -> Signer:
    path = folder / SIGNER_FILE
    if not path.exists():
        _make(folder, replace=False)
    signer = _read(path, path, own=True)
    if signer.ends <= datetime.now(UTC):
        log.warning(
            "the certificate in %s ran out on %s; a new one is made, and %s with it is to be trusted anew",
            path, signer.ends.date(), folder / AUTHORITY_FILE,
        )  # fmt: skip
        _make(folder, replace=True)
    _say_readable(path)
    signer = _checked(_read(path, path, own=True), path)
    # The last certificate of the file; a process that was killed may have left an older one beside it.
    authority = signer.chain[signer.chain.rindex(b"-----BEGIN CERTIFICATE-----") :]
    if not _holds(folder / AUTHORITY_FILE, authority):
        write_atomic(folder / AUTHORITY_FILE, authority)
    return signer


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _make(folder: Path, replace: bool) -> None:
    """Write a new key and chain. Of several processes that do so at once, the first one's stays, unless it is replaced:
    each file holds a key with its own certificates.
    """
    path = folder / SIGNER_FILE
    temporary = folder / f".{SIGNER_FILE}.{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_new_chain())
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(temporary, path)
            else:
                with suppress(FileExistsError):
                    os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MovaError(
            f"the key that signs clips cannot be written to {folder} ({error.strerror or error}): "
            "name a certificate, or leave signing out with --no-provenance"
        ) from None


def _new_chain() -> bytes:
    """PEM of a new private key, its certificate, and that of the authority that signed it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    begin = datetime.now(UTC) - _BEFORE
    digest = hashes.Hash(hashes.SHA256())
    digest.update(own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    known_by = digest.finalize().hex()[:8]

    def name(what: str) -> x509.Name:
        pairs = (NameOID.ORGANIZATION_NAME, "mova_engine"), (NameOID.COMMON_NAME, f"mova_engine {what} {known_by}")
        return x509.Name([x509.NameAttribute(*pair) for pair in pairs])

    def certificate(what: str, key: Any, is_authority: bool) -> bytes:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only"), False,
        )  # fmt: skip
        usage |= {"digital_signature": not is_authority, "key_cert_sign": is_authority, "crl_sign": is_authority}
        public = key.public_key()
        made = (
            x509.CertificateBuilder(name("authority"), name(what), public, x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + _LIFE)
            .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )
        if not is_authority:
            made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        return made.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)

    private = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate("signer", own, False) + certificate("authority", authority, True)


def _read(chain: Path, key: Path, own: bool) -> Signer:
    """The signer of these files, whose certificates are not checked yet."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
    from cryptography.x509.oid import NameOID

    try:
        private = load_pem_private_key(_content(key), None)
    except TypeError:
        raise MovaError(f"{key}: the private key is encrypted: give it without a password (openssl pkey)") from None
    except Exception as error:  # cryptography raises several kinds
        raise MovaError(f"{key}: holds no private key in PEM ({_first_line(error)})") from None
    try:
        certificates = x509.load_pem_x509_certificates(_content(chain))
    except Exception as error:
        raise MovaError(f"{chain}: holds no certificates in PEM ({_first_line(error)})") from None

    def identity(public: Any) -> bytes:
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    first = certificates[0]
    if identity(first.public_key()) != identity(private.public_key()):
        later = any(identity(each.public_key()) == identity(private.public_key()) for each in certificates)
        hint = ": put the signer's own certificate first" if later else ""
        raise MovaError(f"{key} is not the private key of the first certificate in {chain}{hint}")
    names = [*first.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    names += first.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return Signer(
        algorithm=_algorithm(private, key),
        chain=b"".join(each.public_bytes(Encoding.PEM) for each in certificates),
        name=str(names[0].value) if names else first.subject.rfc4514_string(),
        ends=min(each.not_valid_after_utc for each in certificates),
        own=own,
        key=private,
    )


def _checked(signer: Signer, path: Path) -> Signer:
    """The signer, if its certificates hold now, follow one another, and sign a file that readers accept."""
    from cryptography import x509

    _check_chain(x509.load_pem_x509_certificates(signer.chain), path)
    try:
        signed(TRIAL, {}, signer)
    except MovaError as error:
        raise MovaError(f"{path}: does not sign clips: {error}") from None
    return signer


def _content(path: Path) -> bytes:
    require_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise MovaError(f"{path}: cannot be read ({error.strerror})") from None


def _check_chain(certificates: "Sequence[Certificate]", path: Path) -> None:
    from cryptography.exceptions import InvalidSignature

    now = datetime.now(UTC)
    for number, each in enumerate(certificates, 1):
        if each.not_valid_after_utc <= now:
            raise MovaError(f"{path}: certificate {number} ran out on {each.not_valid_after_utc.date()}: renew it")
        if each.not_valid_before_utc > now:
            begin = each.not_valid_before_utc.isoformat(timespec="minutes")
            raise MovaError(
                f"{path}: certificate {number} holds from {begin} on, which is to come: is the clock right?"
            )
    for number, (each, issuer) in enumerate(itertools.pairwise(certificates), 1):
        try:
            each.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise MovaError(
                f"{path}: certificate {number} was not issued by the next one: give the chain in its order"
            ) from None


def _algorithm(private: Any, path: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ED25519"
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size >= 2048:
        return "PS256"
    curves = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in curves:
        return curves[private.curve.name]
    raise MovaError(
        f"{path}: C2PA does not sign with this kind of key: P-256, P-384, P-521, Ed25519 or RSA of 2048 bits are wanted"
    )


def _say_readable(path: Path) -> None:
    with suppress(OSError):
        if path.stat().st_mode & 0o077:
            log.warning("%s, a private key, can be read by others: chmod 600 %s", path, path)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
