"""The captions of an evaluated folder's clips, for scores of sound and text."""

import os
from collections.abc import Sequence
from pathlib import Path

from mova_engine.data.metadata import CAPTION, FILES, read_metadata
from mova_engine.data.text import read_text


def captions_of(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """{file: caption} of those that have one: from the folder's metadata file, or from a text file beside each clip.

    A row of metadata that begins within a file, or crops it, describes a part of it, and is no caption of the whole.
    Raises MovaError for a damaged metadata file.
    """
    if any((folder / name).is_file() for name in FILES):
        listed = [(entry.path, entry.caption) for entry in read_metadata(folder) if not entry.start and not entry.edit]
        stated = {os.path.realpath(path): caption for path, caption in listed if isinstance(path, Path)}
        found = {path: stated.get(os.path.realpath(path), "").strip() for path in files}
    else:
        beside = {path: path.with_suffix(CAPTION) for path in files}
        found = {path: read_text(text).strip() for path, text in beside.items() if text.is_file()}
    return {path: caption for path, caption in found.items() if caption}
