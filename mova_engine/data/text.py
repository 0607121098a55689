"""Reads and checks text from files and command lines, and formats it for one-line error messages."""

import unicodedata
from pathlib import Path

from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file

# Characters of a value that an error repeats.
SHOWN = 80


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, without its byte order mark. Raises MovaError, naming file and line, if it is not UTF-8."""
    require_file(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MovaError(f"{path}: cannot be read ({error.strerror})") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise MovaError(f"{path}: is UTF-16, must be UTF-8: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise MovaError(f"{path}: line {line}: not UTF-8 (byte 0x{byte:02x}): save the file as UTF-8") from None


def lines_of(text: str) -> list[str]:
    """The lines of a file's text, as editors count them and as JSON lines are divided.

    `str.splitlines` also divides at U+2028, U+0085 and others, which JSON may hold within a text.
    """
    return text.split("\n")


def flaw(text: str, *, name: bool = False) -> str | None:
    """Why `text` cannot be encoded or tokenised; None if it can. name: also check that it can be a file's or clip's
    name.
    """
    if text.isprintable():
        return None
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "holds half a surrogate pair, which is no character: write the character whole"
    if name and any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text):
        return "holds a control character or a line break"
    return None


def shown(text: str) -> str:
    """`text` for an error message: printable characters on one line, shortened to SHOWN characters."""
    short = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in short)
