"""Configuration files of other tools for training adapters, as settings of a run: one file for each tool."""
