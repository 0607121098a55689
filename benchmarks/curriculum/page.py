"""The page of a result: one HTML file without links to others, which opens without a server."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.curriculum.stages import SAMPLED, sampled_folder
from mova_engine.web.page_text import text
from mova_engine.web.report_page import document, titled_table

STYLE = """
video { width: 96px; image-rendering: pixelated; background: #eee } .clips { display: flex; gap: .5em; flex-wrap: wrap }
svg { max-width: 100% } svg rect.beside { fill: #aab3c0 } svg line { stroke-dasharray: none; stroke-width: 2 }
"""
# What each sampled model is, as the page calls it.
NAMES = {
    "tower": "stage 1: audio tower alone",
    "phase1": "phase 1",
    "phase2": "phase 2",
    "phase2-large": "phase 2, sampled at 64x64",
    "phase3": "phase 3 (64x64)",
    "without-tower": "without stage 1",
    "without-phase1": "without phase 1",
    "unfiltered-phase2": "unfiltered, after phase 2",
    "unfiltered": "unfiltered, after phase 3",
    "without-size-step": "without the size step, sampled at 64x64",
    "without-size-step-small": "without the size step, at its own 48x48",
    "codec": "true clips, sound through the codec",
}
MAIN = ("tower", "phase1", "phase2", "phase2-large", "phase3")
CLIPS_SHOWN = 6
# What MOVA's own training has, by recipe, where it differs (joint-phase1 to joint-phase3).
PAPER = {
    "size": "640x352, 1280x720 in phase 3",
    "batch": "128, 64 in phase 3",
    "lr": "1e-05",
    "bridge_lr": "2e-05",
    "video_shift": "5",
    "audio_shift": "1, then 5 (stage 1: not published)",
    "text_dropout": "0.5, then 0.2 (stage 1: not published)",
    "audio_weight": "0.2",
}


def page_of(result: Mapping[str, Any], work: Path) -> str:
    """The page. work: the folder with the samples, of which some are put into it."""
    about = result["circumstances"]
    trial = "" if result["steps_scale"] == 1 else f"<p><b>A trial with {result['steps_scale']:g} of the steps.</b>"
    parts = [
        "<p>Raw films of bouncing balls, curated for each phase; the audio tower alone (stage 1), then the joint "
        "phases 1 to 3, as MOVA was trained (arXiv 2602.08794), at the size of a laptop. Each bounce should click, and "
        "only the exchange between picture and sound can tell when.",
        trial,
        _brings(result),
        _figures(result["figures"]),
        _chart(result["figures"]),
        _curated(result["curated"]),
        _settings(result),
        _samples(work),
        f"<h2>How it was made</h2><p>{text(about['device_name'])}, {about['processes']} jobs at once; mova_engine "
        f"{text(about['mova_engine'])}, torch {text(about['torch'])}, commit {text(about['commit'])}, "
        f"{text(about['date'])}. {result['films']} films, {result['heldout_clips']} held-out clips a model, seed "
        f"{result['seed']} for all. {_minutes(result['seconds'])}",
    ]
    return document("The curriculum in miniature", parts, STYLE)


def _brings(result: Mapping[str, Any]) -> str:
    head = ["stage", "what is compared", "F1 with", "without", "difference", "pitch", "clicks, dB", "silent", "verdict"]
    rows = []
    for stage, each in result["brings"].items():
        figures, found = result["figures"], each["difference"]
        own, other = (figures[each[side]]["f1"] for side in ("with", "without"))
        rows.append(
            [
                f"<b>{text(stage)}</b>",
                text(each["about"]),
                _number(own["value"]),
                _number(other["value"]),
                _signed(found["f1"]),
                _signed(found["pitch"]),
                _signed(found["distance"], 2),
                _signed(found["silent"]),
                f"<b>{text(each['verdict'])}</b>",
            ]
        )
    return _table("What each stage brings", head, rows) + (
        "<p class=quiet>Differences are with less without, at equal steps (for phase 3 itself: without its steps), "
        "seeds and prompts, [95% paired bootstrap intervals over clips]: of one training run each, so that they do "
        "not say how another seed would turn out. F1: of clicks and bounces within 84 ms. Clicks: log-spectral "
        "distance from clicks as they should be; less is better. The verdict counts only intervals that leave out "
        "0."
    )


def _figures(figures: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["model", "F1 within 84 ms", "sounds swapped", "median error, ms", "pitch as named", "clicks, dB",
            "background, dB", "silent clips", "clips"]  # fmt: skip
    rows = []
    for name, label in NAMES.items():
        each = figures[name]
        cells = [_interval(each[key], digits) for key, digits in (("f1", 3), ("chance", 3), ("error_ms", 0))]
        cells += [_interval(each["pitch"], 3), _interval(each["distance"], 1), _interval(each["background"], 0)]
        rows.append([text(label), *cells, str(each["silent"]), str(each["clips"])])
    return _table("After each stage, and without one", head, rows) + (
        "<p class=quiet>Background: what the quieter half of a clip does not exceed, of full scale. The last row is "
        "the bound: what the embedded codec leaves of true clips."
    )


def _chart(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """F1 with intervals, the main run's stages darker than what stands beside them."""
    shown = [(name, figures[name]["f1"]) for name in NAMES if figures[name]["f1"]]
    left, width, row = 290, 420, 24
    parts = []
    for i, (name, figure) in enumerate(shown):
        y = row * i + 14
        beside = "" if name in MAIN else " class=beside"
        low, high, value = (left + width * (figure[key] or 0) for key in ("low", "high", "value"))
        parts.append(f"<text x={left - 8} y={y + 4} text-anchor=end font-size=12>{text(NAMES[name])}</text>")
        parts.append(f"<rect x={left} y={y - 6} width={max(0, value - left):.1f} height=12{beside} />")
        parts.append(f"<line x1={low:.1f} x2={high:.1f} y1={y} y2={y} />")
        parts.append(f"<text x={left + width + 8} y={y + 4} font-size=12>{_number(figure['value'])}</text>")
    height = row * len(shown) + 10
    return (
        f"<div><svg viewBox='0 0 780 {height}' width=780 height={height} role=img aria-label='F1 of each model'>"
        + "".join(parts)
        + "</svg></div>"
    )


def _curated(curated: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for phase, each in curated.items():
        filters = "<br>".join(
            f"{text(one['name'])}: <code>{text(one['text'])}</code> drops {one['dropped']} of {one['clips']}"
            for one in each["funnel"]["filters"]
        )
        sounds = ", ".join(f"{count} {text(name)}" for name, count in each["sounds"].items())
        rows.append([text(phase), str(each["kept"]), sounds, filters])
    first = next(iter(curated.values()))
    head = ["phase", "clips", "what their sound is, by the films' truth", "filters"]
    return _table("The clips of each phase", head, rows) + (
        f"<p class=quiet>The films hold {first['scenes']} scenes; {first['begin_with_a_scene']} of the "
        f"{first['kept']} clips of phase 1 begin with the first picture of one."
    )


def _settings(result: Mapping[str, Any]) -> str:
    recipes = result["settings"]
    rows = [["steps", *(str(result["steps"][name]) for name in recipes), "not given in steps"]]
    for key, paper in PAPER.items():
        cells = ("" if each[key] is None else text(_plain(each[key])) for each in recipes.values())
        rows.append([text(key.replace("_", " ")), *cells, text(paper)])
    return _table("Settings", ["", *recipes, "the paper"], rows) + (
        "<p class=quiet>As nano needs it, and other than the paper: the networks predict x0, and learning rates are "
        "200 times as high, warm up and decay in each stage."
    )


def _samples(work: Path) -> str:
    parts = []
    for each in SAMPLED:
        if not each.side:
            continue
        films = sorted(sampled_folder(work, each).glob("*.mp4"))[:CLIPS_SHOWN]
        clips = "".join(
            f"<video controls loop src='data:video/mp4;base64,{base64.b64encode(film.read_bytes()).decode()}'></video>"
            for film in films
        )
        parts.append(f"<h3>{text(NAMES[each.name])}</h3><div class=clips>{clips}</div>")
    return "<h2>Samples</h2>" + "".join(parts)


def _minutes(seconds: Mapping[str, Mapping[str, float]]) -> str:
    wall, cpu = (sum(each[kind] for each in seconds.values()) / 60 for kind in ("wall", "cpu"))
    longest = sorted(seconds.items(), key=lambda each: -each[1]["cpu"])[:3]
    told = ", ".join(f"{text(name)} {taken['cpu'] / 60:.1f}" for name, taken in longest)
    return f"The jobs took {cpu:.0f} minutes of CPU time, {wall:.0f} one after the other; most took {told}."


def _table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{each}" for each in head)]
    return titled_table(title, [*lines, *("<tr>" + "".join(f"<td>{each}" for each in row) for row in rows)])


def _plain(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else value


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _interval(figure: Mapping[str, float | None] | None, digits: int) -> str:
    if figure is None or figure["value"] is None:
        return "<span class=quiet>n/a</span>"
    low, high = (_number(figure[key], digits) for key in ("low", "high"))
    return f"{_number(figure['value'], digits)} <span class=quiet>[{low}, {high}]</span>"


def _signed(figure: Mapping[str, float | None], digits: int = 3) -> str:
    if figure["value"] is None or figure["low"] is None or figure["high"] is None:
        return "<span class=quiet>n/a</span>"
    low, high = (f"{figure[key]:+.{digits}f}" for key in ("low", "high"))
    return f"{figure['value']:+.{digits}f} <span class=quiet>[{low}, {high}]</span>"
