"""Reads adapters: from a file or folder of any dialect to the neutral form."""

from collections.abc import Callable
from pathlib import Path

from mova_engine.adapters.dialect import Dialect, merged
from mova_engine.adapters.dialects import DIALECTS, get_dialect, recognised
from mova_engine.adapters.form import BASE, Adapter, check_alpha, resolved
from mova_engine.adapters.stored_file import StoredFile, read_stored_file
from mova_engine.checkpoints.fingerprint import fingerprint
from mova_engine.checkpoints.locate import ADAPTERS, checkpoints_in, find_adapters
from mova_engine.errors import MovaError


def read_adapter(
    path: str | Path,
    *,
    part: str | None = None,
    dialect: str | None = None,
    alpha: float | None = None,
    skip_foreign: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Adapter:
    """Read the adapter of a file, a folder of one of the dialects, or a training run.

    part: what it adapts, one of `config.adapter_spec.PARTS`, if the file does not state it. dialect: a name of
    `dialects.DIALECTS`; None: detected. alpha: replaces the file's. skip_foreign: leave out keys for which MOVA has no
    layer. say: called with the checkpoint of a run that is used. Raises MovaError for files that are missing, damaged
    or contain code, keys that are no adapter's, values that are not finite, and an alpha or part that is neither stated
    nor given.
    """
    return resolved(read_unresolved(path, dialect=dialect, alpha=alpha, skip_foreign=skip_foreign, say=say), part, path)


def read_unresolved(
    path: str | Path,
    *,
    dialect: str | None = None,
    alpha: float | None = None,
    skip_foreign: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Adapter:
    """As `read_adapter`, but names whose component the file does not state keep the component `UNSAID`."""
    if alpha is not None:
        check_alpha(alpha, "alpha")
    chosen: Dialect | None = None if dialect is None else get_dialect(dialect)
    found = [
        (chosen or recognised(file)).read(file, alpha, skip_foreign) for file in stored_files(Path(path), chosen, say)
    ]
    return found[0] if len(found) == 1 else merged(found, Path(path))


def stored_files(
    path: Path, dialect: Dialect | None = None, say: Callable[[str], object] = lambda _: None
) -> list[StoredFile]:
    """The files that make up an adapter: one, or those of a folder."""
    if path.suffix and not path.is_dir():
        return [read_stored_file(path)]
    if not path.is_dir() or (path / ADAPTERS).is_file() or checkpoints_in(path):
        return [read_stored_file(path if path.is_file() else find_adapters(path, say))]
    for known in [dialect] if dialect is not None else map(get_dialect, DIALECTS):
        places = sorted({place for pattern in known.files for place in path.glob(pattern)})
        if places:
            return [read_stored_file(place, several=len(places) > 1) for place in places]
    places = sorted(path.glob("*.safetensors"))
    # A component's files have a configuration beside them: `find_adapters` says what the folder is.
    if len(places) < 2 or (path / "config.json").is_file():
        return [read_stored_file(find_adapters(path, say))]
    return [read_stored_file(place, several=True) for place in places]


def require_adapter(path: Path) -> None:
    """MovaError, as of `find_adapters`, where there is nothing under a path."""
    if not path.exists():
        find_adapters(path)


def say_other_base(adapter: Adapter, folder: Path, source: object, say: Callable[[str], object]) -> None:
    """Tell `say` where an adapter states that it was made for other weights than those of a model folder."""
    stated = adapter.metadata.get(BASE)
    if stated is not None and stated != fingerprint(folder):
        say(f"{source} was trained on another model than {folder}, by the fingerprint in its metadata")


def base_of(folder: str | Path) -> dict[str, str]:
    """Metadata that names the model that adapters were made for."""
    try:
        return {BASE: fingerprint(folder)}
    except OSError as error:
        raise MovaError(f"{folder}: cannot be read ({error.strerror})") from error
