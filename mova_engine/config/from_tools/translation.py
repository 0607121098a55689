"""How the keys of another tool's configuration become settings.

Each ends as a setting, as unused with the reason, or in a refusal that says what to do.
"""

import math
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any, cast

from mova_engine.errors import MovaError, counted

NO_OPTIONS: Mapping[str, str | None] = {}
_METADATA = "metadata.jsonl"

# Reasons that several tools' keys have.
OF_THE_MODEL = "the model is MOVA's own folder: --model.checkpoint"
OF_MEMORY = "memory auto: the planner chooses what fits the device and the host"
OF_OPERATORS = "operators are chosen for the machine (mova ops)"
OF_LOGS = "metrics.jsonl and TensorBoard's files are in the run's folder"
OF_UPLOADS = "nothing is uploaded"
OF_QUANTISING = (
    "weights stay as they are stored, and come to the device layer by layer where they do not fit; "
    "--memory.frozen fp8 quantises them"
)


@dataclass(frozen=True)
class Translation:
    """settings: nested, as a recipe has them, over those of `recipe`. lines: what each key became, for the user."""

    settings: Mapping[str, Any]
    lines: tuple[str, ...]
    recipe: str = "lora"
    # By setting, "optim.lr": the keys that it follows from, with their values.
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    file: str = ""

    @property
    def said(self) -> list[str]:
        """`lines`, with the file."""
        return [f"{self.file}: {line}" for line in self.lines]

    def keys_in(self, error: str) -> str:
        """The keys of the settings that an error is about; "" where there are none."""
        words = {word.strip("_") for word in re.findall(r"[a-z_0-9.]+", error.replace("][", ".").replace("-", "_"))}
        named = [origin for setting, origin in self.origins.items() if setting in words]
        if not named:
            named = [origin for setting, origin in self.origins.items() if setting.rsplit(".", 1)[-1] in words]
        return ", ".join(dict.fromkeys(named))


@dataclass(frozen=True)
class Same:
    """A key that is the setting of that name here."""

    setting: str


@dataclass(frozen=True)
class Unused:
    """A key that does not change what is trained here."""

    reason: str


@dataclass(frozen=True)
class Only:
    """A key of which these values alone mean what happens here; others are refused with the advice."""

    values: tuple[Any, ...]
    advice: str


Rule = Same | Unused | Only
# Values that mean "not set" in every tool.
NEUTRAL: tuple[Any, ...] = (None, False, 0, "", "none", [], {})


def named(names: str, rule: Rule, prefix: str = "") -> dict[str, Rule]:
    """The same rule for several keys, separated by spaces, each with `prefix` before it."""
    return {prefix + name: rule for name in names.split()}


