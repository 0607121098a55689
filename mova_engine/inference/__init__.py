"""Sampling: the denoising loop, the pipeline from words and a first frame to an mp4, contact sheets.

`mova sample --checkpoint DIR --prompt TEXT`.
"""
