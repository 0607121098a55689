"""Result files: what was measured, where, with which versions, at which commit, when. Figures quoted anywhere come
from these.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic
from mova_engine.files.writable import check_writable


def write_result(
    path: Path,
    kind: str,
    circumstances: Mapping[str, Any],
    *,
    option: str = "--json",
    **facts: Any,
) -> None:
    """One result file: {"kind", "circumstances", ...facts, "sha256"}; circumstances: of the machine that measured,
    see `backend.circumstances`. option, MovaError: as of `check_result`.
    """
    check_result(path, option)
    content = {"kind": kind, "circumstances": circumstances, **facts}
    # As it is read again: keys become text, tuples lists.
    write_atomic(path, _signed(json.loads(json.dumps(content))))


def check_result(path: Path, option: str = "--json") -> None:
    """Before anything is measured: MovaError where `path` cannot be written, or where something lies that is no result
    file as it was written, which is not replaced. option: which names the file on the command line.
    """
    check_writable(path.parent, option)
    if os.path.lexists(path) and not _is_own(path):
        raise MovaError(
            f"{path} was not written by this command, or was changed since; it is not replaced: give another {option}, "
            "or move it away"
        )


def _is_own(path: Path) -> bool:
    try:
        data = path.read_bytes()
        return data == _signed({name: value for name, value in json.loads(data).items() if name != "sha256"})
    except (OSError, ValueError, AttributeError):
        return False


def _signed(content: dict[str, Any]) -> bytes:
    """A file's text, with a checksum by which it is known again as written here and left as it was."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def read_result(path: Path) -> dict[str, Any]:
    """A result file. MovaError where it is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MovaError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict) or not {"kind", "circumstances"} <= content.keys():
        raise MovaError(f"{path} is no result file of `mova bench` (no 'kind' and 'circumstances')")
    return content
