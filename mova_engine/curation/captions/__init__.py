"""Captions of clips: models that see and hear describe them, and of what they say one caption is made and checked."""
