"""The curriculum's driver: its jobs, what is run again, measures, verdicts; in the long suite, all of it, small."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from benchmarks.curriculum.__main__ import main
from benchmarks.curriculum.figures import SampledClip, background, click_distance, differences, through_codec
from benchmarks.curriculum.job_board import JobBoard
from benchmarks.curriculum.outcome import COMPARED, verdict
from benchmarks.curriculum.page import NAMES
from benchmarks.curriculum.stages import SAMPLED, CurriculumJob, CurriculumScale, jobs
from mova_engine.config.curation_recipes import CURATE
from mova_engine.config.recipes import TRAIN, load_config
from mova_engine.data.synthetic import bounce
from mova_engine.errors import MovaError
from mova_engine.scores.bounce_events import Events
from mova_engine.scores.bounce_sync import Figure

WHOLE = CurriculumScale()
CLICKS = (0.4, 0.9)


def test_jobs_come_after_what_they_need_and_every_model_is_sampled(tmp_path):
    found = jobs(tmp_path, WHOLE)
    names = [job.name for job in found]
    assert len(set(names)) == len(names)
    for job in found:
        assert all(names.index(need) < names.index(job.name) for need in job.needs)
    trained = {job.name for job in found if job.words[0] == "train"}
    assert {each.run for each in SAMPLED} | {"without-tower-phase1", "without-tower-phase2"} >= trained - {
        "without-phase1-phase2"
    }
    assert {each.name for each in SAMPLED} | {"codec"} == set(NAMES)
    assert all({own, other} <= set(NAMES) for _, own, other in COMPARED.values())


def test_the_commands_are_ones_that_mova_takes_and_ablations_take_as_many_steps(tmp_path):
    steps: dict[str, int] = {}
    for job in jobs(tmp_path, WHOLE):
        if job.words[0] == "train":
            config = TRAIN.parse(list(job.words[1:]))
            assert config is not None
            steps[job.name] = config.steps
        if job.words[0] == "curate":
            assert CURATE.parse(list(job.words[1:])) is not None
    main_run = [steps[name] for name in ("tower", "phase1", "phase2", "phase3")]
    for name in ("without-tower", "without-phase1"):
        own = sum(count for run, count in steps.items() if run.startswith(name))
        assert own + (0 if name == "without-tower" else steps["tower"]) == sum(main_run)
    assert steps["unfiltered-phase2"] == steps["phase2"] and steps["unfiltered-phase3"] == steps["phase3"]
    assert steps["without-size-step"] == steps["phase3"]


def test_the_recipes_follow_the_published_phases():
    """What the pages call the paper's is what joint-phase1 to joint-phase3 have."""
    for number in (1, 2, 3):
        ours, paper = load_config(f"nano-phase{number}"), load_config(f"joint-phase{number}")
        for name in ("video_shift", "audio_shift", "text_dropout", "audio_weight", "timestep_sampling"):
            assert getattr(ours.diffusion, name) == getattr(paper.diffusion, name), name
        assert ours.optim.bridge_lr == 2 * ours.optim.lr == 200 * paper.optim.bridge_lr
    assert load_config("nano-tower").diffusion.audio_shift == load_config("audio-pretrain").diffusion.audio_shift


@pytest.mark.long
def test_finished_jobs_are_not_run_again_and_other_settings_are_refused(tmp_path):
    first = CurriculumJob("first", ("completion", "bash"), seconds=1)
    second = replace(first, name="second", needs=("first",))
    JobBoard([first], tmp_path, 2).run()
    said = (tmp_path / "first.log").read_text()
    assert "mova" in said
    board = JobBoard([first, second], tmp_path, 2)
    board.run()
    assert (tmp_path / "first.log").read_text() == said == (tmp_path / "second.log").read_text()
    assert set(board.seconds) == {"first", "second"}
    with pytest.raises(MovaError, match="other settings"):
        JobBoard([replace(first, words=("completion", "zsh"))], tmp_path, 2)
    with pytest.raises(MovaError, match=r"third ended with status 2: mova completion elvish\n(.|\n)*error:"):
        JobBoard([replace(first, name="third", words=("completion", "elvish"))], tmp_path, 2).run()
    assert not (tmp_path / "third.json").exists()


