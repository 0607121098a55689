"""The report of a card, in Markdown and HTML: what was measured beside the planner's prediction, goals, failures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mova_engine.bench.card.card_goals import GOAL_SUITES, GOALS
from mova_engine.bench.card.card_suites import PART_NAMES, CardSuite
from mova_engine.bench.card.part_files import PartFiles
from mova_engine.files.atomic import write_atomic
from mova_engine.predict.hardware import get_hardware
from mova_engine.web.page_text import text
from mova_engine.web.report_page import document

# Parts whose rows are steps or layers of one.
_STEPS = ("block", "bridge", "audio-block", "stack", "denoise", "lora", "streaming")
_NONE = "-"
Table = tuple[str, Sequence[str], list[list[str]]]


def write_card_report(files: PartFiles, suite: CardSuite) -> Path:
    """Write report.md and report.html into the folder of the result files; returns the former's path."""
    contents = {part: content for part in PART_NAMES if (content := files.read(part)) is not None}
    units = {part: content["units"] for part, content in contents.items()}
    title = f"Suite {suite.name}: {get_hardware(suite.hardware).title}"
    lines, tables = _circumstances(files, contents), _tables(suite, units, files.mark is not None)
    page = files.folder / "report.md"
    write_atomic(page, _markdown(title, lines, tables).encode())
    write_atomic(page.with_suffix(".html"), _html(title, lines, tables).encode())
    return page


def _circumstances(files: PartFiles, contents: dict[str, dict[str, Any]]) -> list[str]:
    """Where, when and by what it was measured."""
    lines = [f"**{files.mark}**"] if files.mark else []
    for name, label in (("device_name", "device"), ("torch", "torch"), ("triton", "triton"), ("platform", "platform")):
        lines.append(f"{label}: {_listed(content['circumstances'].get(name) for content in contents.values())}")
    entries = [entry for content in contents.values() for entry in content["units"].values()]
    lines.append(f"commit: {_listed(entry.get('commit') for entry in entries)}")
    lines.append(f"dates: {_listed(content['circumstances']['date'][:10] for content in contents.values())}")
    lines.append(
        "Predicted figures are those of the planner's cost model for this card. Step times are medians with their 95% "
        "bootstrap interval. MFU counts model FLOPs (backward of a product: gradients of inputs and of trained "
        "weights; of attention twice the forward), HFU what is executed: recomputation, and 2.5 times the forward of "
        "attention."
    )
    return lines


