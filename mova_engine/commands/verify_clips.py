"""`mova verify FILE...`: who signed clips, whether they were changed since, and what they state."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mova_engine.config.command import Command, to_plain
from mova_engine.config.limits import check
from mova_engine.errors import MovaError, run_cli

ABOUT = """Check mp4 and wav files against the C2PA manifests in them: who signed them, whether they were changed since
and in which part, what they state, and whether the manifest beside a clip, CLIP.json, agrees.

Any program's signature is checked; nothing is fetched. Status 0 when all are as they were signed, 1 when one is not, or
is not signed; 2 for a file of another format.
"""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Which files are checked."""

    files: tuple[Path, ...] = field(kw_only=False)
    """mp4 or wav files."""
    trust: tuple[Path, ...] = ()
    """Certificates to trust, in PEM, beside your own: a signature that leads to none of them gives status 1."""
    json: bool = False
    """Print what was found as JSON: a list with an object for each file."""

    def __post_init__(self) -> None:
        check(len(self.files) > 0, "which files? mova verify FILE...")


VERIFY = Command("mova verify", VerifyConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found of each file. Status 1 when one is not as it was signed, 2 when one cannot be checked."""
    config = VERIFY.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.data.media.provenance import require_signing
    from mova_engine.data.media.verified_clip import verify_clip

    require_signing("mova verify")
    rows: list[dict[str, Any]] = []
    status = 0
    for path in config.files:
        try:
            found = verify_clip(path, config.trust)
        except MovaError as error:
            if len(config.files) == 1 and not config.json:
                raise
            rows.append({"path": str(path), "error": str(error)})
            lines, one = [f"error: {error}"], 2
        else:
            rows.append(to_plain(found))
            lines, one = list(found.words()), int(not found.holds or (bool(config.trust) and not found.file.trusted))
        status = max(status, one)
        if not config.json:
            sys.stdout.writelines(f"{line}\n" for line in lines)
    if config.json:
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return status


if __name__ == "__main__":
    run_cli(main)
