"""The server's page in a real browser, against a server that makes its clips with a tiny model."""

import base64
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browsers import browser_marks, chromium, contrasts, until
from chat_servers import BAD, GOOD, PROMPT, chat_server
from mova_servers import TINY, mova_server, write_tiny_model
from PIL import Image

pytestmark = browser_marks("fastapi", "sqlalchemy")
# What is read.
TEXTS = "p, label, button, summary, .label, h2, h1, dt, dd"
# The script of axe-core (npm pack axe-core), where it is to be had.
AXE = "MOVA_AXE"
# Steps of a job that is to be seen at work, the most that are made, and of one that is not waited for. A model of many
# layers takes seconds for the first on any machine.
SEEN, QUICK = "200", "2"
LAYERS = 24
SLOW = replace(
    TINY,
    video=replace(TINY.video, num_layers=LAYERS),
    audio=replace(TINY.audio, num_layers=LAYERS),
    bridge=replace(TINY.bridge, visual_layers=LAYERS, audio_layers=LAYERS),
)
READY = "document.querySelectorAll('.card .open').length === {}"
# Of a control that keys can reach: its name, for those who do not see it.
UNNAMED = """[...document.querySelectorAll('button, input, select, textarea, a, summary')]
  .filter((e) => e.checkVisibility() && e.type !== 'file')
  .filter((e) => !(e.getAttribute('aria-label') || (e.labels && e.labels[0] ? e.labels[0] : e).textContent.trim()))
  .map((e) => e.outerHTML)"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", SLOW)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with mova_server(model, tmp_path_factory.mktemp("served") / "store") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def new_page(browser):
    """Makes pages of browsers that were never here. An error of a script, or a request to another server, fails."""
    contexts, errors, hosts = [], [], set()

    def make(url, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "//" in request.url else None)
        page.goto(url)
        until(page, "document.querySelector('#size').options.length > 0 || document.querySelector('#entrance').open")
        return page

    yield make
    for context in contexts:
        context.close()
    assert not errors
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", host) for host in hosts), hosts


def text_of(page, selector):
    return page.inner_text(selector)


def set_steps(page, steps):
    page.locator("#advanced").evaluate("(e) => { e.open = true; }")
    page.fill("#steps", steps)


def order(page, prompt, steps=QUICK):
    """Ask for a clip; the job of the server that it became."""
    set_steps(page, steps)
    page.fill("#prompt", prompt)
    page.click("#create")
    until(page, "document.querySelector('#expected').textContent.startsWith('Queued')")


def card(page, prompt):
    return page.locator(".card", has_text=prompt)


def job(server, prompt):
    return next(video for video in server.videos() if video["prompt"] == prompt)


def picture(colour=(200, 30, 30), size=(120, 60)):
    """A PNG, red on the left and blue on the right."""
    image = Image.new("RGB", size, colour)
    image.paste((20, 40, 220), (size[0] // 2, 0, *size))
    data = io.BytesIO()
    image.save(data, "PNG")
    return {"name": "frame.png", "mimeType": "image/png", "buffer": data.getvalue()}


def give(page, name, kind, data, event="drop"):
    """Drop a file on the page as a file manager does, or paste it."""
    script = """([name, type, text, event]) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, { type }));
      const about = { bubbles: true, cancelable: true };
      document.body.dispatchEvent(event === 'drop' ? new DragEvent(event, { dataTransfer: data, ...about })
        : new ClipboardEvent(event, { clipboardData: data, ...about }));
    }"""
    page.evaluate(script, [name, kind, base64.b64encode(data).decode(), event])


def test_a_clip_by_keyboard_alone_from_words_to_sound(new_page, server):
    page = new_page(server.url)
    keys = page.keyboard
    at = "document.activeElement.id"

    def tab_to(name, script=at):
        for _ in range(40):
            if page.evaluate(script) == name:
                return
            keys.press("Tab")
        raise AssertionError(f"keys do not reach {name}")

    tab_to("frame-file")
    tab_to("prompt")
    keys.type("by keys")
    tab_to("size")
    tab_to("frames")
    assert page.evaluate("document.querySelector('#frames').value") == str(TINY.clip.frames)
    page.focus("#advanced summary")
    keys.press("Enter")
    tab_to("steps")
    keys.press("Control+a")
    keys.type("3")
    keys.press("Enter")
    until(page, READY.format(1))
    assert "Ready: by keys" in text_of(page, "#said")
    tab_to("screen open", "document.activeElement.className")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"
    keys.press("Enter")
    heard = (
        "player.ended && player.webkitAudioDecodedByteCount > 0 && player.getVideoPlaybackQuality().totalVideoFrames"
    )
    until(page, f"(({heard}) || 0) > 10")
    drawn = "new Set(waveform.getContext('2d').getImageData(0, 0, waveform.width, waveform.height).data).size"
    until(page, f"{drawn} > 3")
    facts = text_of(page, "#facts")
    made = job(server, "by keys")
    assert str(made["x_mova"]["seed"]) in facts and "25 frames" in facts and made["x_mova"]["steps"] == 3
    keys.press("Escape")
    assert page.evaluate("document.activeElement.className") == "screen open", "focus is back where it was"
    keys.press("Enter")
    tab_to("remove")
    keys.press("Enter")
    assert page.evaluate(at) == "confirm-no"
    keys.press("Escape")
    assert job(server, "by keys"), "nothing is deleted without a yes"
    keys.press("Enter")
    tab_to("confirm-yes")
    keys.press("Enter")
    until(page, READY.format(0))
    assert not [video for video in server.videos() if video["prompt"] == "by keys"]


def test_progress_with_previews_then_cancel_and_the_queue(new_page, server):
    page = new_page(server.url)
    order(page, "long work", SEEN)
    order(page, "behind it", SEEN)
    until(page, "document.querySelectorAll('.row').length === 2")
    first, second = page.locator(".row", has_text="long work"), page.locator(".row", has_text="behind it")
    until(page, "/^Step \\d+ of 200/.test(document.querySelector('.running .what')?.textContent || '')")
    assert "Queued, next in line" in second.inner_text() or "Step" in second.inner_text()
    until(page, "(document.querySelector('.row .look').naturalWidth || 0) > 0")
    assert page.evaluate("document.querySelector('.row progress').value") > 0
    second.get_by_role("button", name="Cancel").click()
    first.get_by_role("button", name="Cancel").click()
    until(page, "document.querySelectorAll('.row').length === 0")
    assert "Cancelled." in card(page, "long work").inner_text()
    assert {video["error"]["code"] for video in server.videos() if video["status"] == "failed"} == {"cancelled"}
    # Its settings are not lost.
    card(page, "long work").get_by_role("button", name="Use again").click()
    until(page, "document.querySelector('#prompt').value === 'long work'")
    assert page.input_value("#steps") == SEEN
    for prompt in ("long work", "behind it"):
        card(page, prompt).get_by_role("button", name="Delete").click()
        page.click("#confirm-yes")
        page.wait_for_selector(f".card:has-text('{prompt}')", state="detached")


def test_the_same_settings_make_the_same_clip_and_a_remix_another(new_page, server):
    page = new_page(server.url)
    page.set_input_files("#frame-file", picture())
    until(page, "document.querySelector('#frame-picture').naturalWidth === 120")
    assert "33 % cut at left and right" in text_of(page, "#frame-about")
    box = page.locator("#crop").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(64 / 48, rel=0.02), "the shape of the clip"
    order(page, "again")
    until(page, READY.format(1))
    page.reload()
    until(page, READY.format(1))
    assert not page.is_visible("#frame-picture")
    page.click(".card .open")
    page.click("#again")
    until(page, "document.querySelector('#frame-picture').naturalWidth === 64")
    assert page.input_value("#seed") == str(job(server, "again")["x_mova"]["seed"])
    assert not page.is_checked("#seed-random")
    page.click("#create")
    until(page, READY.format(2))
    first, second = (video["id"] for video in server.videos() if video["prompt"] == "again")
    content = [server.get(f"/v1/videos/{name}/content")[1] for name in (first, second)]
    assert len(content[0]) > 1000 and content[0] == content[1]
    page.click(".card .open >> nth=0")
    page.click("#remix")
    page.fill("#remix-prompt", "anew")
    page.click("#remix-form button[type=submit]")
    until(page, READY.format(3))
    assert job(server, "anew")["remixed_from_video_id"] in (first, second)


def test_settings_go_to_another_as_a_file(new_page, server):
    page = new_page(server.url)
    page.set_input_files("#frame-file", picture())
    page.fill("#prompt", 'shared "words" ✓')
    page.fill("#seed", "77")
    set_steps(page, "9")
    page.fill("#negative", "noise")
    page.fill("#guidance", "3.5")
    page.select_option("#frames", "9")
    with page.expect_download() as saving:
        page.click("#settings-save")
    text = Path(saving.value.path()).read_text()
    other = new_page(server.url)
    give(other, "shared.json", "application/json", text.encode())
    until(other, "document.querySelector('#seed').value === '77'")
    until(other, "document.querySelector('#frame-picture').naturalWidth === 120")
    fields = ("#prompt", "#seed", "#steps", "#negative", "#guidance", "#frames", "#size")
    assert [other.input_value(name) for name in fields] == [page.input_value(name) for name in fields]
    with other.expect_download() as saving:
        other.click("#settings-save")
    assert Path(saving.value.path()).read_text() == text
    # What a server does not offer is said, and the rest is taken.
    strange = {**json.loads(text), "width": 99, "adapters": {"ghost": 1}, "later": 1, "seed": 5}
    give(other, "strange.json", "application/json", json.dumps(strange).encode())
    until(other, "document.querySelector('#seed').value === '5'")
    until(other, "document.querySelector('#problem').textContent !== ''")
    assert all(word in text_of(other, "#problem") for word in ("99", "ghost", "later"))


def test_errors_are_said_in_words(new_page, server):
    page = new_page(server.url)

    def said(word):
        until(page, f"document.querySelector('#problem').textContent.includes({json.dumps(word)})", 20)

    page.click("#create")
    said("the prompt is empty")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.fill("#prompt", "words")
    page.fill("#seed", "-1")
    page.click("#create")
    said("The seed must be")
    page.click("#seed-new")
    page.set_input_files("#frame-file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    said("a.png is not a picture")
    give(page, "b.json", "application/json", b"{")
    said("holds no JSON")
    # A picture for browsers, but none for the server: what it says of it is shown.
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'
    page.set_input_files("#frame-file", {"name": "c.svg", "mimeType": "image/svg+xml", "buffer": drawing})
    until(page, "document.querySelector('#frame-picture').naturalWidth === 8")
    page.click("#create")
    said("are not read")
    assert page.input_value("#prompt") == "words", "what was written stays"
    assert page.evaluate("document.querySelector('#problem').getAttribute('role')") == "alert"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways_and_all_can_be_read(new_page, server, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    page = new_page(server.url, color_scheme=scheme, **phone)
    wide = "document.documentElement.scrollWidth <= 360"
    assert page.evaluate(wide)
    shown = len(server.videos())
    until(page, f"document.querySelectorAll('.card').length === {shown}")
    order(page, "on a phone " + 30 * "m", SEEN)
    until(page, "document.querySelectorAll('.row').length === 1")
    assert page.evaluate(wide)
    page.tap(".row button")
    until(page, "document.querySelectorAll('.row').length === 0")
    order(page, "a short one")
    until(page, f"document.querySelectorAll('.card').length === {shown + 2} && document.querySelector('.card .open')")
    assert page.evaluate(wide)
    lowest = min(contrasts(page, TEXTS))
    page.tap(".card .open >> nth=0")
    assert page.evaluate(wide) and page.evaluate("viewer.getBoundingClientRect().width <= 360")
    assert min(lowest, min(contrasts(page, TEXTS)))[0] >= 4.5, lowest
    expected = {"light": "rgb(246, 247, 249)", "dark": "rgb(18, 22, 29)"}[scheme]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == expected
    assert page.evaluate(UNNAMED) == []


def test_nothing_moves_while_a_clip_is_made(new_page, server):
    """The browser's own measure of what jumped, though nobody touched anything."""
    page = new_page(server.url)
    order(page, "still", SEEN)
    until(page, "document.querySelectorAll('.running').length === 1")
    page.wait_for_timeout(600)  # moves within half a second of a press are the press's own
    watch = (
        "new PerformanceObserver((l) => l.getEntries().forEach((e) => { moved += e.hadRecentInput ? 0 : e.value; }))"
    )
    page.evaluate(f"window.moved = 0; {watch}.observe({{ type: 'layout-shift' }}); 0")
    until(page, "(document.querySelector('.row .look').naturalWidth || 0) > 0")
    page.wait_for_timeout(500)
    assert page.evaluate("window.moved") == 0
    page.click(".row button")
    until(page, "document.querySelectorAll('.row').length === 0")


