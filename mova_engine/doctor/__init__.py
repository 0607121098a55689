"""What is wrong with this machine, and what to do about it: `python -m mova_engine.doctor`."""
