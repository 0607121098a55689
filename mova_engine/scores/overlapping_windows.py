"""P.835's networks on windows that overlap: what several of them hear is computed once, and no number changes by it.

A window of 9.01 s begins a second after the one before it, so most of a sound is heard nine times. Up to its first
pooling the network is four convolutions over spectra: a row of their output depends on the four rows of the spectrum
before and after it. Within a window these rows are those of the whole sound; at both its ends, where the network
continues with zeros, they are computed for it alone. onnxruntime's convolutions on x86 sum each row in the same order
whatever lies around it, so there the ratings are, bit for bit, those of window after window.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mova_engine.scores.onnx_parts import nodes_of, part_of

Floats = NDArray[np.float32]
# Of a window: spectra a second, frequencies, rows in all; channels and frequencies after the first pooling, of 2.
ROWS_A_SECOND, FREQUENCIES, ROWS = 100, 161, 900
_CHANNELS, _POOLED, _POOL = 32, 80, 2
# Rows to each side that a row depends on: one for each convolution.
_CONTEXT = 4
# Rows computed at once: 900 take 150 MB.
_BLOCK = 400

Session = Callable[[Floats], Floats]


class OverlappingWindows:
    """The network in three parts: a window's spectrum, what windows share, and what follows to the ratings."""

    def __init__(self, model: bytes, opened: Callable[[bytes], Any]) -> None:
        """model: the file's bytes. opened: makes a session of onnxruntime of such bytes."""
        nodes = nodes_of(model)
        pooled = next(node.outputs[0] for node in nodes if node.kind == "MaxPool")
        reshaped = next(node.outputs[0] for node in nodes if node.kind == "Unsqueeze")
        spectrum = next(node.outputs[0] for node in nodes if node.kind == "Transpose" and reshaped in node.inputs)
        sound, rated = nodes[0].inputs[0], nodes[-1].outputs[0]
        self._spectrum = _session(opened, part_of(model, {sound: (1, None)}, spectrum))
        self._shared = _session(opened, part_of(model, {spectrum: (1, 1, None, FREQUENCIES)}, pooled))
        self._rated = _session(opened, part_of(model, {pooled: (1, _CHANNELS, ROWS // _POOL, _POOLED)}, rated))

    def outputs(self, windows: Sequence[Floats], second: int) -> NDArray[np.float64]:
        """The network's outputs [w, 3] of windows [n] of samples, of which `second` are a second."""
        found: list[Floats] = []
        for run in _runs(windows, second):
            spectra = [self._spectrum(window[None])[0, 0] for window in run]
            features = self._features(np.concatenate([spectra[0], *(each[-ROWS_A_SECOND:] for each in spectra[1:])]))
            edge = _CONTEXT // _POOL
            for i, own in enumerate(spectra):
                first = i * ROWS_A_SECOND // _POOL
                of_window = features[:, :, first : first + ROWS // _POOL].copy()
                of_window[:, :, :edge] = self._shared(own[None, None, : 2 * _CONTEXT])[:, :, :edge]
                of_window[:, :, -edge:] = self._shared(own[None, None, -2 * _CONTEXT :])[:, :, -edge:]
                found.append(self._rated(of_window)[0])
        return np.array(found, np.float64)

    def _features(self, spectrum: Floats) -> Floats:
        """What windows share [1, channels, rows / 2, 80] of a spectrum [rows, 161]."""
        blocks = []
        for first in range(0, len(spectrum), _BLOCK):
            last = min(first + _BLOCK, len(spectrum))
            before = min(first, _CONTEXT)
            rows = spectrum[first - before : last + _CONTEXT]
            made = self._shared(rows[None, None])
            blocks.append(made[:, :, before // _POOL : (before + last - first) // _POOL])
        return np.concatenate(blocks, 2)


def _runs(windows: Sequence[Floats], second: int) -> list[list[Floats]]:
    """Successive windows of which each continues the one before it by a second; the others stand alone."""
    runs: list[list[Floats]] = []
    for window in windows:
        if runs and np.array_equal(runs[-1][-1][second:], window[:-second]):
            runs[-1].append(window)
        else:
            runs.append([window])
    return runs


def _session(opened: Callable[[bytes], Any], part: bytes) -> Session:
    session = opened(part)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: np.ascontiguousarray(x)})[0]