def test_a_restarted_server_is_found_again_and_its_jobs_with_it(new_page, model, tmp_path):
    with mova_server(model, tmp_path / "store") as server:
        page = new_page(server.url)
        order(page, "survives", SEEN)
        until(page, "document.querySelectorAll('.running').length === 1")
        page.fill("#prompt", "half a thought")
        server.process.terminate()
        server.process.wait(60)
        until(page, "document.querySelector('#connection').textContent.startsWith('The server does not answer')")
        page.click("#create")
        until(page, "document.querySelector('#problem').textContent.includes('cannot be reached')")
    with mova_server(model, tmp_path / "store", "--port", server.port):
        until(page, "document.querySelector('#connection').textContent === 'The server answers again.'")
        assert page.input_value("#prompt") == "half a thought"
        until(page, READY.format(1))
        assert "survives" in card(page, "survives").inner_text()


def test_a_server_with_keys_asks_for_one(new_page, model, tmp_path):
    (tmp_path / "keys").write_text("anna sesame-opens-the-door\n")
    (tmp_path / "keys").chmod(0o600)
    with mova_server(model, tmp_path / "store", "--keys", str(tmp_path / "keys")) as server:
        page = new_page(server.url)
        until(page, "document.querySelector('#entrance').open")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        until(page, "document.querySelector('#entrance').open")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#key-problem').textContent.includes('does not know this key')")
        page.fill("#key", "sesame-opens-the-door")
        page.keyboard.press("Enter")
        until(page, "!document.querySelector('#entrance').open")
        order(page, "locked")
        until(page, READY.format(1))
        until(page, "document.querySelector('.card img').naturalWidth > 0")
        page.click(".card .open")
        until(page, "player.src.startsWith('blob:') && player.currentTime > 0.2")
        assert page.evaluate("[localStorage.length, sessionStorage.getItem('mova-key')]") == [
            0,
            "sesame-opens-the-door",
        ]
        assert "sesame" not in page.url and server.get("/v1/videos")[0] == 401


