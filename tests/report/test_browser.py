"""The page in a real browser: Debian's Chromium, where it is installed."""

import math
import shutil
from pathlib import Path

import pytest
from judged_runs import HOSTILE, write_judged, write_trained

from biomass.report.page import write_report

CHROMIUM = shutil.which("chromium")
WIDTHS = (1280, 390)
"""Of a desk and of a telephone."""

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

BLANK = """
(canvas) => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let i = 0; i < pixels.length; i += 4) seen.add((pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2]);
  return seen.size < 3;
}
"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    judged, trained = write_judged(folder / "<script>window.__pwned=3<!--"), write_trained(folder / "b")
    paths = {"one": [judged], "several": [judged, trained]}
    return {name: write_report(runs, folder / f"{name}.html") for name, runs in paths.items()}


@pytest.fixture(scope="module")
def opened(browser, pages):
    """A tab with the page of one run, and what went wrong in it, as a list that grows."""
    tab, wrong = browser.new_page(viewport={"width": 1280, "height": 900}), []
    watch(tab, wrong, pages["one"])
    tab.goto(pages["one"].as_uri())
    yield tab, wrong
    tab.close()


def watch(tab, wrong: list[str], page: Path) -> None:
    """Note whatever a page should not do."""
    tab.on("console", lambda message: wrong.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    own = (page.as_uri(), "data:")
    tab.on("request", lambda request: None if request.url.startswith(own) else wrong.append(f"request: {request.url}"))


def test_it_opens_without_an_error_a_message_or_a_request(opened) -> None:
    assert opened[1] == []


def test_every_picture_is_there(opened) -> None:
    tab, _ = opened
    canvases = tab.query_selector_all("canvas")
    assert len(canvases) >= 3
    assert not [canvas.get_attribute("aria-label") for canvas in canvases if canvas.evaluate(BLANK)]
    assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert tab.locator("#ladder svg[role=img]").count() == 4  # null rows are lines in the others' panels
    assert tab.evaluate("[...document.querySelectorAll('#ladder svg circle')].every(dot => dot.getBBox().width > 0)")


def test_names_that_are_scripts_are_shown_and_not_run(opened) -> None:
    tab, wrong = opened
    assert tab.evaluate("window.__pwned === undefined")
    assert tab.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    legend = tab.locator("#maps .categories")
    assert HOSTILE[3] in tab.inner_text("body")
    tab.select_option("#maps select", "plate")
    titles = legend.locator("button").evaluate_all("buttons => buttons.map(button => button.title)")
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[4]} <= set(titles)
    assert wrong == []


def test_a_metric_can_be_chosen_with_the_keyboard(opened) -> None:
    tab, _ = opened
    all_of_them = "[...document.querySelectorAll('#factorial figure')]"
    shown = f"{all_of_them}.filter(one => one.offsetHeight).map(one => one.dataset.metric)"
    assert tab.evaluate(shown) == ["plate_predicted", "experiment_predicted", "replicates_other_plate", "nsc"]
    tab.focus("#factorial select")
    for _ in range(3):
        tab.keyboard.press("ArrowDown")
    assert tab.evaluate(shown) == ["silhouette"]


def test_the_pointer_names_a_well_and_marks_it_in_all_maps(opened) -> None:
    tab, wrong = opened
    first = tab.locator("#maps canvas").first
    first.scroll_into_view_if_needed()
    box = first.bounding_box()
    for step in range(400):  # along a spiral, until a dot is under the pointer
        far, angle = 0.45 * step / 400, step / 9
        x = box["width"] * (0.5 + far * math.cos(angle))
        y = box["height"] * (0.5 + far * math.sin(angle))
        first.hover(position={"x": x, "y": y}, force=True)
        if tab.locator("#tooltip").is_visible():
            break
    named = tab.inner_text("#tooltip")
    assert "plate: " in named
    assert "well: " in named
    assert "treatment: " in named
    assert tab.evaluate("[...document.querySelectorAll('#maps .ring')].filter(one => one.offsetWidth).length") == 3
    assert wrong == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "several"])
def test_nothing_is_wider_than_the_window(browser, pages, name, width) -> None:
    tab, wrong = browser.new_page(viewport={"width": width, "height": 900}), []
    watch(tab, wrong, pages[name])
    tab.goto(pages[name].as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("document.body.scrollWidth") <= width
    assert wrong == []
    tab.close()


def test_without_scripts_and_in_print_it_says_what_it_has_to_say(browser, pages) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(pages["one"].as_uri())
    assert tab.locator("#maps img").count() == 3
    assert tab.locator("#factorial table").first.is_visible()
    assert tab.locator("#ladder svg[role=img]").first.is_visible()
    tab.emulate_media(media="print")
    assert tab.locator("#factorial table").first.is_visible()
    context.close()