def test_the_distance_of_clicks_is_0_for_ideal_ones_and_known_for_louder_ones():
    ideal = bounce.click_sound(np.arange(66000), CLICKS, 1200.0).astype(float)
    assert click_distance(ideal, CLICKS, 1200.0) == pytest.approx(0, abs=1e-3)
    assert 0 < click_distance(ideal * 10 ** (-3 / 20), CLICKS, 1200.0) <= 3.001
    assert click_distance(ideal, CLICKS, 1550.0) > 6
    noisy = ideal + 0.03 * np.random.default_rng(0).standard_normal(66000)
    assert click_distance(noisy, CLICKS, 1200.0) > 0.5
    assert math.isnan(click_distance(ideal, (), 1200.0))
    assert background(ideal) == -70 and background(noisy) > -55


def test_the_codec_leaves_true_clips_as_they_are_but_for_little(tmp_path):
    bounce.generate(tmp_path, 6, split="heldout", scale=2)
    found = through_codec(tmp_path)
    assert len(found) == 6 and all(clip.seen.clicks for clip in found)
    assert max(clip.distance for clip in found) < 3


def clip(late: float, caption: str = "a red ball", pitch: float = 500.0) -> SampledClip:
    return SampledClip(
        Events("a.mp4", 32 / 24, (0.4, 0.9), (0.4 + late, 0.9 + late), (pitch,) * 2, "red", caption), 1.0, -70.0
    )


def test_differences_are_paired_and_verdicts_need_intervals_without_0():
    good, bad = [clip(0.0)] * 12, [clip(0.0)] * 2 + [clip(0.2, pitch=1200.0)] * 10
    found = differences(good, bad)
    assert found["f1"].value == pytest.approx(10 / 12) and found["f1"].low > 0.3
    assert found["pitch"].value == pytest.approx(10 / 12) and found["silent"] == Figure(0, 0, 0)
    assert verdict(found) == "better: sync, pitch"
    assert verdict(differences(bad, good)) == "worse: sync, pitch"
    assert verdict(differences(bad, bad)) == "brings nothing that these clips can show"
    assert verdict({**found, "silent": Figure(0.2, 0.1, 0.3)}) == "better: sync, pitch; worse: silence"


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_all_of_it_small(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    pytest.importorskip("cv2")
    pytest.importorskip("silero_vad")
    options = ["--work", str(tmp_path / "work"), "--steps-scale", "0.003"]
    assert main(options) == 0
    assert "jobs; about" in capsys.readouterr().out
    result = json.loads((tmp_path / "work" / "curriculum.json").read_text())
    assert set(result["figures"]) == set(NAMES) and set(result["brings"]) == set(COMPARED)
    assert result["figures"]["codec"]["f1"]["value"] > 0.9
    assert all(each["verdict"] for each in result["brings"].values())
    for phase, allowed in (("phase1", {"clean", "loose", "off", "noisy"}), ("phase2", {"clean", "loose"})):
        assert set(result["curated"][phase]["sounds"]) <= allowed
    assert set(result["curated"]["phase3"]["sounds"]) == {"clean"}
    assert result["curated"]["phase1"]["begin_with_a_scene"] == result["curated"]["phase1"]["kept"]
    page = (tmp_path / "work" / "report.html").read_text()
    links = _Links()
    links.feed(page)
    assert links.targets and all(target.startswith("data:") for target in links.targets)
    assert all(name in page for name in NAMES.values())
    trained = tmp_path / "work" / "phase3" / "checkpoints"
    written = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    assert main(options) == 0
    assert {path: path.stat().st_mtime_ns for path in trained.iterdir()} == written
