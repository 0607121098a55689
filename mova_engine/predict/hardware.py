"""Descriptions of devices as data: `hardware.toml`, or a user's TOML, YAML or JSON file."""

import json
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from mova_engine.errors import MovaError, suggest
from mova_engine.ops.machine import Machine, assumed_machine
from mova_engine.ops.table import OPERATORS

LINK_KINDS = ("switch", "mesh")
# Share of the host bus's nominal rate that pinned copies reach (assumed).
_PINNED = 0.8
# Share of the host's memory that a run can fill; the rest is for the system and the process itself (assumed).
HOST_USABLE = 0.9
# Bytes/s at which files are read where an entry does not say it: one NVMe drive on PCIe 4 (assumed).
DISK = 6.0e9


@dataclass(frozen=True)
class Link:
    """The links between the devices of a node. kind "switch": `bandwidth` is that of a device, in bytes/s each way;
    "mesh": that of each pair of devices.
    """

    kind: str
    bandwidth: float
    devices: int

    def all_to_all(self, group: int) -> float:
        """Bytes/s that one of `group` devices can send when it talks to all others at once."""
        return self.bandwidth if self.kind == "switch" else self.bandwidth * max(group - 1, 1)


@dataclass(frozen=True)
class Achieved:
    """Rates that real kernels reach: gemm and conv as shares of the peak, bandwidth and link as shares of their nominal
    rates.

    kernels: measured shares of the peak (forward, backward) of attention implementations on this device, by name;
    others use the shares that they declare. attention: a factor on all of them.
    """

    gemm: float
    bandwidth: float
    link: float
    conv: float
    kernels: dict[str, tuple[float, float]]
    attention: float = 1.0


@dataclass(frozen=True)
class Hardware:
    """One device and how it is connected; the fields are explained at the head of hardware.toml. SI units."""

    name: str
    title: str
    machine: Machine
    memory: float
    usable: float
    peak: dict[str, float]
    bandwidth: float
    host_bandwidth: float | None
    link: Link
    network: float
    latency: float
    achieved: Achieved
    source: str
    names: tuple[str, ...] = ()
    host_memory: float | None = None
    disk_bandwidth: float = DISK

    @property
    def budget(self) -> float:
        """Bytes of device memory that a run may use."""
        return self.memory * self.usable

    @property
    def host_budget(self) -> float | None:
        """Bytes that the processes of one host may fill there; None: not limited. Of a host that is the device: its
        `budget`.
        """
        return None if self.host_memory is None else self.host_memory * HOST_USABLE

    def peak_flops(self, dtype: str) -> float:
        """Dense FLOP/s. Raises MovaError if the device has no peak for the dtype."""
        if dtype not in self.peak:
            raise MovaError(f"{self.name} has no {dtype} arithmetic; it has {', '.join(self.peak)}")
        return self.peak[dtype]

    @property
    def host_rate(self) -> float:
        """Bytes/s of pinned copies to or from the host. Raises MovaError if the device is the host."""
        if self.host_bandwidth is None:
            raise MovaError(f"{self.name} is the host itself: nothing can be offloaded to it")
        return self.host_bandwidth * _PINNED

    def with_limits(self, vram: float | None = None, ram: float | None = None, disk: float | None = None) -> "Hardware":
        """The same device with other bytes of its own memory and of its host's, and another rate of reading files.

        MovaError for memory of its own where the device is the host.
        """
        found = self
        if vram is not None:
            if self.host_bandwidth is None:
                raise MovaError(f"{self.name} has no memory of its own: limit the host's with --ram, leave --vram out")
            found = replace(found, memory=float(vram))
        if ram is not None:
            found = replace(found, host_memory=float(ram))
            found = replace(found, memory=float(ram)) if self.host_bandwidth is None else found
        return found if disk is None else replace(found, disk_bandwidth=float(disk))

    def with_achieved(self, **factors: float) -> "Hardware":
        """The same device with achieved rates multiplied: gemm, attention (both directions), bandwidth, link."""
        scaled = {name: getattr(self.achieved, name) * factor for name, factor in factors.items()}
        return replace(self, achieved=replace(self.achieved, **scaled))

    def with_packages(self, packages: Iterable[str]) -> "Hardware":
        """The same device with other packages installed, by their names in `mova ops --with`."""
        assumed = assumed_machine(self.machine.kind, None, packages)
        return replace(self, machine=replace(assumed, capability=self.machine.capability))


def hardware_names() -> tuple[str, ...]:
    """Names of the devices in `hardware.toml`."""
    return tuple(_entries())


