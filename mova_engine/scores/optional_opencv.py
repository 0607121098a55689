"""OpenCV, which scores of pictures need and training does not."""

from typing import Any

from mova_engine.errors import MovaError


def opencv(what: str) -> Any:
    """The module cv2. Raises MovaError, with the command that installs it, where `what` needs it and it is missing."""
    try:
        import cv2
    except ImportError:
        raise MovaError(f"{what} needs OpenCV: pip install 'mova-engine[eval]'") from None
    return cv2
