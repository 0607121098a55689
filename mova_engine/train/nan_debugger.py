"""`--debug nan` of a training run: keeps what a step took, and runs a step that is not finite again to say where."""

from collections.abc import Iterator

from torch import Tensor

from mova_engine.config.train import TrainConfig
from mova_engine.distributed.fsdp import local_rows
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.train.micro_batch import MicroBatch
from mova_engine.train.nonfinite_trace import NonfiniteTrace, NonfiniteValue, summary, unsound
from mova_engine.train.step import Updater, micro_losses


class NanDebugger:
    """Runs the last step of `updater` again, if it was not finite."""

    def __init__(self, config: TrainConfig, updater: Updater, processes: Processes) -> None:
        self._config, self._updater, self._processes = config, updater, processes
        self._taken: list[MicroBatch] = []

    def kept(self, batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """`batches`; those of the step that begins now are remembered."""
        self._taken = []
        for micro in batches:
            self._taken.append(micro)
            yield micro

    def error(self, step: int) -> MovaError:
        """What is to be raised for step `step` (from 1), in all processes. Collective."""
        found = summary(self._processes.all_gather_object(self._find()))
        self._updater.weights.zero_grad()
        if found is None:
            found = "each process's loss and gradients are finite when it is run again: only their sum over the "
            found += "processes, or its norm, is not, or the step is not the same each time (--deterministic)"
        return MovaError(f"step {step} is not finite. {found}. The last checkpoint is untouched")

    def _find(self) -> NonfiniteValue | None:
        updater, config = self._updater, self._config
        before = unsound(self._inputs())
        trace = NonfiniteTrace(updater.model)
        heard = updater.heard(self._taken) if config.loader.silent_audio == "mask" else None
        updater.weights.zero_grad()
        with trace.observed():
            for number, micro in enumerate(self._taken):
                trace.begin(number)
                if (shards := updater.weights.shards) is not None:
                    shards.begin_micro_batch(number + 1 == len(self._taken), updater.idle(micro.step_draw))
                batch = updater.masked(micro, heard)
                losses = micro_losses(
                    updater.model, batch, micro.draw, micro.noise, config, self._processes.sharding, updater.runner
                )
                trace.check_loss(losses.total)
                (losses.total / len(self._taken)).backward()
        return trace.finding if before is None else NonfiniteValue(-1, 0, 0, False, before)

    def _inputs(self) -> Iterator[tuple[str, Tensor]]:
        """Weights, clips and noise, by name."""
        for name, parameter in self._updater.model.named_parameters():
            yield f"weight {name}", local_rows(parameter)
        for micro in self._taken:
            clips = micro.clips
            named = {"audio": clips.audio, "video": clips.video, "image": clips.image, "text": clips.text}
            for name, x in (*named.items(), *((f"noise {n}", x) for n, x in enumerate(micro.noise))):
                if x is not None:
                    yield f"{name} of clips {', '.join(clips.ids)}", x
