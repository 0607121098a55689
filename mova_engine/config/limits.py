"""Checks that settings make of themselves: a MovaError in one line for what no run can use."""

import math

from mova_engine.errors import MovaError

# NumPy's global generator takes 32 bits.
MAX_SEED = 2**32 - 1
# OpenMP ends the process without a message where the system cannot start the requested number of threads.
MAX_THREADS = 1024


def check(condition: bool, message: str) -> None:
    """MovaError with `message` unless the condition holds."""
    if not condition:
        raise MovaError(message)


def check_least(settings: object, group: str, **least: float) -> None:
    """MovaError unless each named field of `settings` is None, or finite and at least its bound; group: what stands
    before the fields' names, e.g. "optim.".
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        usable = value is None or bound <= value < math.inf
        check(usable, f"{group}{name} must be at least {bound}, got {value}")


def check_threads(wanted: int | None) -> None:
    """MovaError for a number of CPU threads that no run can use; None is the backend's own choice."""
    usable = wanted is None or 1 <= wanted <= MAX_THREADS
    check(usable, f"threads must lie between 1 and {MAX_THREADS}, got {wanted}")


def check_seed(seed: int) -> None:
    """MovaError for a seed that not every generator takes."""
    check(0 <= seed <= MAX_SEED, f"seed must lie between 0 and {MAX_SEED}, got {seed}")
