"""MOVA folders: their layout, reading and writing, checksums, and what a user may name where one is wanted."""
