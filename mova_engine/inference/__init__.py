"""Sampling: the pipeline from a prompt and a first frame to an mp4, the denoising loop, the output folder.

`mova sample --checkpoint DIR --prompt TEXT`.
"""
