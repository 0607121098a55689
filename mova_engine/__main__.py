"""`python -m mova_engine COMMAND`: the same as `mova COMMAND`, for torchrun and where no script is installed."""

from mova_engine.cli import run

if __name__ == "__main__":
    run()
