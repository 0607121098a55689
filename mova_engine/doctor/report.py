"""A report as text for people and bug trackers, or as JSON; without paths, host names and addresses of the user's."""

import json
import os
import re
import socket
import sys
from pathlib import Path

from mova_engine.backend.health import NOTE, OK, PROBLEM
from mova_engine.doctor.examination import Report

_COLOURS = {OK: "32", NOTE: "33", PROBLEM: "31"}
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_HOMES = re.compile(r"(?:/root|/(?:home|Users)/[^/\s:'\")]+)(?=[/\s:'\")]|$)")


def redact(text: str) -> str:
    """`text` without what tells who and where the user is."""
    places = {str(Path.cwd()): ".", sys.prefix: "<python>", sys.base_prefix: "<python>", str(Path.home()): "~"}
    for place, short in sorted(places.items(), key=lambda item: -len(item[0])):
        if len(place) > 1:
            text = re.sub(re.escape(place) + r"(?![\w.-])", short, text)
    text = _ADDRESS.sub("<address>", _HOMES.sub("~", text))
    host = socket.gethostname()
    if len(host) > 3 and host != "localhost":
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "<host>", text)
    return text


def _verdict(report: Report) -> str:
    counts = ", ".join(f"{report.count(level)} {level}" for level in (OK, NOTE, PROBLEM))
    return f"device {report.device}: {'usable' if report.usable else 'NOT usable'} ({counts})"


def as_text(report: Report, colours: bool = False) -> str:
    """A line for each finding, its remedy below it, the verdict last."""
    lines = []
    for check, finding in report.findings:
        mark = f"{finding.level:8}"
        if colours:
            mark = f"\x1b[{_COLOURS[finding.level]}m{mark}\x1b[0m"
        lines.append(f"{mark}{check + ':':22}{finding.what}")
        if finding.do:
            lines.append(f"{'':8}{'':20}> {finding.do}")
    return redact("\n".join([*lines, _verdict(report)]))


def as_json(report: Report) -> str:
    """{"device", "usable", "findings": [{"check", "level", "what", "do"}]}."""
    findings = [{"check": check, **finding.__dict__} for check, finding in report.findings]
    content = {"device": report.device, "usable": report.usable, "findings": findings}
    return redact(json.dumps(content, indent=1, ensure_ascii=False))


def wants_colours() -> bool:
    """On a terminal whose user did not ask for none (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
