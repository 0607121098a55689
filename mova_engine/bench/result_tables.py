"""`report`: the page of tables (and a plot of the ratios), made from result files alone."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mova_engine.bench.plot import ratios_svg
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic
from mova_engine.files.results import read_result

RESULTS = Path("benchmarks/results")
Result = dict[str, Any]
_HEAD = """# Benchmarks

Made by `mova bench report --out docs/benchmarks.md` from the files in `benchmarks/results`, and from
nothing else; do not edit it by hand. What has no file there has not been measured. One command measures a card:
[card.md](card.md).

Every figure beside a baseline, and every operator's, stands behind a check in the same run: outputs and gradients of
each side against the references in float64, then the sides against each other at the measured size. A side that is
wrong gets no figure. *Baseline* is the published model's formulation (`benchmarks/reference_formulation.py`) with the
same matrix products, run in turns with the engine: times are medians; *times as fast* is the median over pairs of runs,
with its 95% bootstrap interval. On a CPU the baseline has a process of its own, with the memory allocator as the system
has it, while the engine lets freed memory stay with its process; in *one process* both had that. *Peak memory* is of
living tensors, above weights and gradients. MFU counts model FLOPs, HFU what recomputation adds. *Of copy* is the bytes
that the work must move at the least, per second, as a share of the copy bandwidth measured in the same run with a
buffer larger than any cache, which work that fits one may exceed.
"""


def write_report(files: Sequence[Path], out: Path | None = None) -> int:
    """Make the page of result files (none given: those of the checkout); print it, or write it and its plot to `out`.
    Returns 0. Raises MovaError if there are no result files, or if `out` is a file that this command did not write.
    """
    files = files or sorted(RESULTS.glob("*.json"))
    if not files:
        raise MovaError(f"no result file: name some, or run from a checkout that has {RESULTS}/*.json")
    results = {path.name: read_result(path) for path in files}
    plot = ratios_svg(_ratios(results))
    image = out.with_suffix(".svg").name if out and plot else None
    text = page(results, image)
    if out is None:
        print(text, end="")
        return 0
    pages = {out: text}
    if image and plot:
        pages[out.with_name(image)] = plot
    for path in pages:
        if os.path.lexists(path) and not _is_own(path):
            raise MovaError(f"{path} was not written by this command, or was changed since: give another --out")
    for path, content in pages.items():
        write_atomic(path, signed(content).encode())
    print(f"written to {out}")
    return 0


def signed(content: str) -> str:
    """`content` with a comment as its last line: a digest that shows that this command wrote it and nobody changed
    it.
    """
    return f"{content}<!-- mova_engine.bench report {hashlib.sha256(content.encode()).hexdigest()} -->\n"


def _is_own(path: Path) -> bool:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return content == signed("".join(content.splitlines(keepends=True)[:-1]))


def page(results: dict[str, Result], image: str | None = None) -> str:
    """The page of `results`, {file name: content}; `image`: the plot's file name. The same results, the same text."""
    parts = [_HEAD]
    if image:
        parts.append(f"![How many times as fast as the baseline]({image})\n")
    for title, make in _SECTIONS:
        tables = make(results)
        if tables:
            parts.append(f"## {title}\n\n{tables}")
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _job_rows(results: dict[str, Result]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, row) for name, r in sorted(results.items()) for row in r.get("rows", []) if "sides" in row]


def _ratios(results: dict[str, Result]) -> list[tuple[str, dict[str, float]]]:
    """(label, ratio) of every row that was measured beside the baseline."""
    return [
        (f"{row['job']}, {_shape(row)}, {_dtypes(row)}", row["ratios"]["baseline"])
        for _, row in _job_rows(results)
        if "baseline" in row["ratios"]
    ]


def _shape(row: dict[str, Any]) -> str:
    if "rows" in row:
        return f"{row['rows']} x {row['width']}"
    tokens = [f"{row[f'{t}_tokens']} x {row[f'{t}_dim']}" for t in ("video", "audio") if f"{t}_tokens" in row]
    options = [f"{row['blocks']} blocks"] if "blocks" in row else []
    options += [f"checkpointing {row['checkpointing']}"] if row.get("checkpointing", "none") != "none" else []
    options += [f"LoRA rank {row['lora_rank']}"] if row.get("lora_rank") else []
    return ", ".join([row["model"], " and ".join(tokens), *options])


def _dtypes(row: dict[str, Any]) -> str:
    sides = {name: side["dtype"] for name, side in row["sides"].items()}
    other = sides.get("baseline", sides["engine"])
    return sides["engine"] if other == sides["engine"] else f"{sides['engine']}, baseline {other}"


