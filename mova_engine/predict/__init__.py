"""The cost model: predicts memory, seconds and traffic of a run on a machine, and searches for a configuration that
fits.

All of it is arithmetic on sizes and imports no torch. Every result is a prediction, not a measurement.
"""
