"""The page in a real browser: the slider, the boxes, the keys, the phone, and no request to anywhere."""

import pytest

from tests.browser import complaints, forget_log, headless_browser, needs_browser, open_sized, requested
from tests.explain.conftest import THRESHOLD

pytest.importorskip("selenium.webdriver")
pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explain.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(browser, address):
    """Return the browser with the freshly loaded page on a desk."""
    return open_page(browser, address, width=1280, height=900)


def open_page(browser, address, *, width, height):
    from selenium.webdriver.support.wait import WebDriverWait

    open_sized(browser, address, width=width, height=height)
    WebDriverWait(browser, 30).until(lambda driver: state(driver).get("ready") == "0")
    return browser


def state(browser):
    return dict(browser.execute_script("return {...document.body.dataset}"))


def text(browser, name):
    return browser.find_element("id", name).text


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def test_the_slider_changes_the_refined_tokens(opened, story):
    from selenium.webdriver.common.keys import Keys

    tokens = story.runs.pyramid.num_tokens
    assert text(opened, "budget-value") == "30 % (own)"
    before = opened.execute_script("return document.getElementById('picture').toDataURL()")
    opened.find_element("id", "budget").send_keys(Keys.END)
    assert text(opened, "budget-value") == "100 %"
    assert text(opened, "status").startswith(f"{tokens} of {tokens} tokens are refined")
    assert opened.execute_script("return document.getElementById('picture').toDataURL()") != before


def test_the_arrow_keys_step_through_the_budgets(opened):
    from selenium.webdriver.common.keys import Keys

    seen = []
    for key in (Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT):
        press(opened, key)
        seen.append(text(opened, "budget-value"))
    assert seen == ["10 %", "10 %", "30 % (own)", "50 %"]


def test_a_click_on_a_box_shows_its_points_and_its_curves(opened, story):
    other = len(story.targets) - 1
    opened.execute_script(f"document.querySelector('.box[data-index=\"{other}\"]').dispatchEvent(new Event('click'))")
    assert text(opened, "name") == f"Detection {other + 1} of {len(story.targets)}"
    assert f"--detection {other + 1} runs it" in text(opened, "story")
    smallest = min(range(len(story.targets)), key=lambda i: area(story.targets[i].box))
    opened.find_element("css selector", f'.box[data-index="{smallest}"]').click()
    assert text(opened, "name") == f"Detection {smallest + 1} of {len(story.targets)}"
    explained = next(number for number, found in story.explanations.items() if found.dropped is not None)
    opened.execute_script(f"state.detection = {explained}; show()")
    assert "under its box" in text(opened, "story")
    captions = [figure.text for figure in opened.find_elements("css selector", "#charts figcaption")]
    assert [caption.split(" — ")[0] for caption in captions[:3]] == [
        "Score as tokens under the box are dropped",
        "Score with only tokens under the box refined",
        "Score as tokens at its sampling points are dropped",
    ]
    points = opened.find_elements("css selector", "#overlay .point")
    on, off = (len(opened.find_elements("css selector", f"#overlay .{kind}")) for kind in ("refined", "unrefined"))
    assert len(points) == on + off > 0
    assert f"{on} on refined tokens, {off} on tokens that are not refined" in text(opened, "story")


def area(box):
    x0, y0, x1, y1 = box.tolist()
    return (x1 - x0) * (y1 - y0)


def test_digits_choose_the_level_and_the_points_of_it(opened):
    everywhere = len(opened.find_elements("css selector", "#overlay .point"))
    press(opened, "1")
    assert state(opened)["level"] == "1"
    assert "tokens of level 1 are refined" in text(opened, "status")
    assert 0 < len(opened.find_elements("css selector", "#overlay .point")) < everywhere
    press(opened, "9")
    assert state(opened)["level"] == "1"
    press(opened, "0")
    assert state(opened)["level"] == "0"


def test_every_view_is_drawn_and_explained(opened):
    seen = {}
    for button in range(len(opened.find_elements("css selector", "#views button"))):
        opened.find_elements("css selector", "#views button")[button].click()
        picture = opened.execute_script("return document.getElementById('picture').toDataURL()")
        seen[state(opened)["view"]] = (text(opened, "legend"), picture)
    assert set(seen) == {"tokens", "scores", "attention", "found", "compare", "image"}
    assert len({legend for legend, _ in seen.values()}) == 6
    assert len({picture for _, picture in seen.values()}) == 5  # `found` and `compare` differ in their boxes alone


def test_true_boxes_are_shown_on_demand(opened, story):
    assert opened.find_elements("css selector", "#overlay .truth") == []
    opened.find_element("css selector", '#marks [data-value="truth"]').click()
    assert len(opened.find_elements("css selector", "#overlay .truth")) == len(story.truth)


def test_the_help_opens_and_closes(opened):
    from selenium.webdriver.common.keys import Keys

    press(opened, "?")
    assert opened.execute_script("return document.getElementById('help').open") is True
    press(opened, Keys.ESCAPE)
    assert opened.execute_script("return document.getElementById('help').open") is False


def test_the_second_image_says_that_a_dense_model_has_no_budget(opened):
    from selenium.webdriver.support.select import Select
    from selenium.webdriver.support.wait import WebDriverWait

    Select(opened.find_element("id", "image")).select_by_visible_text("topk.png")
    WebDriverWait(opened, 30).until(lambda driver: state(driver)["ready"] == "1")
    assert not opened.find_element("id", "budget-row").is_displayed()
    assert "no budget of tokens" in text(opened, "sizes")


def test_everything_fits_on_a_phone(browser, address):
    phone = open_page(browser, address, width=390, height=844)
    assert phone.execute_script("return document.documentElement.scrollWidth") == 390
    picture = phone.find_element("id", "picture").rect
    assert (picture["x"] >= 0, picture["x"] + picture["width"] <= 390) == (True, True)
    assert text(phone, "title") == "sparse.png"
    heights = [button.rect["height"] for button in phone.find_elements("css selector", "#views button")]
    assert min(heights) >= 40


def test_there_are_no_errors_and_no_requests(browser, address):
    forget_log(browser)
    opened = open_page(browser, address, width=1280, height=900)
    press(opened, *"vvvvvvlnp123450")
    asked = requested(opened)
    assert address in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert complaints(opened) == []
    assert f"at least {THRESHOLD}" in text(opened, "status")
