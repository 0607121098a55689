"""The adapters of an open pipeline: loaded by name, switched on with strengths between clips, without reopening it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from mova_engine.adapters.form import Adapter, check_shapes
from mova_engine.adapters.lora import beside_only, set_clip_updates, shapes_of, swap_adapters
from mova_engine.adapters.reading import read_adapter, say_other_base
from mova_engine.config.adapter_spec import AdapterSpec, Strength, check_strength, strength_in
from mova_engine.config.model import COMPONENTS
from mova_engine.errors import MovaError, suggest
from mova_engine.inference.requests import Request
from mova_engine.memory.residency import Residency
from mova_engine.models.mova import Mova

log = logging.getLogger(__name__)

Stack = list[tuple[Adapter, float]]


class ActiveAdapters:
    """Adapters by name, and the strength of each; 0: it is off.

        pipeline.adapters.add("style", "style.safetensors")
        pipeline.adapters.set({"style": 0.8})
        pipeline.adapters.set({"style": {"both": 0.8, "audio": 0.2}})  # by the part of the model

    Those that the pipeline was opened with are there too, by the names of their files. Only low-rank updates of linear
    layers can be switched: they are computed beside the weights, quantised ones among them. A pipeline that was opened
    with adapters which change weights themselves (DoRA, full differences) switches none.
    """

    def __init__(self, mova: Mova, folder: Path, chosen: Sequence[AdapterSpec]) -> None:
        """chosen: what the pipeline is opened with. Raises MovaError for files that do not fit the model."""
        self._mova, self._folder, self._shapes = mova, folder, shapes_of(mova)
        self._residency: Residency | None = None
        self._fixed: Stack = []
        self._fixed_names: list[str] = []
        self._known: dict[str, Adapter] = {}
        self._strengths: dict[str, Strength] = {}
        for choice in chosen:
            adapter = self._read(choice.path, choice.part, choice.alpha)
            if not beside_only(mova, adapter):
                self._fixed.append((adapter, choice.strength))
                self._fixed_names.append(str(choice.path))
                continue
            name = self._free_name(choice.path.stem)
            self._known[name], self._strengths[name] = adapter, choice.strength

    def use(self, residency: Residency) -> None:
        """Say what moves the model's components."""
        self._residency = residency

    @property
    def strengths(self) -> dict[str, Strength]:
        """The strength of each adapter that can be switched."""
        return {name: self._strengths.get(name, 0.0) for name in self._known}

    def stack(self, component: str) -> Stack:
        """All adapters that are on in a component, with their strengths."""
        return [*self._fixed, *self._on(self._strengths, component)]

    def _on(self, strengths: Mapping[str, Strength], component: str) -> Stack:
        found = [(self._known[name], strength_in(strength, component)) for name, strength in strengths.items()]
        return [(adapter, strength) for adapter, strength in found if strength]

    @contextmanager
    def of_clips(self, chosen: Sequence[Mapping[str, Strength] | None]) -> Iterator[None]:
        """Within the block, the clips of a batch take adapters of their own. chosen: strengths by name for each clip;
        None: those that are set. Raises MovaError as `set` does.
        """
        if all(each is None for each in chosen):
            yield
            return
        self.check_clips(chosen)
        groups: list[tuple[Mapping[str, Strength], list[int]]] = []
        for clip, each in enumerate(chosen):
            wanted = self._strengths if each is None else each
            same = next((clips for strengths, clips in groups if strengths == wanted), None)
            if same is None:
                groups.append((wanted, [clip]))
            else:
                same.append(clip)
        parts = {name: getattr(self._mova, name) for name in COMPONENTS if getattr(self._mova, name) is not None}
        try:
            for name, component in parts.items():
                stacks = [(self._on(strengths, name), tuple(clips)) for strengths, clips in groups]
                set_clip_updates(component, stacks, f"{name}.")
            yield
        finally:
            for component in parts.values():
                set_clip_updates(component, ())

    def check_clips(self, chosen: Sequence[Mapping[str, Strength] | None]) -> None:
        """MovaError for strengths of clips that cannot be used, as of `set`."""
        for strengths in chosen:
            if strengths is not None:
                self._check_free()
                for name, strength in strengths.items():
                    self._check(name)
                    check_strength(name, strength)

    def add(self, name: str, source: str | Path, *, part: str | None = None, alpha: float | None = None) -> None:
        """Load an adapter under a name, switched off: a file or folder of any dialect, or a LoRA run.

        part, alpha: as of `read_adapter`. Raises MovaError for a name that is taken, and for an adapter that does not
        fit the model or changes weights themselves.
        """
        self._check_free()
        if name in self._known:
            raise MovaError(f"there is an adapter '{name}' already: give another name, or remove it")
        adapter = self._read(Path(source), part, alpha)
        if not beside_only(self._mova, adapter):
            raise MovaError(
                f"{source} changes weights themselves (DoRA or full differences), which cannot be switched: open the "
                "pipeline with it (lora=), or merge it (mova lora merge)"
            )
        self._known[name] = adapter

    def remove(self, name: str) -> None:
        """Switch an adapter off and forget it. MovaError for an unknown name."""
        self._check(name)
        self.set({other: strength for other, strength in self._strengths.items() if other != name})
        del self._known[name]

    def set(self, strengths: Mapping[str, Strength], *, rank: int = 0) -> None:
        """Switch on these adapters with these strengths, and all others off, for the clips that are made next.

        A strength is a number, or one for each part (high, low, both, audio, bridge), where others are off.

        For none at all, adapters are removed. Updates are written into the memory of those before, filled up with zeros
        where their ranks add up to less; B takes the strength, rounded to the layer's dtype. rank: the least rank that
        memory is taken for, so that larger adapters later need none. Raises MovaError, and changes nothing, for an
        unknown name or a strength that is not a finite number, for a pipeline with adapters that cannot be switched,
        and while a clip is made.
        """
        self._check_free()
        for name, strength in strengths.items():
            self._check(name)
            check_strength(name, strength)
        if self._residency is not None:
            self._residency.check_idle()
        self._strengths = {name: strength for name, strength in strengths.items() if strength}
        # Layers of a streamed model come and go; their adapters stay on the device.
        streamed = self._mova.streamed is not None
        device: torch.device | None = None
        for name in COMPONENTS:
            component = getattr(self._mova, name)
            if component is None:
                continue
            if self._residency is not None and not streamed:
                if not self._residency.call_back(name):
                    continue  # not read yet: adapters are attached when it is
            elif self._residency is not None:
                device = self._residency.device
            on = self._on(self._strengths, name)
            swap_adapters(component, on, f"{name}.", rank=rank, device=device)

    def _read(self, path: Path, part: str | None, alpha: float | None) -> Adapter:
        adapter = read_adapter(path, alpha=alpha, part=part, say=log.warning)
        check_shapes(adapter, self._shapes, path)
        say_other_base(adapter, self._folder, path, log.warning)
        return adapter

    def _check_free(self) -> None:
        if self._fixed:
            raise MovaError(
                f"the pipeline was opened with {', '.join(self._fixed_names)}, which changes weights themselves (DoRA "
                "or full differences): open one without it to switch adapters, or merge it first (mova lora merge)"
            )

    def _check(self, name: str) -> None:
        if name not in self._known:
            known = ", ".join(self._known) or "none is loaded"
            raise MovaError(f"unknown adapter '{name}'.{suggest(name, self._known)} Known: {known}")

    def _free_name(self, stem: str) -> str:
        number = 1
        while (name := stem if number == 1 else f"{stem}-{number}") in self._known:
            number += 1
        return name


def adapters_of(adapters: ActiveAdapters | None, requests: Sequence[Request]) -> AbstractContextManager[None]:
    """Within the block, the clips of a batch take the adapters that their requests ask for."""
    return nullcontext() if adapters is None else adapters.of_clips([request.adapters for request in requests])


def check_adapters(adapters: ActiveAdapters | None, requests: Sequence[Request]) -> None:
    """MovaError for requests whose adapters cannot be used. adapters: None: the pipeline takes none."""
    if any(request.adapters is not None for request in requests):
        if adapters is None:
            raise MovaError("this pipeline takes no adapters: leave them out of its requests")
        adapters.check_clips([request.adapters for request in requests])
