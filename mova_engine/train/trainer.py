"""The trainer: runs the optimizer steps, logs, validates, saves checkpoints, and stops on request."""

# Some of torch's functions are not fully typed.
# pyright: reportUnknownMemberType=false

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from mova_engine.adapters.writing import export_adapter
from mova_engine.checkpoints.locate import ADAPTERS
from mova_engine.config.command import to_plain
from mova_engine.config.train import TrainConfig
from mova_engine.data.mixture import MixedLoader
from mova_engine.distributed.processes import Processes, rank0_first, read_launch
from mova_engine.distributed.reserve import reserve_tensors
from mova_engine.distributed.stop_signals import Stopped, StopRequest
from mova_engine.distributed.watchdog import Watch
from mova_engine.errors import MovaError, counted
from mova_engine.memory.chosen_memory import ChosenMemory
from mova_engine.ops import DTYPES
from mova_engine.train.assembly import TrainingRun, assemble, device_of, join_processes
from mova_engine.train.elastic import other_step
from mova_engine.train.lora_memory import choose_for_adapters
from mova_engine.train.loss_curve import PICTURE, loss_curve
from mova_engine.train.metrics import METRICS, Meter, MetricsLog, NoLog, Reporter, duration
from mova_engine.train.model_setup import export_model, outline, with_folders
from mova_engine.train.nan_debugger import NanDebugger
from mova_engine.train.optimizer import lr_factor
from mova_engine.train.prefetch import Prefetch
from mova_engine.train.preflight import check_folders
from mova_engine.train.rank_agreement import agree_on_settings
from mova_engine.train.resume import check_named, find_resume
from mova_engine.train.run_folder import SAMPLES, WAY_OUT, RunFolder
from mova_engine.train.sample_scores import SCORES, SECONDS, SampleScores, sample_folder
from mova_engine.train.step import StepResult, Updater
from mova_engine.train.straggler import StragglerWatch
from mova_engine.train.training_state import checkpoints_of, retain, save_checkpoint, sharded_save

# Prefix of values that are averaged for metrics, and are none themselves.
WORK = "work/"


