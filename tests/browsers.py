"""Pages of the engine's servers in a real browser."""

import importlib.util
import shutil
import time
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# No network but the server's.
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
# Of each text: its contrast to what is behind it (WCAG 2), and what it is.
_CONTRAST = """(texts) => {
  const numbers = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => numbers(c).map(linear).reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (c !== 'rgba(0, 0, 0, 0)') return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const shown = [...document.querySelectorAll(texts)].filter((e) => e.checkVisibility() && e.textContent.trim());
  return shown.map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.id || e.className || e.tagName];
  });
}"""


def browser_marks(*packages):
    """The marks of a file of such tests. packages: that its server needs, of the extra `serve`."""
    wanted = {**dict.fromkeys(packages, "mova-engine[serve]"), "playwright": "playwright"}
    lacking = sorted({wanted[name] for name in wanted if importlib.util.find_spec(name) is None})
    return [
        pytest.mark.serving,
        pytest.mark.skipif(bool(lacking), reason=f"not installed: pip install {' '.join(lacking)}"),
        pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (apt-get install chromium)"),
    ]


@contextmanager
def chromium(*more):
    """A browser. more: of its arguments."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*_ARGUMENTS, *more])
        yield browser
        browser.close()


def until(page, script, seconds=120.0):
    """Wait until a script is true. (Playwright's own way evaluates text in the page, which its policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < end, (script, page.inner_text("main"))
        page.wait_for_timeout(50)


def contrasts(page, texts):
    """(contrast, what it is) of each text that a selector finds."""
    return page.evaluate(_CONTRAST, texts)
