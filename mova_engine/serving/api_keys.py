"""The keys of a server's clients: a file of names and secrets, compared in constant time."""

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from mova_engine.data.text import lines_of, read_text, shown
from mova_engine.errors import MovaError
from mova_engine.serving.video_job import LOCAL

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_SHORTEST = 16
# What may follow a key in its line.
_METRICS = "metrics"


@dataclass(frozen=True)
class ApiKey:
    """A client. digest: SHA-256 of its secret. metrics: whether it may read the figures of the whole server."""

    name: str
    digest: bytes
    metrics: bool = False


@dataclass(frozen=True)
class ApiKeys:
    """The clients of a server."""

    keys: tuple[ApiKey, ...]

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """The keys of a file, one a line: a name, white space, then the secret or `sha256:` and its hash; then, for who
        may read /metrics, the word `metrics`. Empty lines and lines that begin with # are left out.

        Raises MovaError, naming the line, for a name or secret that will not do, and for one that is there twice.
        """
        found = list[ApiKey]()
        for number, line in enumerate(lines_of(read_text(path)), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            key = _key(words, f"{path}: line {number}")
            if any(each.name == key.name or each.digest == key.digest for each in found):
                raise MovaError(f"{path}: line {number}: the name or the secret of {key.name} is there already")
            found.append(key)
        if not found:
            raise MovaError(f"{path}: has no keys: write one a line, a name and a secret")
        return cls(tuple(found))

    def owner_of(self, secret: str) -> ApiKey | None:
        """Whose secret it is. All keys are compared, each in constant time."""
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _key(words: list[str], where: str) -> ApiKey:
    name, *rest = words
    if _NAME.fullmatch(name) is None:
        raise MovaError(f"{where}: '{shown(name)}' is no name: letters, digits, dots, - and _, at most 64")
    if name == LOCAL:
        raise MovaError(f"{where}: the name '{LOCAL}' has the jobs that were made without keys: take another one")
    if not rest or rest[1:] not in ([], [_METRICS]):
        raise MovaError(f"{where}: a name and a secret are wanted, and '{_METRICS}' for who may read /metrics")
    hashed = _HASHED.fullmatch(rest[0])
    if hashed is None and rest[0].startswith("sha256:"):
        raise MovaError(f"{where}: the hash of {name} must be 64 hexadecimal digits in small letters")
    if hashed is None and len(rest[0]) < _SHORTEST:
        raise MovaError(f"{where}: the secret of {name} is shorter than {_SHORTEST} characters: take a longer one")
    digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(rest[0].encode()).digest()
    return ApiKey(name, digest, bool(rest[1:]))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_reach(host: str, keys: ApiKeys | None, no_keys: bool) -> None:
    """MovaError for a server that others could reach without a key, unless that was said."""
    if keys is None and not no_keys and not is_loopback(host):
        raise MovaError(
            f"--host {host} lets other machines in: give --keys FILE with a name and a secret for each client, or say "
            "--no-keys if whoever reaches the port may use the server"
        )
