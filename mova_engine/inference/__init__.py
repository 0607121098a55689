"""Sampling: the denoising loop, the pipeline from words and a first frame to an mp4, contact sheets.

`python -m mova_engine.inference --checkpoint DIR --prompt TEXT`.
"""