@dataclass
class Keys:
    """The keys of a tool's configuration while they are translated.

    source: the file, for messages. values: by name. options: of the command line; they may settle a key that would be
    refused.
    """

    source: Path
    values: dict[str, Any]
    options: Mapping[str, str | None]
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    _became: list[str] = field(default_factory=list[str])
    _unused: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _refused: list[str] = field(default_factory=list[str])
    _origins: dict[str, str] = field(default_factory=dict[str, str])

    def has(self, name: str) -> bool:
        """Whether a key is given and was not translated yet."""
        return name in self.values

    def number(self, name: str, default: float) -> float:
        """A key's number; the key stays. MovaError for what is none."""
        value = self.values.get(name, default)
        value = default if value is None else value
        found = number(self.source, name, value)
        return int(found) if found.is_integer() and abs(found) < 1e15 and not _fraction(value) else found

    def whole(self, name: str, default: int, least: int = 0) -> int:
        """As `number`, for a count. MovaError for a fraction, and for less than `least`."""
        found = self.number(name, default)
        if found != int(found) or found < least:
            raise MovaError(f"{self.source}: {name} must be a whole number from {least} on, got {found!r}")
        return int(found)

    def text(self, name: str) -> str:
        """A key's text, "" without one; the key stays. MovaError for what is none."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str | int | float):
            raise MovaError(f"{self.source}: {name} must be a text, got {_plain(value)}")
        return "" if value is None else str(value)

    def set(self, setting: str, value: Any, *names: str, why: str = "") -> None:
        """Set `setting` to `value`, which follows from the keys `names`; without any, from the tool's defaults, unless
        `why` says where from ("of ...").
        """
        place = self.settings
        *groups, last = setting.split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
        given = [self._shown(name) for name in names if name in self.values]
        for name in names:
            self.values.pop(name, None)
        if given or why.startswith("of "):
            self._origins[setting] = ", ".join(given) or why[3:]
        origin, why = (why[3:], "") if not given and why.startswith("of ") else (", ".join(given) or "by default", why)
        self._became.append(f"{origin} -> {setting}: {_plain(value)}" + (f" ({why})" if why else ""))

    def used(self, *names: str) -> None:
        """These keys are in settings already."""
        for name in names:
            self.values.pop(name, None)

    def unused(self, name: str, reason: str) -> None:
        """Leave a key out, if it is given."""
        if name in self.values:
            self._unused.setdefault(reason, []).append(self._shown(name))
            del self.values[name]

    def refuse(self, name: str, advice: str, *settled_by: str) -> None:
        """Refuse a key that is given, unless one of the options `settled_by` is on the command line."""
        settled = next((option for option in settled_by if option in self.options), None)
        if settled is not None:
            self.unused(name, f"{settled} says it")
        elif name in self.values:
            self._refused.append(f"{self._shown(name)}: {advice}")
            del self.values[name]

    def apply(self, rules: Mapping[str, Rule]) -> None:
        """Translate keys by a table."""
        for name, rule in rules.items():
            if name not in self.values:
                continue
            if isinstance(rule, Same):
                self.set(rule.setting, self.values[name], name)
            elif isinstance(rule, Unused):
                self.unused(name, rule.reason)
            elif any(self.values[name] == value for value in rule.values) or _empty(self.values[name]):
                self.unused(name, "as it is here")
            else:
                self.refuse(name, rule.advice)

    def finish(self) -> Translation:
        """The translation. MovaError in one line that names every key that has no counterpart."""
        for name in list(self.values):
            self.refuse(name, "unknown here: remove it")
        if self._refused:
            what = "key has" if len(self._refused) == 1 else "keys have"
            raise MovaError(f"{self.source}: {len(self._refused)} {what} no counterpart; {'; '.join(self._refused)}")
        unused = (f"unused: {', '.join(names)} ({reason})" for reason, names in self._unused.items())
        return Translation(self.settings, (*self._became, *unused), origins=self._origins)

    def _shown(self, name: str) -> str:
        value = self.values[name]
        return name if value is True else f"{name} {_plain(value)}"


def number(source: Path, name: str, value: Any) -> float:
    """A finite number. MovaError that names file and key for what is none."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise MovaError(f"{source}: {name} must be a number, got {value!r}")
    return found


def mapping(source: Path, name: str, value: Any) -> dict[str, Any]:
    """Keys with values; {} where nothing is given. MovaError that names file and key for what has none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MovaError(f"{source}: {name} must hold keys with values, got {_plain(value)}")
    return dict(cast(dict[str, Any], value))


def listing(source: Path, name: str, value: Any) -> list[Any]:
    """A list; [] where nothing is given. MovaError that names file and key for what is none."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise MovaError(f"{source}: {name} must be a list, got {_plain(value)}")
    return list(cast(list[Any], value))


def _empty(value: Any) -> bool:
    """Whether a mapping holds nothing that is set."""
    return isinstance(value, dict) and all(each in NEUTRAL for each in cast(dict[str, Any], value).values())


def _fraction(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, str) and not value.strip().lstrip("+-").isdigit())


