"""Which checkpoint a run resumes from, and whether it is complete. A run never restarts from scratch silently."""

from pathlib import Path

from mova_engine.checkpoints.integrity import damage
from mova_engine.config.train import TrainConfig
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.files.written import Written
from mova_engine.train.rank_agreement import agree_on_checkpoint
from mova_engine.train.run_folder import BY
from mova_engine.train.training_state import FOLDER, STATE, TRAINING, checkpoint_step, checkpoints_of, read_state


def check_named(config: TrainConfig) -> None:
    """Raise MovaError if --resume names a folder that does not exist."""
    if config.resume not in ("auto", "none") and not Path(config.resume).is_dir():
        raise MovaError(
            f"--resume {config.resume}: no such folder; it takes auto, none, or the folder of a checkpoint or run"
        )


def find_resume(config: TrainConfig, processes: Processes) -> Path | None:
    """Return the checkpoint to resume from, verified by all processes together; None for a new run. Collective.

    Raises MovaError for a folder without a checkpoint, for a damaged checkpoint (the message names the newest undamaged
    one), for a run whose checkpoints were removed, and for a new run that would overwrite checkpoints.
    """
    folder = _wanted(config)
    agree_on_checkpoint(folder, processes)
    if folder is None:
        return None
    wrong = _damage(folder, processes)
    if wrong is None:
        return folder
    others = [path for _, path in reversed(checkpoints_of(folder.parent.parent)) if path != folder]
    for other in others:
        if _damage(other, processes) is None:
            raise MovaError(f"{folder} is damaged: {wrong}; {other.name} is whole: go back to it with --resume {other}")
    raise MovaError(
        f"{folder} is damaged: {wrong}; there is no whole checkpoint beside it: copy it again, or start anew"
    )


def _wanted(config: TrainConfig) -> Path | None:
    own = checkpoints_of(config.folder)
    if config.resume == "none":
        if own:
            raise MovaError(f"{config.folder} holds a run with checkpoints: give another --out, or remove it")
        return None
    if config.resume == "auto":
        return _newest(config.folder)
    wanted = Path(config.resume)
    folder = wanted if (wanted / TRAINING).is_dir() else _newest(wanted) or wanted
    read_state(folder)
    return folder


def _newest(run: Path) -> Path | None:
    """The newest checkpoint of a run; None if there is none. Raises MovaError if it is incomplete, or if the run has
    saved checkpoints and all were removed.
    """
    whole = checkpoints_of(run)
    last, folder = whole[-1] if whole else (-1, None)
    folders = [path for path in (run / FOLDER).glob("step-*") if path.is_dir()]
    steps = [(step, path) for path in folders if (step := checkpoint_step(path)) is not None]
    step, newest = max(steps, default=(-1, None))
    if step > last:
        other = f"; {folder.name} is whole: go back to it with --resume {folder}" if folder else ""
        raise MovaError(f"{newest} is no whole checkpoint: it has no {TRAINING}/{STATE}{other or '; move it away'}")
    if folder is None:
        saved = [name for name in Written(run, BY).names if name.startswith(f"{FOLDER}/")]
        if saved:
            raise MovaError(
                f"{run} is a run that has saved {max(saved)}, but its checkpoints are gone: bring them back, start "
                "anew there with --resume none (its metrics are kept), or give another --out"
            )
    return folder


def _damage(folder: Path, processes: Processes) -> str | None:
    """What any of the processes, each of which reads a part of the checkpoint, finds wrong; None if nothing.
    Collective.
    """
    found = damage(folder, processes.launch.rank, processes.launch.world)
    if found is None:
        try:
            read_state(folder)
        except MovaError as error:
            found = str(error)
    return next((each for each in processes.all_gather_object(found) if each is not None), None)
