"""Votes of raters on pairs of clips: a blind page that collects them, and what they say of the systems."""