def test_axe_finds_nothing(new_page, server):
    """The rules of axe-core, in the states that the page has."""
    if not (script := os.environ.get(AXE)):
        pytest.skip(f"{AXE} does not name axe-core's axe.min.js (npm pack axe-core)")
    page = new_page(server.url)
    found = {}

    def look(state):
        page.evaluate(Path(script).read_text() + ";0")
        result = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
        assert len(result["passes"]) > 10
        found[state] = [(each["impact"], each["id"], each["nodes"][0]["html"]) for each in result["violations"]]

    look("start")
    page.click("#create")
    look("error")
    order(page, "looked at", SEEN)
    until(page, "document.querySelectorAll('.running').length === 1")
    look("running")
    page.click(".row button")
    order(page, "done")
    until(page, "document.querySelectorAll('.row').length === 0 && document.querySelector('.card .open')")
    look("done")
    page.click(".card .open >> nth=0")
    look("viewer")
    page.click("#remix")
    look("remix")
    assert not any(found.values()), found


def test_an_enhanced_prompt_stands_beside_the_own_one(new_page, tmp_path):
    checkpoint = write_tiny_model(tmp_path / "tiny", replace(TINY, text_tokens=1024))
    with chat_server() as language_model:
        options = "--enhance", "endpoint", "--enhance.url", language_model.url, "--enhance.model", "small"
        with mova_server(checkpoint, tmp_path / "store", *options) as server:
            page = new_page(server.url)
            page.fill("#prompt", PROMPT)
            language_model.say(BAD)
            page.click("#enhance")
            until(page, "document.querySelector('#enhanced-about').textContent.includes('letter for letter')")
            assert page.input_value("#enhanced") == "", "the own prompt is kept, and it is said why"
            language_model.say(GOOD)
            page.click("#enhance")
            until(page, "document.querySelector('#enhanced').value !== ''")
            assert (page.input_value("#prompt"), page.input_value("#enhanced")) == (PROMPT, GOOD)
            page.fill("#prompt", f"{PROMPT} It rains.")
            until(page, "document.querySelector('#enhanced-about').textContent.startsWith('Made of another prompt')")
            page.fill("#prompt", PROMPT)
            set_steps(page, QUICK)
            page.click("#create")
            until(page, READY.format(1))
            made = job(server, PROMPT)["x_mova"]
            assert made["enhanced_prompt"] == GOOD
            page.click(".card .open")
            page.click("#viewer-enhanced summary")
            assert GOOD.splitlines()[0] in text_of(page, "#viewer-enhanced")
