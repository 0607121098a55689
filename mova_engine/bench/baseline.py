"""The baseline of benchmarks: the operators in the published model's formulation.

It is not part of this package and is imported by name, "module:attribute"; the attribute maps operators' names to
functions of their signatures.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mova_engine
from mova_engine.backend import Backend
from mova_engine.bench import BASELINE
from mova_engine.errors import MovaError
from mova_engine.ops import Choice, OpTable, bind

NAME = "baseline"


def load_baseline(target: str = BASELINE) -> Mapping[str, Callable[..., Any]]:
    """Import the functions at "module:attribute". Raises MovaError, with a remedy, if they are not found."""
    module, _, attribute = target.partition(":")
    checkout = Path(mova_engine.__file__).resolve().parents[1]
    if target == BASELINE and (checkout / "benchmarks").is_dir() and str(checkout) not in sys.path:
        # First, not last: other projects too install a package of this name.
        sys.path.insert(0, str(checkout))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise MovaError(
            f"the baseline '{target}' is not found ({error}): run from a checkout of the repository, "
            "name another MODULE:ATTRIBUTE with --baseline, or measure the engine alone with --baseline none"
        ) from None
    if not isinstance(found, Mapping):
        raise MovaError(f"the baseline '{target}' must map operators' names to functions, got {type(found).__name__}")
    return found


def bind_baseline(backend: Backend, target: str = BASELINE, *, training: bool = True) -> OpTable:
    """Return the engine's operator table for `backend`, with the baseline's operators in place of the engine's."""
    functions = load_baseline(target)
    table = bind(backend, training=training).replaced(**functions)
    choices = tuple(Choice(c.operator, NAME) if c.operator in functions else c for c in table.choices)
    return OpTable(table.device, table.functions, choices)
