"""Curation: from raw video to a training set, sound and picture judged together. See docs/curation.md."""
