"""A plot of ratios as SVG text: one bar and interval per measurement. The same ratios give the same text."""

from collections.abc import Sequence
from html import escape

_LABELS, _BARS, _LINE, _TOP = 430, 420, 24, 30  # pixels


def ratios_svg(ratios: Sequence[tuple[str, dict[str, float]]]) -> str:
    """Horizontal bars of (label, {"value", "low", "high"}); "" without any. The line at 1 is the baseline's speed."""
    if not ratios:
        return ""
    most = max(1.0, *(ratio["high"] for _, ratio in ratios))
    width, height = _LABELS + _BARS + 60, _TOP + _LINE * len(ratios) + 10

    def at(value: float) -> float:
        return round(_LABELS + value / most * _BARS, 1)

    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LABELS}" y="16">times as fast as the baseline, 95% interval</text>',
    ]
    for index, (label, ratio) in enumerate(ratios):
        top = _TOP + _LINE * index
        middle = top + _LINE // 2
        value, low, high = (at(ratio[key]) for key in ("value", "low", "high"))
        shapes += [
            f'<text x="{_LABELS - 8}" y="{middle + 4}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{_LABELS}" y="{top + 4}" width="{round(value - _LABELS, 1)}" height="{_LINE - 8}" '
            'fill="#6b9bd1"/>',
            f'<line x1="{low}" y1="{middle}" x2="{high}" y2="{middle}" stroke="black" stroke-width="2"/>',
            f'<text x="{high + 6}" y="{middle + 4}">{ratio["value"]:.2f}</text>',
        ]
    shapes.append(f'<line x1="{at(1)}" y1="{_TOP}" x2="{at(1)}" y2="{height - 8}" stroke="#c33" stroke-dasharray="4"/>')
    return "\n".join([*shapes, "</svg>", ""])
