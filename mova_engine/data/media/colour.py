"""Converts the colours of any file to SDR R'G'B' with BT.709 primaries, by the colour metadata of the file.

The metadata are code points of ITU-T H.273 (matrix, range, transfer, primaries), which video streams, PNG's cICP and
AVIF's nclx share. `settle` chooses those that a file does not state; `to_display` converts.

Linear light is relative to white, 1.0 (for HDR the reference white of BT.2408, 203 cd/m2). The transfer curves of
BT.709 and its variants, gamma 2.2 and sRGB are kept, since players and browsers show all of them alike; their values
are linearised only to convert primaries. Other curves are linearised and encoded again for a BT.1886 display (gamma
2.4), or by sRGB's curve if they were linear or logarithmic, as renderers write them.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mova_engine.data.media.warn import warn

UNSTATED = 2
MATRIX_RGB, MATRIX_709, MATRIX_601, MATRIX_YCGCO, MATRIX_2020 = 0, 1, 6, 8, 9
PRIMARIES_709, PRIMARIES_2020 = 1, 9
PQ, HLG = 16, 18

# Without metadata, players take pictures of at least this height or width as HD, with the matrix of BT.709.
HD_LINES, HD_COLUMNS = 720, 1280

# Kr and Kb of Y'CbCr, H.273 table 4 (FCC, BT.601, SMPTE 240M, BT.2020 non-constant luminance).
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
LUMA[MATRIX_2020] = (0.2627, 0.0593)
MATRICES = (MATRIX_RGB, MATRIX_YCGCO, *LUMA)
UNCONVERTED_MATRICES = {
    10: "BT.2020 with constant luminance",
    11: "Y'D'zD'x (SMPTE ST 2085)",
    12: "luminance derived from the primaries",
    13: "constant luminance derived from the primaries",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}

_D65, _C, _E, _DCI = (0.3127, 0.3290), (0.310, 0.316), (1 / 3, 1 / 3), (0.314, 0.351)
# Chromaticities (x, y) of red, green, blue and white, H.273 table 2.
PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65),
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    10: ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), _E),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _DCI),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),
}
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65)

REFERENCE_WHITE = 203.0  # cd/m2, BT.2408
HLG_PEAK = 1000.0  # cd/m2: the display for which BT.2100 states the system gamma 1.2
# Tone mapping: light up to KNEE is unchanged; the range from KNEE to PEAK is compressed to KNEE..1.
KNEE, PEAK = 0.85, 1000.0 / REFERENCE_WHITE

Curve = Callable[[np.ndarray], np.ndarray]


def _power(gamma: float) -> Curve:
    return lambda values: np.power(values, np.float32(gamma))


def srgb_light(values: np.ndarray) -> np.ndarray:
    """sRGB values (0 to 1) to linear light (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, np.power((values + 0.055) / 1.055, 2.4))


def srgb_code(light: np.ndarray) -> np.ndarray:
    """Linear light (0 to 1) to sRGB values (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.power(light, 1 / 2.4) - 0.055)


def pq_light(values: np.ndarray) -> np.ndarray:
    """PQ values (0 to 1) to linear light, 1.0 being the reference white (SMPTE ST 2084)."""
    power = np.power(values, 1 / 78.84375)
    light = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return np.power(light, 1 / 0.1593017578125) * (10000 / REFERENCE_WHITE)


def hlg_light(values: np.ndarray) -> np.ndarray:
    """HLG values [..., 3] to the linear light of a 1000 cd/m2 display, 1.0 being the reference white (BT.2100)."""
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
    return np.power(luminance, 0.2)[..., None] * scene * (HLG_PEAK / REFERENCE_WHITE)


def _logarithmic(decades: float) -> Curve:
    return lambda values: np.where(values > 0, np.power(10, (values - 1) * decades), 0)


_SDR, _SRGB = (_power(2.4), _power(1 / 2.4)), (srgb_light, srgb_code)
# Transfer curves that are kept, with functions to linear light and back: BT.709, gamma 2.2, BT.601, SMPTE 240M, xvYCC,
# BT.1361, sRGB, BT.2020 with 10 and 12 bits.
KEPT = dict.fromkeys((1, 6, 7, 11, 12, 14, 15), _SDR) | {4: (_power(2.2), _power(1 / 2.2)), 13: _SRGB}
# Transfer curves that are replaced: functions to linear light, and from it to the new curve. Gamma 2.8, linear,
# logarithmic (two ranges), PQ, DCI, HLG.
UNDONE = {
    5: (_power(2.8), _SDR[1]),
    8: (lambda values: values, srgb_code),
    9: (_logarithmic(2.0), srgb_code),
    10: (_logarithmic(2.5), srgb_code),
    PQ: (pq_light, _SDR[1]),
    17: (lambda values: np.power(values, 2.6) * (52.37 / 48), _SDR[1]),
    HLG: (hlg_light, _SDR[1]),
}
TRANSFERS = (*KEPT, *UNDONE)


@dataclass(frozen=True)
class Colours:
    """How values are encoded: code points of H.273. full: full range (0 to 255), else limited (16 to 235)."""

    matrix: int
    full: bool
    transfer: int
    primaries: int

    @property
    def shown_as_stored(self) -> bool:
        """Whether R'G'B' values can be shown without converting curve or primaries."""
        return self.transfer in KEPT and self.primaries == PRIMARIES_709


