"""The page of a report in a real browser: the table sorts, it fits on a phone, and it asks for nothing."""

import numpy as np
import pytest

from sparse_detr.report.numbers import report_numbers
from sparse_detr.report.words import sentences
from sparse_detr.report.write import write_report
from tests.browser import complaints, forget_log, headless_browser, needs_browser, open_sized, requested
from tests.report.made_up import make_results, make_truth

pytest.importorskip("selenium.webdriver")
pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    numbers = report_numbers(make_truth(), make_results())
    numbers["sentences"] = sentences(numbers)
    pictures = {"1.png": np.full((64, 64, 3), 200, np.uint8)}
    write_report(folder, numbers, title="Report on detections", about="made up", pictures=pictures)
    return (folder / "report.html").as_uri()


def ready(browser, address, *, width=1280):
    from selenium.webdriver.support.wait import WebDriverWait

    open_sized(browser, address, width=width, height=900)
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script("return document.body.dataset.ready"))
    return browser


def column(page, number):
    rows = page.find_elements("css selector", "#classes tbody tr")
    return [row.find_elements("css selector", "td")[number].text for row in rows]


def test_a_click_on_a_title_sorts_and_numbers_that_are_missing_come_last(browser, address):
    page = ready(browser, address)
    name, ap = (page.find_elements("css selector", "#classes th button")[number] for number in (0, 3))
    assert column(page, 0) == ["cat", "dog </script>", "hen"]
    ap.click()
    assert column(page, 3) == ["0.0", "73.5", "-"]
    ap.click()
    assert column(page, 3) == ["73.5", "0.0", "-"]
    name.click()
    name.click()
    assert column(page, 0) == ["hen", "dog </script>", "cat"]
    assert [cell.text for cell in page.find_elements("css selector", "#classes tfoot td")][:2] == ["all", "4"]


def test_the_page_shows_sentences_errors_and_pictures(browser, address):
    page = ready(browser, address)
    items = [item.text for item in page.find_elements("css selector", "#sentences li")]
    assert items[0].startswith("AP 36.7, AP50 36.7")
    assert len(page.find_elements("css selector", "#sentences .cost")) == 1
    assert page.find_element("id", "title").text == "Report on detections"
    assert "wrong class" in page.find_element("id", "errors").text
    widths = page.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == 4
    assert min(widths) > 300


def test_everything_fits_on_a_phone(browser, address):
    page = ready(browser, address, width=390)
    assert page.execute_script("return document.documentElement.scrollWidth") == 390


def test_on_a_phone_names_of_classes_stay_and_the_curves_scroll(browser, address):
    page = ready(browser, address, width=390)
    page.execute_script("document.querySelector('#classes').parentElement.scrollLeft = 300")
    left = "return document.querySelector('#classes tbody td').getBoundingClientRect().left"
    assert 0 <= page.execute_script(left) <= 16
    curves = page.find_element("css selector", "figure .wide img")
    assert curves.get_attribute("alt") == "Curves"
    assert curves.size["width"] == 760


def test_there_are_no_errors_and_no_requests(browser, address):
    forget_log(browser)
    page = ready(browser, address)
    asked = requested(page)
    assert address in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert complaints(page) == []
