"""How implementations of operators are judged: cases, noise of the reference, verdicts.

No product code imports this: tests, parity, doctor and benchmarks do.
"""
