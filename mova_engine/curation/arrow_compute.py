"""Arrow's functions on columns, of the optional package pyarrow."""

from typing import Any


def compute() -> Any:
    """The module pyarrow.compute. It makes its functions when it is imported, so no type checker knows them."""
    import pyarrow.compute

    return pyarrow.compute
