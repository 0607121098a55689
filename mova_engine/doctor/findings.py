"""A report as text for people and bug trackers, or as JSON; without paths, host names and addresses of the user's."""

import json
import os
import sys

from mova_engine.backend.health import NOTE, OK, PROBLEM, Finding
from mova_engine.doctor.examination import Report
from mova_engine.errors import redact

_COLOURS = {OK: "32", NOTE: "33", PROBLEM: "31"}


def verdict(report: Report) -> str:
    """The last line of a report."""
    counts = ", ".join(f"{report.count(level)} {level}" for level in (OK, NOTE, PROBLEM))
    return f"device {report.device}: {'usable' if report.usable else 'NOT usable'} ({counts})"


def finding_text(check: str, finding: Finding, colours: bool = False) -> str:
    """The line of a finding, its remedy below it."""
    mark = f"{finding.level:8}"
    if colours:
        mark = f"\x1b[{_COLOURS[finding.level]}m{mark}\x1b[0m"
    lines = [f"{mark}{check + ':':22}{finding.what}"]
    if finding.do:
        lines.append(f"{'':8}{'':20}> {finding.do}")
    return redact("\n".join(lines))


def as_text(report: Report, colours: bool = False) -> str:
    """`finding_text` of each finding, the verdict last."""
    return "\n".join([*(finding_text(*found, colours) for found in report.findings), verdict(report)])


def as_json(report: Report) -> str:
    """{"device", "usable", "findings": [{"check", "level", "what", "do"}]}."""
    findings = [{"check": check, **finding.__dict__} for check, finding in report.findings]
    content = {"device": report.device, "usable": report.usable, "findings": findings}
    return redact(json.dumps(content, indent=1, ensure_ascii=False))


def wants_colours() -> bool:
    """On a terminal whose user did not ask for none (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
