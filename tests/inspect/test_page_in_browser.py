"""The page in a real browser: it loads from disk without complaint, shows its pictures and can play
its sound.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from patience import patience
from planted import planted_report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium with the report open."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(
            "chromium or chromedriver is not installed; apt-get install chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1280,1600",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with webdriver.Chrome(options=options, service=service) as opened:
        opened.set_script_timeout(patience(1))
        opened.get(planted_report().html.as_uri())
        yield opened


def test_the_console_stays_empty(browser):
    assert browser.get_log("browser") == []


def test_nothing_of_the_data_ran(browser):
    assert browser.execute_script("return window.pwned") is None
    assert browser.execute_script("return document.scripts.length") == 0
    assert "window.pwned = 1" in browser.execute_script("return document.body.textContent")


def test_the_policy_would_stop_a_script_that_slipped_through(browser):
    browser.execute_script(
        "const box = document.createElement('div');"
        'box.innerHTML = \'<img src="data:," onerror="window.pwned = 2">\';'
        "document.body.append(box);"
    )
    assert (
        browser.execute_async_script("setTimeout(() => arguments[0](window.pwned ?? null), 300)")
        is None
    )
    log = browser.get_log("browser")
    assert any("Content Security Policy" in entry["message"] for entry in log)
    browser.execute_script("document.body.lastChild.remove()")


def test_every_picture_is_decoded(browser):
    widths = browser.execute_async_script(
        "const done = arguments[0], images = [...document.images];"
        "Promise.all(images.map(i => i.decode().catch(() => 0))).then(() => done(images.map(i => "
        "i.naturalWidth)));"
    )
    assert len(widths) > 50
    assert min(widths) > 0


def test_every_clip_can_be_played(browser):
    clips = browser.execute_async_script(
        "const done = arguments[0], clips = [...document.querySelectorAll('audio')];"
        "const ready = a => new Promise(go => a.readyState >= 1 ? go() : (a.onloadedmetadata = "
        "a.onerror = go));"
        "Promise.all(clips.map(ready)).then(() => done(clips.map(a => [a.duration, a.error ? "
        "a.error.code : null])));"
    )
    assert len(clips) == 12
    assert all(error is None and 0.3 < duration < 1.1 for duration, error in clips)
    assert browser.execute_async_script(
        "const done = arguments[0], clip = document.querySelector('audio'); clip.muted = true;"
        "clip.play().then(() => done(true), error => done(error.message));"
    )


def test_warnings_stand_at_the_top(browser):
    titles = browser.execute_script(
        "return [...document.querySelectorAll('.finding h3')].map(h => h.innerText)"
    )
    assert any("1 picture of test is also in train" in title for title in titles)
    assert any("1 clip of test is clipped" in title for title in titles)
    first, amount = (
        browser.execute_script(
            f"return document.querySelector('{where}').getBoundingClientRect().top"
        )
        for where in (".finding", "#amount")
    )
    assert first < amount


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_screenshot_is_kept(browser):
    folder = Path(os.environ.get("MMSCALE_ARTIFACTS", ROOT / "build"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "inspect.png"
    assert browser.save_screenshot(str(path))
    assert path.stat().st_size > 20_000