def known(what: str, code: int, codes: Container[int], path: str | Path) -> int:
    """Return the code point, or UNSTATED with a warning if H.273 does not define it."""
    if code != UNSTATED and code not in codes:
        warn(path, f"states {what} {code}, which is without meaning and is taken as not stated")
        return UNSTATED
    return code


def settle(matrix: int, full: bool, transfer: int, primaries: int, *, rgb: bool, height: int, width: int) -> Colours:
    """Replace unstated code points (2) by what the others imply, or else by the picture's size.

    An HDR transfer or the matrix of BT.2020 implies primaries of BT.2020; either, or these primaries, implies the
    matrix of BT.2020. Otherwise primaries and transfer are BT.709's, and the matrix is BT.709's for HD and BT.601's
    below. Stated code points must be known ones. rgb: the values are R'G'B' already.
    """
    hdr = transfer in (PQ, HLG)
    if primaries == UNSTATED:
        primaries = PRIMARIES_2020 if hdr or matrix == MATRIX_2020 else PRIMARIES_709
    if rgb:
        matrix = MATRIX_RGB
    elif matrix == UNSTATED:
        if hdr or primaries == PRIMARIES_2020:
            matrix = MATRIX_2020
        else:
            matrix = MATRIX_709 if height >= HD_LINES or width >= HD_COLUMNS else MATRIX_601
    return Colours(matrix, full, 1 if transfer == UNSTATED else transfer, primaries)


def decode_matrix(codes: np.ndarray, bits: int, colours: Colours) -> np.ndarray:
    """Stored values [..., 3] (Y'CbCr, YCgCo, R'G'B') or [..., 1] (grey) to R'G'B' float32 [..., 3], nominally 0 to 1.

    Quantisation and matrices of H.273, 8.3: limited range has black at 16 and white at 235, times 2 ** (bits - 8).
    """
    unit = 2.0 ** (bits - 8)
    low, span, chroma = (0.0, 2.0**bits - 1, 2.0**bits - 1) if colours.full else (16 * unit, 219 * unit, 224 * unit)
    values = codes.astype(np.float32)
    if colours.matrix == MATRIX_RGB or values.shape[-1] == 1:
        return np.broadcast_to((values - low) / span, (*values.shape[:-1], 3))
    luma = (values[..., 0] - low) / span
    blue, red = (values[..., 1] - 128 * unit) / chroma, (values[..., 2] - 128 * unit) / chroma
    if colours.matrix == MATRIX_YCGCO:
        return np.stack([luma - blue + red, luma + blue, luma - blue - red], axis=-1)
    kr, kb = LUMA[colours.matrix]
    red, blue = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    return np.stack([red, (luma - kr * red - kb * blue) / (1 - kr - kb), blue], axis=-1)


def tone_map(light: np.ndarray) -> np.ndarray:
    """Compress linear HDR light [..., 3] to 0..1. All components are scaled alike, so that the hue is kept.

    If the greatest component m is above the knee, it becomes knee + (1 - knee) f(t), t = (m - knee) / (1 - knee), with
    the curve f(t) = t (1 + t / T^2) / (1 + t) of Reinhard et al. (2002, equation 4), where T is the t of the peak.
    """
    greatest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    above = np.clip((greatest - KNEE) / (1 - KNEE), 0, (PEAK - KNEE) / (1 - KNEE))
    burn = ((1 - KNEE) / (PEAK - KNEE)) ** 2
    mapped = KNEE + (1 - KNEE) * above * (1 + above * burn) / (1 + above)
    return light * np.where(greatest > KNEE, mapped / greatest, 1)


def to_display(rgb: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Convert R'G'B' [..., 3] of a transfer curve and primaries (code points) to uint8 [..., 3], SDR with BT.709's.

    Colours outside the gamut of BT.709 are clipped, each component on its own.
    """
    values = np.clip(rgb, 0, 1, dtype=np.float32)
    if transfer in UNDONE or primaries != PRIMARIES_709:
        decode, encode = KEPT.get(transfer) or UNDONE[transfer]
        values = change_light(values, decode, encode, PRIMARIES[primaries], hdr=transfer in (PQ, HLG))
    return np.round(values * 255).astype(np.uint8)


def change_light(
    values: np.ndarray, decode: Curve, encode: Curve, primaries: tuple[tuple[float, float], ...], *, hdr: bool = False
) -> np.ndarray:
    """Linearise values (0 to 1), convert the primaries to BT.709's, and encode again. hdr: also tone map."""
    light = decode(values) @ np.asarray(to_709(primaries), np.float32).T
    if hdr:
        light = tone_map(light)
    return encode(np.clip(light, 0, 1))


@lru_cache
def to_709(primaries: tuple[tuple[float, float], ...]) -> tuple[tuple[float, ...], ...]:
    """Matrix [3, 3] from linear RGB of other primaries to linear RGB of BT.709's; white stays white (Bradford)."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    (source, white), (target, d65) = _to_xyz(primaries), _to_xyz(PRIMARIES[PRIMARIES_709])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d65) / (bradford @ white)) @ bradford
    matrix = np.linalg.inv(target) @ adapt @ source
    return tuple(tuple(map(float, row)) for row in matrix)


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Matrix [3, 3] from linear RGB to XYZ, and the XYZ of white at Y = 1 (SMPTE RP 177)."""
    *corners, (x, y) = primaries
    columns = np.array([[cx, cy, 1 - cx - cy] for cx, cy in corners]).T
    white = np.array([x / y, 1, (1 - x - y) / y])
    return columns * np.linalg.solve(columns, white), white
