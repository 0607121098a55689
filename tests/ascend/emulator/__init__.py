"""A software Ascend for tests: the real torch_npu, executed on a CANN of our own. See README.md beside this file.

`python tests/ascend/emulate.py COMMAND ...` runs any program with it; nothing else needs to be imported.
"""
