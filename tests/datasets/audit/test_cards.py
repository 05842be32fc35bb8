"""Which records get a card, and the cards in a browser: filters, scrolling, both languages."""

import shutil

import pytest

from xtuner_plugins.datasets.audit.cards import Thumbnails, card, pick
from xtuner_plugins.datasets.audit.check import check_dataset
from xtuner_plugins.datasets.audit.findings import find
from xtuner_plugins.datasets.audit.looking import PlainFiles
from xtuner_plugins.datasets.audit.report import write_report
from xtuner_plugins.datasets.audit.tables import tabulate

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def checked(write_data, make_image, qa):
    """100 records about two images, with two copies, three broken ones and one in Chinese."""
    folder = make_image("a.png", 1000, 448)
    make_image("b.png", 600, 1800)
    records = [qa(f"What is {number}?", f"It is {number}. " * (1 + number % 4), image="a.png") for number in range(94)]
    records += [records[0], qa("这是什么？", "一只猫。", image="b.png"), records[1]]
    records += [qa(image="none.png"), {"a": "<script>document.title = 'broken into'</script>"}, qa(image="none.png")]
    dataset = PlainFiles([write_data(records, "many.jsonl")], [folder])
    return dataset, check_dataset(dataset, num_workers=0, complain=lambda text: None)


def test_records_with_a_reason_come_before_random_ones(checked):
    dataset, reports = checked
    findings = find(dataset, reports)
    tags = pick(dataset, reports, findings, 10)
    assert [(place[2], reasons) for place, reasons in tags.items() if reasons] == [
        (0, ["equal_records"]),
        (1, ["equal_records"]),
        (94, ["equal_records"]),
        (96, ["equal_records"]),
        (97, ["image_missing"]),
        (98, ["no_conversations"]),
        (99, ["image_missing"]),
    ]
    assert 10 <= len(tags) <= 17 and pick(dataset, reports, findings, 10) == tags
    assert pick(dataset, reports, findings, 0) == {}


def test_a_record_that_has_changed_since_says_so(checked, tmp_path):
    dataset, reports = checked
    (tmp_path / "images/a.png").unlink()
    shown = card(dataset, reports[0], (0, 0, 0), [], Thumbnails(None))
    assert shown["is_bad"] and "many.jsonl:1: " in shown["messages"][0] and "What is 0?" in shown["runs"][0][1]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_in_a_browser(checked, tmp_path, language):
    playwright = pytest.importorskip("playwright.sync_api")
    dataset, reports = checked
    path = tmp_path / "page.html"
    findings = find(dataset, reports)
    write_report(path, dataset, reports, findings, tabulate(dataset, reports), num_cards=100)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, locale=language)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda request: errors.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        page.goto(path.as_uri())
        shown = page.locator("#list .card")
        assert page.locator("#shown").inner_text() == "100" and shown.count() < 100  # the rest as one scrolls
        assert page.title() == "Data check" and page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator("h1").inner_text() == {"en-US": "Data check", "zh-CN": "数据检查"}[language]
        scroll = "scrollTo(0, document.body.scrollHeight)"
        page.wait_for_function(f"({scroll}, document.querySelectorAll('#list .card').length >= 100)")
        assert shown.count() == 100
        page.wait_for_function("[...document.querySelectorAll('#list img')].every(each => each.complete)")
        widths = page.evaluate("[...document.querySelectorAll('#list img')].map(each => each.naturalWidth)")
        assert len(widths) > 90 and all(widths)
        page.fill("#by-text", "it is 42.")
        assert page.locator("#shown").inner_text() == "1" and "many.jsonl:43" in shown.inner_text()
        page.fill("#by-text", "")
        page.select_option("#by-reason", "image_missing")
        assert shown.count() == 2
        page.locator("a[data-show=equal_records]").click()
        assert shown.count() == 4 and page.evaluate("scrollY") > 0
        page.select_option("#by-reason", "")
        page.select_option("#by-language", "Chinese")
        assert shown.count() == 1 and shown.locator("line").count() == 2 and shown.locator("img").count() == 2
        page.select_option("#by-language", "")
        page.fill("#from-tiles", "4")
        assert page.locator("#shown").inner_text() == "1"  # 1x3 tiles and the thumbnail; the other image has 2x1
        page.fill("#from-tiles", "")
        page.select_option("#sort", "-tiles")
        assert "many.jsonl:96" in shown.first.inner_text()
        page.locator("#language").click()
        assert page.locator("h1").inner_text() == {"en-US": "数据检查", "zh-CN": "Data check"}[language]
        assert page.locator("#by-text").get_attribute("placeholder") == {"en-US": "搜索", "zh-CN": "search"}[language]
        browser.close()
    assert errors == []
