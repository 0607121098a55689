"""The page of votes in a real browser: clips play with sound, keys and mouse answer, nothing tells whose a clip is."""

from functools import partial

import browsers
import pytest
from browsers import browser_marks, chromium, contrasts
from vote_servers import SECONDS, SYSTEMS, serving, write_study

from mova_engine.evaluation.votes.vote_analysis import read_votes
from mova_engine.evaluation.votes.vote_store import VoteStore

pytestmark = browser_marks("fastapi")
# In JavaScript: the players, and what a test waits for.
VIDEOS = "[...document.querySelectorAll('video')]"
PLAYING, SOURCES = f"{VIDEOS}.some((v) => !v.paused)", f"{VIDEOS}.map((v) => v.getAttribute('src'))"
# Of each control: its name for those who do not see it, and its place among those that keys reach.
NAMES = """[...document.querySelectorAll('#pair button, #pair input, #pair summary')]
  .filter((e) => e.offsetParent)
  .map((e) => [e.getAttribute('aria-label') || (e.labels && e.labels[0] ? e.labels[0] : e).textContent.trim(),
               e.tabIndex])"""
# What is read.
TEXTS = "#pair legend, #pair .answers button, .heard, #hint, #count, #prompt .quiet, label"
PATIENCE = 30 + 2 * SECONDS
until = partial(browsers.until, seconds=PATIENCE)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def browser():
    # Sound only after a press of the user's, as browsers have it.
    with chromium("--autoplay-policy=user-gesture-required") as browser:
        yield browser


