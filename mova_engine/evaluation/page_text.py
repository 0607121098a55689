"""Text and numbers as the pages of evaluations write them."""

import html


def text(value: object) -> str:
    """What a page may hold anywhere, in attributes too."""
    return html.escape(str(value), quote=True)


def number(value: float | None) -> str:
    """Four digits; nothing for a missing number."""
    return "" if value is None else f"{value:.4g}"