def _listed(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or _NONE


def _tables(suite: CardSuite, units: dict[str, dict[str, Any]], rehearsed: bool) -> list[Table]:
    rows = {part: [row for entry in found.values() for row in entry.get("rows", [])] for part, found in units.items()}
    steps = [row for part in _STEPS for row in rows.get(part, [])]
    tables = [
        _correct(rows),
        _steps(steps, rehearsed),
        _streams([row for row in steps if "copies" in row]),
        _goals(suite, rows, rehearsed),
        _operators([*rows.get("operators", []), *rows.get("fp8", [])], rehearsed),
        _choices(rows.get("choice", [])),
        _tiles(rows.get("tiles", [])),
        _absent(suite, units),
    ]
    return [table for table in tables if table[2]]


def _correct(rows: dict[str, list[dict[str, Any]]]) -> Table:
    found = []
    doctor = rows.get("doctor", [])
    if doctor:
        problems = [row["what"] for row in doctor if row["level"] == "problem"]
        found.append(["doctor", f"{len(doctor)} findings", "; ".join(problems) or "no problem"])
    for part in ("operator-tests", "parity"):
        judged = [row for row in rows.get(part, []) if "passed" in row]
        if judged:
            missed = [f"{_what(row)}: {row.get('failed') or row['missed']}" for row in judged if not row["passed"]]
            worst = max(row.get("worst_share", 0.0) for row in judged)
            compared = sum(row.get("compared", 0) for row in judged)
            what = f"{compared} tensors, the worst at {worst:.0%} of what is allowed"
            found.append([part, what, "; ".join(missed) or "all within bounds"])
    return "Does it compute the right numbers?", ("part", "compared", "verdict"), found


def _what(row: dict[str, Any]) -> str:
    """What a verdict is of."""
    names = ("case", "operator", "implementation", "dtype")
    return " ".join(str(row[name]) for name in names if name in row)


def _steps(rows: list[dict[str, Any]], rehearsed: bool) -> Table:
    head = (
        *("what", "size", "settings", "predicted", "measured", "measured / predicted", "MFU", "HFU"),
        *("peak memory", "predicted", "beside the baseline", "note"),
    )
    found = []
    for row in rows:
        predicted, (low, high) = row["predicted"], row["interval_s"]
        tokens = [f"{row[f'{one}_tokens']} {one}" for one in ("video", "audio") if f"{one}_tokens" in row]
        layers = [
            f"{row[name]} {word}" for name, word in (("blocks", "blocks"), ("video_layers", "layers")) if name in row
        ]
        settings = [
            f"{name} {value}" for name, value in row.get("settings", {}).items() if value not in ("none", "device")
        ]
        ratio = row.get("ratios", {}).get("baseline")
        notes = [row.get("note"), row["scaled"]["why"] if "scaled" in row else None]
        found.append(
            [
                row["job"],
                f"{row['model']}, " + ", ".join([*layers, *tokens]) + " tokens",
                ", ".join(settings) or _NONE,
                _seconds(predicted["seconds"]),
                f"{_seconds(row['median_s'])} [{_seconds(low)}, {_seconds(high)}]",
                "rehearsed" if rehearsed else f"{row['median_s'] / predicted['seconds']:.2f}",
                _share(row.get("mfu")),
                _share(row.get("hfu")),
                _gigabytes(row.get("peak_bytes")),
                _gigabytes(predicted.get("bytes")),
                f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times as fast" if ratio else _NONE,
                "; ".join(note for note in notes if note) or _NONE,
            ]
        )
    return "Steps and their parts", head, found


def _streams(rows: list[dict[str, Any]]) -> Table:
    head = ("what", "copies", "hidden", "exposed", "predicted hidden", "predicted exposed")
    found = []
    for row in rows:
        copies, predicted = row["copies"], row["predicted"]
        figures = [copies["copies_s"], copies["hidden_s"], copies["exposed_s"]]
        figures += [predicted["hidden"].get("offload", 0.0), predicted["parts"]["offload"]]
        found.append([row["job"], *map(_seconds, figures)])
    return "Weights from the host: seconds of copies in one step", head, found


def _goals(suite: CardSuite, rows: dict[str, list[dict[str, Any]]], rehearsed: bool) -> Table:
    found = []
    for goal in GOALS if suite.name in GOAL_SUITES else ():
        value = None if rehearsed else goal.value(rows)
        verdict = "not measured" if value is None else "reached" if goal.reached(value) else "missed"
        bound = f"at {'least' if goal.at_least else 'most'} {goal.text(goal.bound)}"
        found.append([goal.about, bound, _NONE if value is None else goal.text(value), verdict])
    return "Goals of one H100 or H200", ("goal", "wanted", "measured", "verdict"), found


def _operators(rows: list[dict[str, Any]], rehearsed: bool) -> Table:
    head = ("operator", "shape", "implementation", "forward", "of copy or peak", "backward", "of copy or peak", "note")
    found = []
    for row in rows:
        cells = [row["operator"], row["case"], row.get("implementation", _NONE)]
        for name in ("forward", "backward"):
            share = row.get(f"{name}_of_copy_bandwidth", row.get(f"{name}_of_peak"))
            cells += [_seconds(row.get(f"{name}_s")), _share(None if rehearsed else share)]
        found.append([*cells, row.get("failed") or row.get("left_out") or _NONE])
    return "Operators at MOVA's shapes", head, found


def _choices(rows: list[dict[str, Any]]) -> Table:
    head = ("operator", "for", "dtype", "chosen", "declared", "times")
    found = []
    for row in rows:
        times = sorted(row["seconds"].items(), key=lambda item: item[1])
        cells = [row[name] for name in ("operator", "purpose", "dtype", "implementation", "declared")]
        found.append([*cells, ", ".join(f"{name} {_seconds(value)}" for name, value in times)])
    return "Implementations chosen", head, found


def _tiles(rows: list[dict[str, Any]]) -> Table:
    return "Tiles chosen", ("kernel", "table"), [[row["kernel"], row["table"]] for row in rows]


def _absent(suite: CardSuite, units: dict[str, dict[str, Any]]) -> Table:
    found = []
    for unit in suite.units():
        entry = units.get(unit.part, {}).get(unit.name)
        words = "not done yet" if entry is None else entry.get("failed") or entry.get("left_out")
        if words:
            kind = "missing" if entry is None else "failed" if "failed" in entry else "left out"
            found.append([unit.part, unit.name, kind, words])
    return "Failed, left out, missing", ("part", "unit", "", "reason"), found


def _seconds(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


def _gigabytes(value: float | None) -> str:
    return _NONE if value is None else f"{value / 1e9:.3g} GB"


def _markdown(title: str, lines: list[str], tables: list[Table]) -> str:
    parts = [f"# {title}\n", *(f"{line}\n" for line in lines)]
    for name, head, rows in tables:
        cells = [list(head), ["---"] * len(head), *([cell.replace("|", "/") for cell in row] for row in rows)]
        parts.append(f"## {name}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in cells))
    return "\n".join(parts)


def _html(title: str, lines: list[str], tables: list[Table]) -> str:
    parts = [f"<p>{text(line.strip('*'))}</p>" for line in lines]
    for name, head, rows in tables:
        body = ["<tr>" + "".join(f"<th>{text(cell)}" for cell in head)]
        body += ["<tr>" + "".join(f"<td>{text(cell)}" for cell in row) for row in rows]
        parts.append(f"<h2>{text(name)}</h2><table>" + "\n".join(body) + "</table>")
    return document(title, parts)
