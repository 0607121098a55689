"""Predict memory, step time and traffic of a run from shapes and a device's description, and recommend how to run it.

Everything here is arithmetic on sizes: no torch, no device. What comes out is a prediction, and is called one.
"""
