"""Text and numbers as reports in HTML write them."""

import html


def text(value: object) -> str:
    """What a page may hold anywhere, in attributes too."""
    return html.escape(str(value), quote=True)


def number(value: float | None) -> str:
    """Four digits, of large numbers those before the point; nothing for a missing number."""
    if value is None:
        return ""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def breakable(value: str) -> str:
    """The name of a number, which a narrow column may break after an underscore."""
    return text(value).replace("_", "_<wbr>")