def _plain(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def optimizer(keys: Keys, name: str, params: str, given: Mapping[str, Any]) -> None:
    """AdamW from the key `name`, and its arguments, which the key `params` holds."""
    kind = str(keys.values.get(name) or "adamw")
    plain = kind.lower().rsplit(".", 1)[-1]
    if plain == "adamw":
        keys.unused(name, "AdamW is the optimizer")
    elif plain in ("adamw8bit", "pagedadamw8bit"):
        keys.set("optim.moments", "8bit", name)
    else:
        keys.refuse(name, "AdamW is the only optimizer; with --optim.lr, a learning rate for it, this is settled", _LR)
    values, source = dict(given), keys.source
    keys.set(
        "optim.weight_decay",
        number(source, f"{params}: weight_decay", values.pop("weight_decay", 0.01)),
        why=f"of {params}" if "weight_decay" in given else "",
    )
    if "betas" in values:
        betas = values.pop("betas")
        betas = listing(source, f"{params}: betas", betas.split(",") if isinstance(betas, str) else betas)
        if len(betas) != 2:
            raise MovaError(f"{source}: {params}: betas must be two numbers, got {_plain(betas)}")
        pair = [number(source, f"{params}: betas", str(x).strip("() ")) for x in betas]
        keys.set("optim.betas", pair, why=f"of {params}")
    if "eps" in values:
        keys.set("optim.eps", number(source, f"{params}: eps", values.pop("eps")), why=f"of {params}")
    if values:
        keys.refuse(params, f"AdamW here takes no {', '.join(values)}: remove them")
    else:
        keys.used(params)


_LR = "--optim.lr"


def course(keys: Keys, name: str, rise: str, steps: int, least: float = 0.0) -> None:
    """The learning rate's course from the key `name` of a scheduler. rise: the key of its warm-up in steps, or as a
    share of them. least: where the decay ends, as a share of the peak.
    """
    warmup = keys.number(rise, 0)
    if warmup < 0:
        raise MovaError(f"{keys.source}: {rise} must be at least 0, got {warmup:g}")
    told = keys.options.get("--steps") or ""
    steps = int(told) if told.isdigit() else steps
    kind = str(keys.values.get(name) or "constant")
    rising = ceil(warmup * steps) if 0 < warmup < 1 else int(warmup)
    if kind in ("constant", "constant_with_warmup"):
        keys.set("optim.decay_start", 1.0, name, why="a constant rate")
        keys.set("optim.warmup", 0 if kind == "constant" else rising, rise)
    elif kind in ("cosine", "cosine_with_min_lr"):
        keys.set("optim.decay_start", min(1.0, rising / steps) if steps else 0.0, name, why="cosine decay")
        keys.set("optim.final_lr", least)
        keys.set("optim.warmup", rising, rise)
    else:
        advice = "rates are constant or fall by a cosine here: use one of them, or give --optim.decay-start"
        keys.refuse(name, advice, "--optim.decay-start")


def batches(keys: Keys, batch: int, accumulation: int, *names: str) -> None:
    """Clips of a micro-batch and of a step."""
    keys.set("loader.batch", batch, *names)
    keys.set("global_batch_size", batch * accumulation, why=f"of {batch} clips at a time, {accumulation} times")


def precision(keys: Keys, name: str, words: Mapping[str, str]) -> None:
    """What is computed in, from a key's word."""
    word = str(keys.values.get(name) or next(iter(words)))
    if word in words:
        keys.set("dtype", words[word], name)
    else:
        keys.refuse(name, f"computed in {' or '.join(words)} here: use one of them", "--dtype")


def count_clips(folder: Path, suffix: str = ".txt") -> int:
    """Clips of a folder: lines of its metadata.jsonl, else files with a caption beside them. MovaError if none."""
    listed = folder / _METADATA
    if listed.is_file():
        found = sum(1 for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
    elif folder.is_dir():
        found = sum(1 for path in folder.iterdir() if path.suffix != suffix and path.with_suffix(suffix).is_file())
    else:
        raise MovaError(
            f"{folder}: no such folder, whose clips epochs are counted in: give --data, or steps in place of epochs"
        )
    if not found:
        raise MovaError(f"{folder}: has no clips to count epochs in: give steps in place of epochs")
    return found


def one_of(keys: Keys, key: str, value: Any, name: str) -> dict[str, Any]:
    """The only one of several parts, such as data sets, in the value of `key`; MovaError for others, {} where there is
    none.
    """
    found = listing(keys.source, key, value)
    if len(found) > 1:
        raise MovaError(
            f"{keys.source}: {counted(len(found), name)}, and a run takes one folder of clips: put them into one, or "
            "train on one after the other with --lora.init"
        )
    return mapping(keys.source, key, found[0]) if found else {}


# From a file and the options of the command line, each with the word after it.
Translator = Callable[[Path, Mapping[str, str | None]], Translation]


def translate_one(
    translators: Mapping[str, Translator], files: Mapping[str, str], options: Mapping[str, str | None]
) -> Translation | None:
    """The translation of the one file that `files` has by its option. None: there is none.

    Raises MovaError for several files, and as the translator does.
    """
    if len(files) > 1:
        raise MovaError(f"{' and '.join(files)}: give one of them")
    for flag, path in files.items():
        return replace(translators[flag](Path(path), options), file=path)
    return None


@contextmanager
def errors_of(translated: Translation | None) -> Generator[None]:
    """Within, a MovaError about a setting tells the file and key that it follows from."""
    try:
        yield
    except MovaError as error:
        keys = "" if translated is None else translated.keys_in(str(error))
        if translated is None or not keys:
            raise
        raise MovaError(f"{error} ({translated.file}: {keys})") from error
