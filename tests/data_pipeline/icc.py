"""Small ICC profiles, written by hand (ICC.1:2001-04): of three lamps, of grey, and of inks."""

import struct
from itertools import product

import numpy as np

# X, Y, Z of the lamps at full light, adapted to D50, as the profiles of these names state them.
LAMPS = {
    "srgb": ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)),
    "srgb, rounded": ((0.43595, 0.22244, 0.01392), (0.38525, 0.71692, 0.09708), (0.14305, 0.06063, 0.71410)),
    "p3": ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
    "adobe": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
}
D50 = (0.96420, 1.0, 0.82491)


def _number(value):
    return struct.pack(">i", round(value * 65536))


def _xyz(values):
    return b"XYZ \0\0\0\0" + b"".join(map(_number, values))


def power_curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def srgb_curve():
    """IEC 61966-2-1 at 1024 points."""
    v = np.linspace(0, 1, 1024)
    light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *np.round(light * 65535).astype(int))


def _profile(space, connection, kind, tags):
    text = b"test\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": described, b"wtpt": _xyz(D50), b"cprt": b"text\0\0\0\0" + text, **tags}
    table, body, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s28x", place + len(body), b"lcms", 0x02400000, kind, space, connection, b"acsp")
    head += b"".join(map(_number, D50)) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def lamps(name, curve):
    tags = {key: _xyz(xyz) for key, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), LAMPS[name], strict=True)}
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey(curve):
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": curve})


def inks(lab_of):
    """CMYK; `lab_of(c, m, y, k)` gives L*, a*, b* of the 16 mixtures of whole inks."""
    nodes = [lab_of(*mixture) for mixture in product((0, 1), repeat=4)]
    grid = [round(v) for lightness, a, b in nodes for v in (lightness * 2.55, a + 128, b + 128)]
    same = bytes(range(256))
    matrix = b"".join(map(_number, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + same * 4 + bytes(grid) + same * 3
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table, b"A2B1": table, b"A2B2": table})