@pytest.fixture
def page(browser):
    """A page of a rater who was never here, whose errors fail the test; `page.log` holds all that came over the
    network.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.log, errors = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: page.log.append(f"{request.url} {request.headers} {request.post_data or ''}"))
    page.on("response", lambda answer: page.log.append(f"{answer.url} {answer.headers}"))
    yield page
    context.close()
    assert not errors


@pytest.fixture(scope="module")
def server(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with serving(study, folder / "votes.sqlite", "--goal", "5", "--checks", "0") as server:
        server.store = folder / "votes.sqlite"
        yield server


def begin(page, server, name):
    page.goto(server.url)
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector("#pair:not([hidden])")


def heard(page, count=2):
    """Wait until so many clips were played to their end."""
    until(page, f"document.querySelectorAll('figure.done').length === {count}")


def counted(page, text):
    until(page, f"document.querySelector('#count').textContent === '{text}'")


def times(page):
    told = "[v.currentTime, v.webkitAudioDecodedByteCount, v.getVideoPlaybackQuality().totalVideoFrames]"
    return page.evaluate(f"{VIDEOS}.map((v) => {told})")


def saved(server, rater):
    return [vote.answers["overall"] for vote in read_votes(VoteStore.open(server.store)) if vote.rater == rater]


def test_a_session_by_keys_and_mouse(page, server):
    page.add_init_script("localStorage.setItem('vote-auto', '0')")
    begin(page, server, "keys")
    # An answer before both were played does nothing but say so.
    page.keyboard.press("1")
    assert "Play both clips" in page.inner_text("#hint")
    page.keyboard.press(" ")
    until(page, "document.querySelector('video').currentTime > 0.3")
    page.keyboard.press(" ")
    assert page.evaluate("document.querySelector('video').paused")
    page.keyboard.press("ArrowLeft")
    heard(page, 1)
    page.keyboard.press("ArrowRight")
    heard(page)
    for seconds, sound, pictures in times(page):
        assert seconds >= SECONDS - 0.1 and sound > 1000 and pictures > 20, "it played, with sound"
    page.keyboard.press("2")
    counted(page, "1 of 5 pairs")
    # By mouse.
    for figure in ("left", "right"):
        page.click(f"figure[data-side={figure}] .play")
        page.wait_for_selector(f"figure[data-side={figure}].done", timeout=1000 * PATIENCE)
    page.get_by_role("button", name="Tie").click()
    counted(page, "2 of 5 pairs")
    assert saved(server, "keys") == ["right", "tie"]


def test_undo_reload_and_the_end(page, server):
    begin(page, server, "undo")
    heard(page)  # both by themselves, one after the other
    shown = page.evaluate(SOURCES)
    page.reload()
    page.wait_for_selector("figure.done")
    assert page.evaluate(SOURCES) == shown, "the same pair, on the same sides, and what was played counts"
    page.keyboard.press("9")
    counted(page, "1 of 5 pairs")
    page.keyboard.press("u")
    counted(page, "0 of 5 pairs")
    heard(page)
    assert page.evaluate(SOURCES) == shown and saved(server, "undo") == []
    page.keyboard.press("1")
    for number in range(1, 5):
        counted(page, f"{number} of 5 pairs")
        if not page.evaluate(PLAYING):
            page.keyboard.press(" ")
        heard(page)
        page.keyboard.press("120 9"[number - 1] if number != 4 else "0")
    page.wait_for_selector("#done:not([hidden])")
    assert "5 pairs" in page.inner_text("#done-text")
    page.get_by_role("button", name="Undo the last vote").click()
    page.wait_for_selector("#pair:not([hidden])")
    assert len(saved(server, "undo")) == 4


def test_nothing_in_the_page_or_on_the_network_tells_a_system(page, server):
    begin(page, server, "blind")
    for number in range(2):
        heard(page)
        kept = "document.documentElement.outerHTML, {...localStorage}, {...sessionStorage}, location.href"
        loaded = "performance.getEntries().map((e) => e.name)"
        page.log.append(page.evaluate(f"JSON.stringify([{kept}, {loaded}])"))
        page.keyboard.press("0")
        counted(page, f"{number + 1} of 5 pairs")
    whole = "\n".join(page.log).lower()
    assert len(page.log) > 20 and "/clips/" in whole
    assert not [word for system in SYSTEMS for word in (system, *system.split("-")) if word in whole]
    assert {line.split()[0].split("/")[2] for line in page.log if line.startswith("http")} == {server.url.split("/")[2]}


def test_played_without_sound_does_not_count(page, server):
    begin(page, server, "mute")
    until(page, "document.querySelector('video').currentTime > 0.2")
    page.evaluate("(v => { v.value = 0; v.dispatchEvent(new Event('input')); })(document.querySelector('#volume'))")
    until(page, "document.querySelector('video').ended")
    assert page.locator("figure.done").count() == 0 and "volume is at zero" in page.inner_text("#hint")


def test_a_link_with_a_code_several_questions_and_a_phone(browser, study, tmp_path):
    """At a phone's size all is within its width, in the dark too; all questions are answered before they are sent."""
    (tmp_path / "codes").write_text("k7\n")
    options = ("--question", "picture", "sync", "--raters", str(tmp_path / "codes"), "--checks", "0")
    with serving(study, tmp_path / "votes.sqlite", *options) as server:
        server.store = tmp_path / "votes.sqlite"
        phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
        context = browser.new_context(color_scheme="dark", **phone)
        page = context.new_page()
        page.goto(f"{server.url}/?rater=k7")
        page.wait_for_selector("#pair:not([hidden])")
        assert page.url == f"{server.url}/", "the code is not left in the address"
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 29)"
        if not page.evaluate(PLAYING):
            page.tap("figure[data-side=left] .play")
        heard(page)
        page.tap("[data-question=sync] [data-answer=right]")
        assert page.get_attribute("#send", "aria-disabled") == "true"
        page.keyboard.press("1")  # the question that is open
        page.tap("#send")
        counted(page, "1 of 40 pairs")
        (vote,) = read_votes(VoteStore.open(server.store))
        assert vote.answers == {"picture": "left", "sync": "right"} and vote.rater == "k7"
        page.goto(f"{server.url}/?rater=other")
        until(page, "document.querySelector('#said').textContent.includes('not on the study')")
        context.close()


def test_every_control_has_a_name_and_can_be_reached_by_keys(page, server):
    begin(page, server, "names")
    names = page.evaluate(NAMES)
    assert len(names) >= 9 and all(name and index >= 0 for name, index in names)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = contrasts(page, TEXTS)
        assert len(found) > 8 and min(found)[0] >= 4.5, min(found)
