"""Commands, one module each. The commands of `train`, `inference`, `plan`, ... are in the `__main__` of these
packages.
"""
