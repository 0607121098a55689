"""Evaluation of folders of clips: every score, its coverage and its uncertainty, in a table and a page."""
