"""What reports in HTML share: a page that opens without a server, tables, distributions of numbers."""

from collections.abc import Sequence

import numpy as np

from mova_engine.web.page_text import number, text

_BARS, _WIDTH, _HEIGHT = 24, 260, 56
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #1c2430; }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .35em .7em; vertical-align: top }
th { border-bottom: 2px solid #c4ccd8; font-weight: 600 } td { border-bottom: 1px solid #e4e8ee }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.quiet { color: #677489 } .few { color: #a33 }
svg rect { fill: #5b83c4 } svg line { stroke: #c0392b; stroke-dasharray: 3 2 }
figure { display: inline-block; width: 20em; margin: 0 1em 1em 0; vertical-align: top; overflow-wrap: anywhere }
.wide { overflow-x: auto } body > table { display: block; width: auto; max-width: 100%; overflow-x: auto }
.plots { display: flex; flex-wrap: wrap; gap: 1em 2.5em } .plots p { margin: .3em 0 } details { margin: .6em 0 }
"""


def document(title: str, parts: Sequence[str], style: str = "") -> str:
    """A whole page. parts: HTML, one after the other below the title. style: CSS beside that of all reports."""
    head = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{text(title)}</title><style>{_STYLE}{style}</style>",
        f"<h1>{text(title)}</h1>",
    ]
    return "\n".join([*head, *parts]) + "\n"


def titled_table(title: str, rows: Sequence[str]) -> str:
    """rows: "<tr><td>..", without their ends."""
    return f"<h2>{title}</h2><table>" + "\n".join(rows) + "</table>"


def histogram(
    values: np.ndarray,
    lines: Sequence[float] = (),
    *,
    chosen: np.ndarray | None = None,
    tails: float = 0.0,
    said: str = "",
) -> str:
    """A drawing of how numbers lie, with their ends below it. values: finite, at least one. lines: dashed ones, which
    `said` explains. chosen: bool of each value: bars of those lie before the others, darker. tails: the share at each
    end that is drawn in the last bar instead of stretching the drawing.
    """
    low, high = (float(each) for each in np.quantile(values, [tails, 1 - tails]))
    low, high = min([low, *lines]), max([high, *lines])
    counts = _counts(values, low, high)
    drawn = _bars(counts, counts.max(), "")
    if chosen is not None and chosen.any():
        drawn += _bars(_counts(values[chosen], low, high), counts.max(), " class=kept")
    span = (high - low) or 1.0
    places = [f"{(each - low) / span * _WIDTH:.1f}" for each in lines]
    drawn += "".join(f"<line x1={x} x2={x} y1=0 y2={_HEIGHT} />" for x in places)
    ends = number(low) if high == low else f"{number(low)} to {number(high)}"
    drawing = f"<svg width={_WIDTH} height={_HEIGHT} role=img aria-label='distribution'>{drawn}</svg>"
    return f"{drawing}<br><span class=quiet>{ends}{said}</span>"


def _counts(values: np.ndarray, low: float, high: float) -> np.ndarray:
    # Not np.histogram, which refuses ranges of less than a rounding error a bar: numbers that differ in the last digit.
    bar_of = np.clip((values - low) / ((high - low) or 1.0) * _BARS, 0, _BARS - 1).astype(int)
    return np.bincount(bar_of, minlength=_BARS)


def _bars(counts: np.ndarray, most: int, what: str) -> str:
    step = _WIDTH / _BARS
    return "".join(
        f"<rect{what} x={i * step:.1f} y={_HEIGHT - _HEIGHT * n / most:.1f} width={step - 1:.1f} "
        f"height={_HEIGHT * n / most:.1f} />"
        for i, n in enumerate(counts)
        if n
    )
