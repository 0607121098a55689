"""A font that can write a caption: matplotlib ships one for most alphabets, the system may have one for the others."""

import logging
from functools import cache
from pathlib import Path

from PIL import ImageFont

log = logging.getLogger(__name__)

FONT_SIZE = 12  # pixels
# Filled by the first warning.
_warned: list[Path] = []


def font_for(text: str) -> ImageFont.FreeTypeFont:
    """The font that has most characters of `text`: DejaVu Sans where it has all, else one of the system's.

    What no font has is drawn as boxes; that is told once.
    """
    characters = frozenset(ord(character) for character in text if not character.isspace())
    return _loaded(_choose(characters - _characters(_default()), characters))


@cache
def _choose(foreign: frozenset[int], characters: frozenset[int]) -> Path:
    """The file of the font for `characters`, of which the default one lacks the `foreign` ones."""
    if not foreign:
        return _default()
    best, lacking = _default(), foreign
    for path in system_fonts():
        missing = characters - _characters(path)
        if len(missing) < len(lacking):
            best, lacking = path, missing
        if not lacking:
            return best
    if not _warned:
        _warned.append(best)
        log.warning(
            "no installed font has the characters %s of a caption, contact sheets show boxes: install one that does "
            "(for Chinese, Japanese and Korean for instance the system package fonts-noto-cjk)",
            "".join(map(chr, sorted(lacking)[:8])),
        )
    return best


@cache
def system_fonts() -> tuple[Path, ...]:
    """The font files of this system, in a fixed order."""
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(Path(name) for name in findSystemFonts()))


@cache
def _characters(path: Path) -> frozenset[int]:
    """The code points that a font file can draw; none for one that cannot be read."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (OSError, TTLibError, AssertionError, KeyError, ValueError):
        return frozenset()


@cache
def _loaded(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), FONT_SIZE)


@cache
def _default() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
