"""Clips: real media files to tensors and back, the cache of latents, the resumable loader."""