def get_hardware(name: str) -> Hardware:
    """A device of `hardware.toml` by name, or the one of a TOML, YAML or JSON file. Raises MovaError for an unknown
    name and for a wrong field.
    """
    if name in _entries():
        return _hardware(name, _entries()[name], "hardware.toml")
    path = Path(name)
    if path.suffix not in (".toml", ".yaml", ".yml", ".json"):
        known = hardware_names()
        raise MovaError(
            f"unknown hardware '{name}'.{suggest(name, known)} Known: {', '.join(known)}, or a .toml, .yaml or .json "
            "file"
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = _parsed(text, path.suffix)
    except OSError as error:
        raise MovaError(f"hardware file {name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise MovaError(f"hardware file {name} is not valid: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or len(content) != 1 or not isinstance(next(iter(content.values())), dict):
        raise MovaError(f"hardware file {name} must hold one entry, NAME: {{fields}}, as hardware.toml does")
    (key, entry), *_ = content.items()
    return _hardware(str(key), entry, name)


def hardware_of(kind: str, name: str) -> tuple[Hardware, bool]:
    """The entry of a device by its kind and its own name, and whether it is this device's; where none is, the first of
    its kind, whose memory and speed are not this device's.
    """
    found = [get_hardware(entry) for entry in hardware_names()]
    alike = [one for one in found if one.machine.kind == kind]
    return next(((one, True) for one in alike if name in one.names), (alike[0], False))


@cache
def _entries() -> dict[str, Any]:
    return tomllib.loads(resources.files("mova_engine.predict").joinpath("hardware.toml").read_text(encoding="utf-8"))


def _parsed(text: str, suffix: str) -> Any:
    """What a file of a user's own says. Raises ValueError for text that is not in its format."""
    if suffix == ".json":
        return json.loads(text)
    if suffix == ".toml":
        return tomllib.loads(text)
    # Imported late: the entries that come along are read where PyYAML is not installed.
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _hardware(name: str, entry: dict[str, Any], where: str) -> Hardware:
    def present(mapping: dict[str, Any], field: str) -> Any:
        if field not in mapping:
            raise MovaError(f"{where}, {name}: {field} is missing")
        return mapping[field]

    def number(mapping: dict[str, Any], field: str) -> float:
        value = present(mapping, field)
        if isinstance(value, str):  # YAML reads 24.0e9, without a sign, as text
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise MovaError(f"{where}, {name}: {field} must be a positive number, got {value!r}")
        return float(value)

    def share(mapping: dict[str, Any], field: str) -> float:
        value = number(mapping, field)
        if value > 1:
            raise MovaError(f"{where}, {name}: {field} is a share and must lie in 0..1, got {value:g}")
        return value

    def mapping(outer: dict[str, Any], field: str) -> dict[str, Any]:
        value = present(outer, field)
        if not isinstance(value, dict) or not value:
            raise MovaError(f"{where}, {name}: {field} must be a mapping, got {value!r}")
        return value

    fields = set(Hardware.__dataclass_fields__) - {"name", "machine"} | {"operators"}
    for field in entry:
        if field not in fields:
            raise MovaError(f"{where}, {name}: unknown field '{field}'.{suggest(str(field), fields)}")
    names = entry.get("names", [])
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise MovaError(f"{where}, {name}: names must be a list of texts, got {names!r}")
    link, achieved, peak = mapping(entry, "link"), mapping(entry, "achieved"), mapping(entry, "peak")
    if link.get("kind") not in LINK_KINDS:
        raise MovaError(f"{where}, {name}: link.kind must be switch or mesh, got {link.get('kind')!r}")
    number(peak, "bf16")
    kernels = {}
    known = {entry.name for n in ("attention", "attention_lse") for entry in OPERATORS[n].implementations}
    for kernel, rates in mapping(achieved, "attention").items() if "attention" in achieved else ():
        if kernel not in known:
            raise MovaError(
                f"{where}, {name}: attention has no implementation '{kernel}'.{suggest(str(kernel), known)}"
            )
        if not isinstance(rates, list) or len(rates) != 2:
            raise MovaError(f"{where}, {name}: attention.{kernel} must be [forward, backward] FLOP/s, got {rates!r}")
        pair: dict[str, Any] = dict(zip(("forward", "backward"), rates, strict=True))
        kernels[kernel] = tuple(number(pair, direction) / number(peak, "bf16") for direction in pair)
    shares = {field: share(achieved, field) for field in ("gemm", "bandwidth", "link", "conv")}
    return Hardware(
        name=name,
        title=str(entry.get("title", name)),
        machine=_machine(mapping(entry, "operators"), f"{where}, {name}"),
        memory=number(entry, "memory"),
        usable=share(entry, "usable"),
        peak={str(dtype): number(peak, dtype) for dtype in peak},
        bandwidth=number(entry, "bandwidth"),
        host_bandwidth=number(entry, "host_bandwidth") if "host_bandwidth" in entry else None,
        link=Link(link["kind"], number(link, "bandwidth"), int(number(link, "devices"))),
        network=number(entry, "network"),
        latency=number(entry, "latency"),
        achieved=Achieved(kernels=kernels, **shares),
        source=str(entry.get("source", "not given")),
        names=tuple(names),
        host_memory=number(entry, "host_memory") if "host_memory" in entry else None,
        disk_bandwidth=number(entry, "disk_bandwidth") if "disk_bandwidth" in entry else DISK,
    )


def _machine(entry: dict[str, Any], where: str) -> Machine:
    """The machine that a device's operators are chosen for."""
    fields = ("device", "assume", "with")
    for field in entry:
        if field not in fields:
            raise MovaError(f"{where}: operators: unknown field '{field}'.{suggest(str(field), fields)}")
    packages = entry.get("with", [])
    if not isinstance(packages, list):
        raise MovaError(f"{where}: operators.with must be a list of packages, got {packages!r}")
    capability = entry.get("assume")
    try:
        return assumed_machine(str(entry.get("device")), None if capability is None else str(capability), packages)
    except MovaError as error:
        raise MovaError(f"{where}: operators: {error}") from error
