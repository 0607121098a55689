"""Where text stands in a picture and what it says: PP-OCRv6's small networks, in the wheel `rapidocr` (Apache-2.0).

One network marks the pixels of text lines (differentiable binarisation: Liao et al. 2020, arXiv 1911.08947), the other
reads each line, which tells text from what merely looks like it: eyes, windows, grass. Thresholds and the growth of
boxes are RapidOCR's; its code, which can fetch models, is not run.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mova_engine.scores.optional_opencv import opencv
from mova_engine.scores.wheel_networks import WheelFile

Pixels = NDArray[np.uint8]
_WHAT = "Finding text"
_WHEEL = ("rapidocr", "rapidocr==3.10.0", _WHAT)
DETECTOR = WheelFile(
    *_WHEEL,
    ("models/PP-OCRv6_det_small.onnx",),
    "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
)
RECOGNISER = WheelFile(
    *_WHEEL,
    ("models/PP-OCRv6_rec_small.onnx",),
    "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
)
# The shorter side in which text is sought, and how much smaller pictures are enlarged at most. A line whose letters
# have 2 % of the height of 720p is found.
SIDE, _ENLARGED = 448, 2.0
# Probability of a pixel and mean probability of a box that make text; what a box grows by, times area / perimeter.
_PIXEL, _BOX, _GROWTH, _LEAST_SIDE = 0.3, 0.5, 1.6, 3
# The recogniser sees lines of this height; what it is less sure of is no text, and single signs are none.
_LINE, _SURE, _LEAST_SIGNS = 48, 0.7, 2
_MOST_WIDTH = 1600


@dataclass(frozen=True)
class TextBox:
    """A line of text. left, top, right, bottom: shares 0..1 of the picture's width and height; sure: 0..1."""

    left: float
    top: float
    right: float
    bottom: float
    text: str
    sure: float


class TextReader:
    """Both networks, opened. Raises MovaError where OpenCV, onnxruntime or the wheel is missing."""

    def __init__(self) -> None:
        opencv(_WHAT)
        self._detector: Any = DETECTOR.session()
        self._recogniser: Any = RECOGNISER.session()

    def boxes(self, picture: Pixels) -> list[TextBox]:
        """The lines of text in a picture uint8 [h, w, 3], RGB, from top to bottom."""
        height, width = picture.shape[:2]
        found = []
        for corners in self._candidates(picture):
            text, sure = self._read(_upright(picture, corners))
            if sure >= _SURE and len(text) >= _LEAST_SIGNS:
                (left, top), (right, bottom) = corners.min(0), corners.max(0)
                edges = np.clip([left / width, top / height, right / width, bottom / height], 0, 1).tolist()
                found.append(TextBox(edges[0], edges[1], edges[2], edges[3], text, sure))
        return sorted(found, key=lambda box: (box.top, box.left))

    def _candidates(self, picture: Pixels) -> list[NDArray[np.float32]]:
        """Corners [4, 2] in pixels of what may be a line, clockwise."""
        cv2 = opencv(_WHAT)
        height, width = picture.shape[:2]
        scale = min(SIDE / min(height, width), _ENLARGED)
        rows, columns = (max(32, round(side * scale / 32) * 32) for side in (height, width))
        sought = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        (likely,) = self._detector.run(None, {"x": _network_input(sought)})
        likely = likely[0, 0]
        inside = cv2.dilate((likely > _PIXEL).astype(np.uint8), np.ones((2, 2), np.uint8))
        contours, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        found = []
        for contour in contours:
            centre, (one, other), angle = cv2.minAreaRect(contour)
            mask = np.zeros_like(inside)
            cv2.fillPoly(mask, [cv2.boxPoints((centre, (one, other), angle)).astype(np.int32)], 1)
            if min(one, other) < _LEAST_SIDE or cv2.mean(likely, mask)[0] < _BOX:
                continue
            grown = one * other * _GROWTH / (one + other)
            corners = cv2.boxPoints((centre, (one + grown, other + grown), angle))
            found.append(_clockwise(corners * (width / columns, height / rows)))
        return found

    def _read(self, line: Pixels) -> tuple[str, float]:
        """What a line says, and how sure the network is of its signs on average; ("", 0) for nothing."""
        cv2 = opencv(_WHAT)
        width = min(_MOST_WIDTH, max(_LINE, round(line.shape[1] * _LINE / line.shape[0])))
        (likely,) = self._recogniser.run(None, {"x": _network_input(cv2.resize(line, (width, _LINE)))})
        best, sure = likely[0].argmax(1), likely[0].max(1)
        # Connectionist temporal classification: repeated signs are one, sign 0 is none.
        kept = (best != 0) & (best != np.concatenate(([0], best[:-1])))
        text = "".join(self._signs[i] for i in best[kept]).strip()
        return (text, float(sure[kept].mean())) if text else ("", 0.0)

    @cached_property
    def _signs(self) -> list[str]:
        listed = self._recogniser.get_modelmeta().custom_metadata_map["character"].splitlines()
        return ["", *listed, " "]


def _network_input(picture: Pixels) -> NDArray[np.float32]:
    """A picture [h, w, 3], RGB, as [1, 3, h, w] in -1..1, blue first."""
    values = picture[..., ::-1].astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _clockwise(corners: NDArray[Any]) -> NDArray[np.float32]:
    """The corners of a box from the upper left one on."""
    left, right = np.split(corners[np.argsort(corners[:, 0])], 2)
    (top_left, bottom_left), (top_right, bottom_right) = (pair[np.argsort(pair[:, 1])] for pair in (left, right))
    return np.stack([top_left, top_right, bottom_right, bottom_left]).astype(np.float32)


def _upright(picture: Pixels, corners: NDArray[np.float32]) -> Pixels:
    """The contents of a box, as a line that runs from left to right; what is much higher than wide was upright text."""
    cv2 = opencv(_WHAT)
    width, height = (max(1, round(float(np.linalg.norm(corners[i] - corners[0])))) for i in (1, 3))
    target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    line = cv2.warpPerspective(
        picture,
        cv2.getPerspectiveTransform(corners, target),
        (width, height),
        None,
        cv2.INTER_CUBIC,
        cv2.BORDER_REPLICATE,
    )
    return np.ascontiguousarray(np.rot90(line)) if height >= 1.5 * width else line
