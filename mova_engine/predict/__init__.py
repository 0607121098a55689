"""The cost model: memory, seconds and traffic of a run on a machine, and the search for one that fits.

Everything here is arithmetic on sizes and imports no torch. What comes out is a prediction, and is called one.
"""
