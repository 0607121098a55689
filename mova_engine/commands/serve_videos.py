"""`mova serve`: a server of video jobs: an API, a page, and the worker processes that make the clips."""

from collections.abc import Sequence

from mova_engine.config.serve import SERVE
from mova_engine.errors import MovaError, require_package, run_cli, say


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; jobs in progress then go back to the queue."""
    config = SERVE.parse(argv)
    if config is None:
        return 0
    for package in ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client", "python_multipart"):
        require_package(package, "mova serve", instead=" (or the extra: pip install 'mova-engine[serve]')")
    # Imported late, so that help is instant.
    from mova_engine.serving.serve_store import serve

    assert config.checkpoint is not None, "it was checked"
    try:
        return serve(config, config.checkpoint, say)
    except OSError as error:
        raise MovaError(f"--store {config.store}: {error.strerror or error}") from None


if __name__ == "__main__":
    run_cli(main)