def _jobs(results: dict[str, Result]) -> str:
    head = ("job", "shape", "dtype", "engine", "baseline", "times as fast", "pairs", "peak memory", "rate", "file")
    rows = []
    for name, row in _job_rows(results):
        engine, other = row["sides"]["engine"], row["sides"].get("baseline")
        ratio = row["ratios"].get("baseline")
        rows.append(
            (
                row["job"],
                _shape(row) + (f" (scaled: {row['scaled']['why']})" if "scaled" in row else ""),
                _dtypes(row),
                _seconds(engine["median_s"]),
                _baseline(other, results[name]) if other else "-",
                f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "-",
                str(ratio["pairs"]) if ratio else "-",
                _memory(engine, other),
                _rate(engine),
                f"`{name}`",
            )
        )
        if "compiled" in row["sides"]:
            rows.append(_compiled(row, name))
    return _table(head, rows) if rows else ""


def _baseline(side: dict[str, Any], result: Result) -> str:
    apart = side.get("own_process") or result["circumstances"]["device"] != "cpu"
    return _seconds(side["median_s"]) + ("" if apart else " (one process)")


def _compiled(row: dict[str, Any], name: str) -> tuple[str, ...]:
    """torch.compile of the references, as a line of its own below the engine's."""
    side, ratio = row["sides"]["compiled"], row["ratios"]["compiled"]
    text = f"engine {ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times as fast"
    seconds, pairs = _seconds(side["median_s"]), str(ratio["pairs"])
    return (
        row["job"],
        "torch.compile of the references",
        side["dtype"],
        "-",
        seconds,
        text,
        pairs,
        "-",
        _rate(side),
        f"`{name}`",
    )


def _seconds(s: float) -> str:
    return f"{s:.3f} s" if s >= 1 else f"{s * 1e3:.2f} ms"


def _memory(engine: dict[str, Any], other: dict[str, Any] | None) -> str:
    ours = engine["peak_live_bytes"]
    if not other or not other["peak_live_bytes"]:
        return f"{ours / 1e6:.1f} MB"
    return f"{ours / 1e6:.1f} of {other['peak_live_bytes'] / 1e6:.1f} MB ({ours / other['peak_live_bytes']:.0%})"


def _rate(side: dict[str, Any]) -> str:
    if "bytes_per_s" in side:
        return f"{side['bytes_per_s'] / 1e9:.1f} GB/s, {side['of_copy_bandwidth']:.0%} of copy"
    if side.get("mfu"):
        return f"{side['flop_per_s'] / 1e12:.1f} TFLOP/s, MFU {side['mfu']:.1%}, HFU {side['hfu']:.1%}"
    return f"{side['flop_per_s'] / 1e9:.0f} GFLOP/s"


def _operators(results: dict[str, Result]) -> str:
    parts = []
    for name, result in sorted(results.items()):
        if result["kind"] != "operators":
            continue
        head = ("operator", "case", "implementation", "forward", "of copy", "forward + backward", "of copy", "speed-up")
        rows = [
            (
                row["operator"],
                row["case"],
                row["implementation"],
                _seconds(row["forward_s"]),
                _share(row.get("forward_of_copy_bandwidth")),
                _seconds(row["forward_backward_s"]) if "forward_backward_s" in row else "-",
                _share(row.get("forward_backward_of_copy_bandwidth")),
                f"{row.get('forward_backward_speedup', row['forward_speedup']):.2f}",
            )
            for row in result["rows"]
        ]
        parts.append(
            f"`{name}`, {result['dtype']}; speed-up over the reference implementation.\n\n{_table(head, rows)}"
        )
    return "\n".join(parts)


def _share(x: float | None) -> str:
    return "-" if x is None else f"{x:.0%}"


def _alone(results: dict[str, Result]) -> str:
    """Steps measured without a baseline beside them, in the form that such files had at first."""
    rows = [
        (row["model"], row["dtype"], str(row["batch"]), _seconds(row["step_s"]), str(row["runs"]), f"`{name}`")
        for name, result in sorted(results.items())
        for row in result.get("rows", [])
        if "step_s" in row
    ]
    return _table(("model", "dtype", "batch", "forward + backward", "runs", "file"), rows) if rows else ""


def _breakdowns(results: dict[str, Result]) -> str:
    """Where the time of a step goes, and how fast its largest parts are beside the machine's own measure."""
    rows = [
        (
            row["model"],
            row["dtype"],
            part,
            _share(share),
            _gflops(rate := row["breakdown_flop_per_s"].get(part)),
            _share(rate and rate / row["matrix_flop_per_s"]),
            f"`{name}`",
        )
        for name, row in _job_rows(results)
        for part, share in row.get("breakdown", {}).items()
        if "matrix_flop_per_s" in row
    ]
    note = (
        "Shares of the operations' own time, by torch's profiler. *Of peak*: of the rate of a product of two matrices "
        "of 2048 x 2048 in the same run.\n\n"
    )
    head = ("model", "dtype", "part", "share of the time", "rate", "of peak", "file")
    return note + _table(head, rows) if rows else ""


