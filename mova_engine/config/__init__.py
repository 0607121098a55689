"""Configuration: sizes of models and clips, settings of runs, recipes. Imports no torch."""