class Trainer:
    """A training run: `Trainer(load_config("nano", out="runs/mine")).run()`.

    config: as `load_config` returns it. console: where progress is printed; default: the terminal. `run()` returns the
    exit status: 0 if all steps are done, 129, 130 or 143 if a signal stopped it (a checkpoint is saved first).

    All processes run this; only rank 0 logs and saves.
    """

    def __init__(self, config: TrainConfig, console: Console | None = None) -> None:
        self.config, self.folder = config, config.folder
        self.launch = read_launch()
        self.console = console or Console(highlight=False, markup=False, soft_wrap=True)
        if self.launch.rank:
            self.console = Console(quiet=True)
        self.meter = Meter()
        self.step: int = 0
        self.skipped_in_a_row: int = 0
        # The step of the last checkpoint that was begun, and its folder once that is known.
        self.saved_step = 0
        self.saved_folder: Path | None = None
        # The run's folder and its lock, in the first process.
        self.held: RunFolder | None = None
        # What the planner chose of memory, where it was asked to; seconds of the steps of this process, and how many.
        self.chosen: ChosenMemory | None = None
        self.took: tuple[float, int] = 0.0, 0
        # Whether the validation of the last step was postponed by a stop.
        self.validation_due: bool = False
        # Measures samples, in the first process of a run that asks for it.
        self.scores: SampleScores | None = None

    def run(self) -> int:
        """Train until the last step or a stop signal; return the exit status. Raises MovaError for the user's
        errors.
        """
        with StopRequest() as stop:
            try:
                with stop.at_once():
                    with rank0_first(self.launch):
                        check_named(self.config)
                        check_folders(self.config)
                        self.config = with_folders(self.config, self.console.print)
                        processes = join_processes(self.config, self.launch)
                    watch = Watch(self.launch, self.config.parallel.timeout)
            except Stopped:
                return self._stopped_early(stop)
            try:
                return self._run(processes, watch, stop)
            finally:
                if self.held is not None:
                    self.held.release()
                watch.close()
                processes.close()

    def _run(self, processes: Processes, watch: Watch, stop: StopRequest) -> int:
        config, first = self.config, processes.is_first
        try:
            with stop.at_once(), watch.guard():
                agree_on_settings(config, processes)
                config = self._decide_memory(config, processes)
                with processes.first_alone():
                    if first:
                        self.held = RunFolder(config)
                resume = find_resume(config, processes)
                parts = assemble(config, resume, self.console, processes)
                if parts.resumed is not None and resume is not None:
                    self._restore(parts, parts.resumed, resume)
        except Stopped:
            return self._stopped_early(stop)
        if self.step >= config.steps:
            asked = "all" if self.step == config.steps else f"more than the {config.steps} asked for"
            self.console.print(f"{self.folder} is done: {counted(self.step, 'step')}, {asked}; --steps would train on")
            return 0
        log = MetricsLog(self.folder, config.log, self.step) if first else NoLog()
        if first and config.validation.scores and parts.validator is not None:
            self.scores = SampleScores(self.folder / SCORES, self.folder / SAMPLES, config.validation)
            self.scores.begin_lost(self.folder / METRICS, self.step)
        try:
            with watch.guard(), Reporter(config.steps, self.step, self.console) as reporter:
                status = self._train(parts, log, reporter, stop, watch)
        except OSError as error:
            raise MovaError(f"cannot write {error.filename or self.folder}: {error.strerror or error}") from error
        finally:
            parts.saver.finish()
            if self.scores is not None:
                self.scores.close()
            self._finish(log)
        # All processes end together: a launcher kills the others when one ends with a status other than 0.
        processes.wait_for_first()
        return status

    def _decide_memory(self, config: TrainConfig, processes: Processes) -> TrainConfig:
        """The settings with those of memory that the planner was left to choose."""
        self.chosen = choose_for_adapters(config, device_of(config), processes)
        if self.chosen is not None:
            self.console.print(self.chosen.words())
            config = replace(config, memory=self.chosen.config)
        self.config = config
        return config

    def _stopped_early(self, stop: StopRequest) -> int:
        stop.over()
        self.console.print("stopped by request before the first step: there is nothing new to save")
        return stop.exit_code

    def _finish(self, log: MetricsLog | NoLog) -> None:
        try:
            log.close()
            if isinstance(log, NoLog) or self.held is None:
                return
            picture = loss_curve(self.folder / METRICS)
            if picture is not None:
                self.held.written.write(PICTURE, picture, WAY_OUT)
        except (OSError, MovaError) as error:
            # Printed, not raised: an exception that ended the run must not be hidden.
            self.console.print(f"warning: metrics or loss curve are incomplete: {error}")

    def _restore(self, parts: TrainingRun, resumed: dict[str, Any], resume: Path) -> None:
        progress: dict[str, Any] = resumed["progress"]
        self.step, self.skipped_in_a_row = resumed["step"], progress["skipped_in_a_row"]
        self.validation_due = progress.get("validation_due", False)
        self.saved_step, self.saved_folder = self.step, resume
        self.meter.load_state_dict(progress["meter"])
        self.console.print(f"going on from {resume} after step {self.step}")
        if (told := other_step(progress.get("clips_per_step"), parts.clips_per_step)) is not None:
            self.console.print(f"warning: {told}")

    def _train(
        self, parts: TrainingRun, log: MetricsLog | NoLog, reporter: Reporter, stop: StopRequest, watch: Watch
    ) -> int:
        config, began = self.config, time.monotonic()
        state, processes = parts.state, parts.processes
        updater = Updater(config, parts.model, state.weights, state.optimizer, parts.ops, processes)
        debugger = NanDebugger(config, updater, processes) if config.debug == "nan" else None
        stragglers = StragglerWatch(processes, parts.model, parts.backend)
        parts.fp8.open_record(None if self.held is None else self.held.written)
        parts.backend.reset_peak_memory()
        with self._prefetched(parts, updater) as batches, stragglers:
            if self.validation_due or (self.step == 0 and config.validation.at_start):
                self.validation_due = False
                self._validate(parts, log, reporter, stop, batches)
            self._asked_to_stop(stop, processes)
            while self.step < config.steps and not stop.agreed:
                if stop.take_save() and self.saved_step != self.step:
                    reporter.say(f"saving step {self.step} by request")
                    self._save(parts, reporter)
                started = time.perf_counter()
                due = (self.step + 1) % config.log.every == 0 or self.step + 1 == config.steps
                taken = batches if debugger is None else debugger.kept(batches)
                parts.fp8.begin(self.step)
                result = updater.step(self.step, taken, stragglers.begin(due, watch.at), due, stop.wanted)
                self.step += 1
                if debugger is not None and not result.taken:
                    raise debugger.error(self.step)
                seconds = time.perf_counter() - started
                self.took = self.took[0] + seconds, self.took[1] + 1
                self._count(result, reporter, seconds)
                for line in parts.fp8.end(self.step, result.taken):
                    reporter.say(line)
                if config.buckets.given:
                    work = {"tokens": parts.tokens_per_step(result.clip), "flops": parts.flops_per_step(result.clip)}
                    self.meter.add({f"{WORK}{name}": value for name, value in work.items()})
                phases, straggler = stragglers.end(self.step, due)
                if straggler is not None:
                    reporter.say(straggler)
                row = self._row(parts) | phases if due else None
                if row is not None:
                    log.write(self.step, row)
                    self._tell_scores(log, reporter)
                reporter.advance(self.step, row)
                # What the device may have to wait for before the next step, validations and checkpoints aside.
                self.meter.add({"seconds/between": time.perf_counter() - started - seconds})
                watch.at(f"after step {self.step}: validation and checkpoint", watched=False)
                self._validate(parts, log, reporter, stop, batches)
                if self.step % config.checkpoint.every == 0 and self.step < config.steps:
                    self._save(parts, reporter)
                # Of a single process also what it was asked for since.
                stop.agree(result.asked if processes.launch.world > 1 else stop.wanted())
        if self.chosen is not None:
            mean = self.took[0] / self.took[1] if self.took[1] else None
            reporter.say(self.chosen.outcome(parts.backend.peak_memory(), mean))
        watch.at("the last checkpoint", watched=False)
        folder = self._save_last(parts, reporter)
        self._tell_scores(log, reporter, stop)
        stop.over()
        took = duration(time.monotonic() - began)
        if self.step < config.steps:
            where = f"the same command goes on from {folder}" if folder else "nothing new was to be saved"
            reporter.say(f"stopped by request after step {self.step} ({took}); {where}")
            return stop.exit_code
        reporter.say(f"done: {counted(self.step, 'step')} in {took}; {folder}")
        if folder is not None and processes.is_first:
            self._export(folder, reporter)
        return 0

    def _prefetched(self, parts: TrainingRun, updater: Updater) -> Prefetch:
        backend, index = parts.backend, parts.processes.launch.local_rank
        prepare = updater.preparer(parts.build, pin=backend.device(index).type != "cpu")
        count = prepare.micro_batches
        return Prefetch(parts.loader, prepare, self.step * count, self.config.steps * count, backend, index)

    def _export(self, saved: Path, reporter: Reporter) -> None:
        """Write the finished adapters in the dialects asked for, beside the checkpoints. What fails is reported: the
        adapters themselves are saved.
        """
        for dialect in self.config.lora.export:
            try:
                out, written = export_adapter(saved / ADAPTERS, self.folder / "export" / saved.name, dialect)
            except MovaError as error:
                reporter.say(f"warning: the adapters are not written as {dialect}: {error}")
                continue
            for note in written.notes:
                reporter.say(note)
            reporter.say(f"{counted(written.layers, 'layer')} written as {dialect}: {out}")

    @staticmethod
    def _asked_to_stop(stop: StopRequest, processes: Processes) -> bool:
        """Whether any process was asked to stop. All processes stop after the same step. An exchange of its own, for
        where no step has told.
        """
        return stop.agree(processes.all_reduce_max(stop.wanted()))

    def _count(self, result: StepResult, reporter: Reporter, seconds: float) -> None:
        """Add a step's values to the meter. A skipped step is reported; too many in a row raise MovaError."""
        self.meter.add({**result.values, "seconds/step": seconds})
        if result.taken:
            self.skipped_in_a_row = 0
            return
        self.skipped_in_a_row += 1
        clips = ", ".join(result.ids[:8]) + (", ..." if len(result.ids) > 8 else "")
        who = f"rank {', '.join(map(str, result.ranks))}; " if result.ranks else ""
        reporter.say(f"warning: step {self.step} skipped: its loss or gradient is not finite ({who}clips {clips})")
        if self.skipped_in_a_row >= self.config.optim.max_nonfinite:
            raise MovaError(
                f"{self.skipped_in_a_row} steps in a row were not finite, the last was step {self.step} "
                f"({who}clips {clips}): lower "
                f"--optim.lr or look at the clips named above; the last checkpoint is untouched"
            )

    def _row(self, parts: TrainingRun) -> dict[str, float]:
        """The metrics of the steps since the last row."""
        means, config, clip = self.meter.take(), self.config, parts.sizes.clip
        # Without buckets all steps are alike.
        tokens = means.pop(f"{WORK}tokens", None) or parts.tokens_per_step(clip)
        flops = means.pop(f"{WORK}flops", None) or parts.flops_per_step(clip)
        factor = lr_factor(self.step - 1, config.steps, config.optim)
        rates = {group["name"]: group["peak_lr"] * factor for group in parts.state.optimizer.param_groups}
        row = {**means, "lr": config.optim.lr * factor, **{f"lr/{name}": rate for name, rate in rates.items()}}
        row["tokens/second"] = tokens / means["seconds/step"]
        row["tflops"] = flops / means["seconds/step"] / 1e12
        peak = parts.backend.peak_flops(DTYPES[config.dtype])
        if peak is not None:
            row["mfu"] = row["tflops"] * 1e12 / (peak * parts.processes.launch.world)
        row["memory/gib"] = parts.backend.memory_allocated() / 2**30
        # On the CPU the system updates the counters of the two values at different times.
        row["memory/peak_gib"] = max(row["memory/gib"], parts.backend.peak_memory() / 2**30)
        row["epoch"] = parts.loader.epoch
        if isinstance(parts.loader, MixedLoader):
            row |= {f"epoch/{name}": epoch for name, epoch in parts.loader.epochs.items()}
        return row

    def _validate(
        self, parts: TrainingRun, log: MetricsLog | NoLog, reporter: Reporter, stop: StopRequest, batches: Prefetch
    ) -> None:
        settings = self.config.validation
        if parts.validator is None or self.step % settings.every:
            return
        # Validation may take long: a run that was asked to stop does it after it is resumed.
        self.validation_due = self.step < self.config.steps and self._asked_to_stop(stop, parts.processes)
        if self.validation_due:
            return
        # Clips are encoded by the codecs that samples need.
        batches.settle()
        sharded = parts.state.weights.shards is not None
        with parts.state.weights.averaged():
            losses = parts.validator.losses(parts.model)
            try:
                if parts.processes.is_first:
                    # Without sharding only this process samples, so that a signal may interrupt it.
                    with nullcontext() if sharded else stop.at_once():
                        out = sample_folder(self.folder / SAMPLES, self.step)
                        parts.validator.sample(parts.model, parts.codecs, parts.residency, out)
                    if self.scores is not None and out.is_dir():
                        self.scores.begin(self.step)
                elif sharded:
                    # FSDP gathers a block's weights from all ranks, so all ranks sample; only rank 0 keeps the result.
                    with TemporaryDirectory() as unwanted:
                        out = Path(unwanted) / "samples"
                        parts.validator.sample(parts.model, parts.codecs, parts.residency, out)
            except MovaError as error:
                # Failing samples do not end the run.
                reporter.say(f"warning: no samples at step {self.step}: {error}")
            except Stopped:
                reporter.say(f"asked to stop: the samples of step {self.step} are not complete")
        parts.processes.wait_for_first()
        if not losses:
            return
        log.write(self.step, losses)
        reporter.say("held out: " + " ".join(f"{k.removeprefix('heldout/')} {v:.4f}" for k, v in losses.items()))

    def _tell_scores(self, log: MetricsLog | NoLog, reporter: Reporter, stop: StopRequest | None = None) -> None:
        """Log what was measured of samples meanwhile. stop: of a run at its end, which waits for what is missing."""
        if self.scores is None:
            return
        if stop is not None and not stop and self.scores.waiting:
            reporter.say("waiting for the scores of the last samples; Ctrl-C leaves them out")
        for found in self.scores.found() if stop is None else self.scores.rest(lambda: bool(stop)):
            log.write(found.step, found.values)
            took = f"{found.values[SECONDS]:.1f} s"
            reporter.say(f"samples of step {found.step}: {', '.join(found.words)} (measured in {took})")

    def _save_last(self, parts: TrainingRun, reporter: Reporter) -> Path | None:
        """Save the last checkpoint; return its folder, None in processes that do not know it."""
        if self.saved_step != self.step:
            self._save(parts, reporter, last=True)
        try:
            return parts.saver.wait() or self.saved_folder
        except MovaError as error:
            raise self._not_saved(error) from error

    def _save(self, parts: TrainingRun, reporter: Reporter, last: bool = False) -> None:
        """Save a checkpoint and remove old ones. A failure raises MovaError, or is reported if the run may continue.

        Without sharding all processes hold the same weights: the first one saves, the others wait for its result. With
        sharded weights all processes save in the background, and a failure is noticed at the next checkpoint or at the
        end.
        """
        progress = {
            "clips_per_step": parts.clips_per_step,
            "fp8": parts.fp8.state_dict(),
            "loader": parts.loader.state_dict(),
            "meter": self.meter.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
            "validation_due": self.validation_due,
        }
        must = last or self.config.checkpoint.on_error == "stop"
        if parts.state.weights.shards is not None:
            self._save_shards(parts, progress, reporter, must)
            return
        if not parts.processes.is_first:
            failed = parts.processes.wait_for_first()
            if failed and must:
                raise MovaError(f"the first process could not save step {self.step}")
            self.saved_step = self.saved_step if failed else self.step
            return

        def export(folder: Path) -> None:
            with parts.state.weights.averaged():
                export_model(parts.model, parts.codecs, self.config, folder, self.step)

        try:
            folder = save_checkpoint(self.folder, self.step, parts.state, progress, to_plain(self.config), export)
        except MovaError as error:
            parts.processes.wait_for_first(1)
            if must:
                raise self._not_saved(error) from error
            reporter.say(f"warning: no checkpoint at step {self.step}, training goes on: {error}")
            return
        self.saved_step, self.saved_folder = self.step, folder
        self._tidy(folder)
        parts.processes.wait_for_first()

    def _save_shards(self, parts: TrainingRun, progress: dict[str, Any], reporter: Reporter, must: bool) -> None:
        config, dtype, step = self.config, DTYPES[self.config.dtype], self.step
        bare = outline(parts.model, dtype, config.lora)

        def export(folder: Path) -> None:
            export_model(bare, parts.codecs, config, folder, step, write=reserve_tensors)

        def saved(save: Callable[[], Path]) -> Path:
            folder = save()
            if parts.processes.is_first:
                self._tidy(folder)
            return folder

        try:
            parts.saver.wait()
        except MovaError as error:
            if must:
                raise self._not_saved(error) from error
            reporter.say(f"warning: a checkpoint is missing, training goes on: {error}")
        save = sharded_save(
            self.folder, self.step, parts.state, progress, to_plain(config), export, dtype, parts.saver.group
        )
        parts.saver.start(partial(saved, save))
        self.saved_step = self.step

    def _tidy(self, saved: Path) -> None:
        """In the first process, after a checkpoint: record it in the run's folder, remove old checkpoints."""
        with suppress(OSError, MovaError):
            if self.held is not None:
                self.held.saved(saved)
            retain(self.folder, self.config.checkpoint)

    def _not_saved(self, error: MovaError) -> MovaError:
        good = checkpoints_of(self.folder)
        return MovaError(f"{error}; the run can go on from {good[-1][1].name}" if good else str(error))
