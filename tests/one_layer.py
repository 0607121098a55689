"""The nano model with one layer of each kind, for tests of runs: what they test is the run, which costs what its layers
cost.
"""

from dataclasses import replace

from mova_engine.config.model import PRESETS, MovaConfig


def nano() -> MovaConfig:
    whole = PRESETS["nano"]
    video, audio = (replace(tower, num_layers=1) for tower in (whole.video, whole.audio))
    return replace(whole, video=video, audio=audio, bridge=replace(whole.bridge, visual_layers=1, audio_layers=1))
