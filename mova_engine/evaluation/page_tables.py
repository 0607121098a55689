"""Tables of an evaluation's page beside that of the clips' numbers: the set, what it took, by what it was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from mova_engine.evaluation.evaluation_result import ScoreSeconds
from mova_engine.evaluation.set_summary import SetResult
from mova_engine.scores.weights_manifest import WEIGHTS
from mova_engine.web.page_text import breakable, number, text
from mova_engine.web.report_page import titled_table


def sets_table(sets: Sequence[SetResult]) -> str:
    """Numbers of the whole set; nothing where no score declares one."""
    if not sets:
        return ""
    numbers = "<th class=n>clips<th class=n>value<th class=n>95 % interval"
    rows = [f"<tr><th>number of the set<th>what it says{numbers}<th>better<th>note"]
    for each in sets:
        interval = "" if each.interval is None else " to ".join(map(number, each.interval))
        coverage = "n" if each.clips == each.asked else "n few"
        against = "" if each.reference is None else f" against {each.reference}"
        value = f"{number(each.value)} {text(each.unit)}" if each.value is not None else "none"
        rows.append(
            f"<tr><td>{breakable(each.name)}<td>{text(each.about)}<td class='{coverage}'>{each.clips} of {each.asked}"
            f"{against}<td class=n>{value}<td class=n>{interval}<td>{text(each.better)}"
            f"<td class=few>{text(each.reason or each.note)}"
        )
    return titled_table("The set", rows)


def seconds_table(seconds: Mapping[str, ScoreSeconds]) -> str:
    """What decoding and each score took."""
    rows = ["<tr><th>what<th class=n>clips<th class=n>seconds a clip<th class=n>seconds in all"]
    for name, taken in seconds.items():
        cells = f"<td class=n>{taken.clips}<td class=n>{taken.mean:.3f}<td class=n>{taken.total:.1f}"
        rows.append(f"<tr><td>{text(name)}{cells}")
    return titled_table("Seconds by score", rows)


def conditions_table(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """By which version, convention and weights each score was measured."""
    rows = ["<tr><th>score<th>version<th>convention<th>weights, recogniser"]
    for name, about in facts.items():
        weights = "<br>".join(_weights(each, digest) for each, digest in about["weights"].items())
        weights += text(about.get("recogniser", ""))
        rows.append(f"<tr><td>{text(name)}<td>{about['version']}<td>{text(about['convention'])}<td>{weights}")
    return titled_table("How it was measured", rows)


def _weights(name: str, digest: str) -> str:
    entry = WEIGHTS[name]
    told = f"{text(name)} <code>{digest[:12]}</code> <span class=quiet>{text(entry.licence)}</span>"
    if not entry.sha256:
        return f"{told} <span class=quiet>no hash of the published file is on record</span>"
    return told if entry.published(digest) else f"{told} <span class=few>not the published file</span>"


def skipped_list(skipped: Mapping[str, str]) -> str:
    """Scores that were not measured."""
    if not skipped:
        return ""
    lines = "".join(f"<li>{text(name)}: {text(reason)}" for name, reason in skipped.items())
    return f"<p>Not measured:</p><ul>{lines}</ul>"
