"""The rehearsal: full-size steps on tensors without data, as one of many ranks, on a device that is not here.

What patches torch for that (`fake_devices`, `fake_processes`) runs in a process of its own: see `child`.
"""
