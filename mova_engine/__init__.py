"""mova_engine: train, fine-tune, run and measure MOVA, the open model that generates video and its sound together.

Importing the package imports nothing else: pick what you need, e.g. `from mova_engine.ops import bind`.
"""

__version__ = "0.1.0"
