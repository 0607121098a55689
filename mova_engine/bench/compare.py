"""`compare`: prints two result files side by side, and marks differences that make them incomparable."""

from pathlib import Path
from typing import Any

from mova_engine.bench.result_tables import is_busy
from mova_engine.errors import MovaError
from mova_engine.files.results import read_result

# Facts of a row that make it the same measurement in both files.
_IDENTITY = (
    *("job", "operator", "case", "implementation", "model", "rows", "width", "blocks", "batch", "checkpointing"),
    *("lora_rank", "video_tokens", "audio_tokens", "dtype"),
)
# Circumstances that must be the same for a ratio to mean what it seems to.
_SAME = ("device", "device_name", "threads", "native_kernels", "torch", "triton", "python", "environment")


def print_comparison(first: Path, second: Path) -> int:
    """Print the ratios of all rows that both files have, and every difference in circumstances."""
    before, after = read_result(first), read_result(second)
    for line in differences(before, after):
        print(f"! {line}")
    for line in ratios(before, after):
        print(line)
    return 0


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Describe the differences in device and versions, and name files that were measured on a busy machine."""
    old, new = before["circumstances"], after["circumstances"]
    found = [
        f"{name}: {old.get(name)} before, {new.get(name)} after" for name in _SAME if old.get(name) != new.get(name)
    ]
    found += [
        f"the machine was busy {when} (load average {c['load_average']}, {c['threads']} threads)"
        for when, c in (("before", old), ("after", new))
        if is_busy(c)
    ]
    found += [
        f"{when} was measured with uncommitted changes (commit {c['commit']})"
        for when, c in (("before", old), ("after", new))
        if "+" in (c["commit"] or "")
    ]
    return found


def ratios(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each figure of each row that both files have. Raises MovaError if they have none in common."""
    if before["kind"] != after["kind"]:
        raise MovaError(f"cannot compare a file of kind '{before['kind']}' with one of kind '{after['kind']}'")
    old, new = ({_identity(row): _figures(row) for row in result.get("rows", [])} for result in (before, after))
    common = [key for key in old if key in new]
    if not common:
        raise MovaError("the two files have no row in common: they measure other jobs, shapes or dtypes")
    lines = []
    for key in common:
        label = " ".join(str(value) for _, value in key)
        for name in old[key].keys() & new[key].keys():
            a, b = old[key][name], new[key][name]
            lines.append(f"{label:60} {name:28} {a:12.6g} -> {b:12.6g}   {a / b:.3f}x")
    return sorted(lines)


def _identity(row: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, row[name]) for name in _IDENTITY if row.get(name) is not None)


def _figures(row: dict[str, Any]) -> dict[str, float]:
    """Seconds and peak bytes of a row, for each candidate if it has several. Smaller is better for all figures."""
    sides = row.get("sides", {"": row})
    found = {
        f"{side} {name}".strip(): figure
        for side, figures in sides.items()
        for name, figure in figures.items()
        if name in ("median_s", "forward_s", "forward_backward_s", "step_s", "peak_live_bytes")
    }
    return {name: figure for name, figure in found.items() if figure}