def _gflops(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e9:.0f} GFLOP/s"


def _encoding(results: dict[str, Result]) -> str:
    """A step of processes that share a clip, by who encodes."""
    head = ("who encodes", "processes", "step", "encodes per clip", "rounds are times as fast", "runs", "file")
    who = {
        "each": "every process every clip",
        "one": "one process, the others wait",
        "rounds": "each another clip, in rounds",
        "nobody": "nobody: latents in memory",
    }
    rows = [
        (
            f"{who[scheme]}; {row['model']}, {row['video_tokens']} video tokens, codec width {row['codec_width']}",
            str(row["processes"]),
            _seconds(found["median_s"]),
            f"{found['encodes_per_clip']:g}",
            _interval(row["ratios"][scheme]) if scheme in row["ratios"] else "-",
            str(found["runs"]),
            f"`{name}`",
        )
        for name, result in sorted(results.items())
        for row in result.get("rows", [])
        for scheme, found in row.get("schemes", {}).items()
    ]
    note = "Real optimizer steps of gloo processes on one machine; see `mova_engine/bench/encoding.py`.\n\n"
    return note + _table(head, rows) if rows else ""


def _sync(results: dict[str, Result]) -> str:
    """How well clicks and bounces of generated clips agree."""
    rows = []
    for name, result in sorted(results.items()):
        if result["kind"] != "bounce-sync":
            continue
        report = result["report"]
        for whose in ("own_sound", "shuffled_sound"):
            found = report[whose]
            shares = [_interval(found[within]["f1"]) for within in ("within_84_ms", "within_167_ms")]
            error = _interval(found["median_error_ms"], digits=0)
            rows.append((f"`{name}`", whose.replace("_", " "), str(report["clips"]), *shares, error))
    head = ("file", "sound", "clips", "F1 within 84 ms", "F1 within 167 ms", "median error, ms")
    return _table(head, rows) if rows else ""


def _laptop(results: dict[str, Result]) -> str:
    """How long `make nano` takes from a clone, by part, and how well its clips' clicks meet their bounces."""
    rows = [
        (
            run["commit"],
            str(run["seed"]),
            f"{run['seconds']:.0f} s",
            ", ".join(f"{part} {seconds:.0f}" for part, seconds in run["parts"].items()),
            f"{run['cpu_seconds']:.0f} s",
            _interval(run["sync"]["own_sound"]["within_84_ms"]["f1"]),
            f"`{name}`",
        )
        for name, result in sorted(results.items())
        if result["kind"] == "laptop"
        for run in result["runs"]
    ]
    head = ("commit", "seed", "in all", "parts, s", "CPU time", "F1 within 84 ms", "file")
    return _table(head, rows) if rows else ""


def _interval(figure: dict[str, float], digits: int = 2) -> str:
    return f"{figure['value']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def _files(results: dict[str, Result]) -> str:
    head = ("file", "kind", "device", "torch", "triton", "load before, after", "commit", "date")
    rows = []
    for name, result in sorted(results.items()):
        c = result["circumstances"]
        load = f"{_or_dash(c.get('load_average_at_start'))}, {c['load_average']}" + (" (busy)" if is_busy(c) else "")
        texts = (c["device_name"], c["torch"], _or_dash(c.get("triton")), load, _or_dash(c["commit"]), c["date"][:10])
        rows.append((f"`{name}`", result["kind"], *texts))
    note = "*Busy*: more ran on the machine than the measurement's own threads; its times may be too long.\n\n"
    return note + _table(head, rows)


def _or_dash(x: Any) -> str:
    return "-" if x is None else str(x)


def is_busy(circumstances: dict[str, Any]) -> bool:
    """Whether others used the machine: load before the run, or above its own threads after it."""
    before, after = circumstances.get("load_average_at_start") or 0.0, circumstances["load_average"]
    own = circumstances["threads"] * circumstances.get("processes", 1)
    return before > own + 0.5 or after > own + 0.5


_SECTIONS: tuple[tuple[str, Callable[[dict[str, Result]], str]], ...] = (
    ("The engine beside the baseline", _jobs),
    ("Operators", _operators),
    ("Training steps measured alone", _alone),
    ("Where a step's time goes", _breakdowns),
    ("Encoding by processes that share a clip", _encoding),
    ("Sound and picture of generated clips", _sync),
    ("`make nano` from a clone", _laptop),
    ("Files", _files),
)
