"""The page of `flexjudge report` in a real browser: it opens, filters, finds a failure, and asks for nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexjudge_reward.report.render import report
from flexjudge_reward.report.serve import Server
from support.browser import CHROMIUM, Browser
from support.pages import BENIGN, PAYLOADS, changes, failed, hostile, line, training, write

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(autouse=True)
def desktop(browser: Browser) -> None:
    browser.screen(1280, 900)


def page(folder: Path, lines: list[dict[str, object]]) -> Path:
    """The report of a record with these lines."""
    html = folder / "report.html"
    html.write_text(report(write(folder / "judgements.jsonl", lines)).html)
    return html


def few() -> list[dict[str, object]]:
    """Two groups in two steps: one of three scored answers, one of a scored and a failed one."""
    return [
        line("short", "a", 0, 0, scores=[2.0]),
        line("short", "a", 1, 0, scores=[9.0], candidates=[["a much longer answer " * 10]]),
        line("short", "a", 2, 0, scores=[5.0], candidates=[["middling"]]),
        line("other", "b", 0, 4, scores=[7.0]),
        failed("other", group="b", place=1, step=4, failure={"kind": "refused", "detail": "it would not say"}),
    ]


def fill(browser: Browser, **fields: object) -> str:
    """Clears the filters, sets some, and returns what they find."""
    browser.evaluate("document.getElementById('filters').reset()")
    for name, value in {**fields, "text": fields.get("text", "")}.items():
        browser.evaluate(f"document.forms.filters.elements[{json.dumps(name)}].value = {json.dumps(str(value))}")
    browser.evaluate("document.forms.filters.requestSubmit()")
    return str(browser.evaluate("document.getElementById('count').textContent"))


def detail(browser: Browser) -> str:
    return str(browser.evaluate("document.getElementById('detail').innerText"))


def test_a_page_opens_silently_and_asks_for_nothing_but_itself(browser: Browser, tmp_path: Path) -> None:
    html = page(tmp_path, few())
    browser.open(html.as_uri())
    assert browser.evaluate("document.getElementById('count').textContent") == "5 judgements in 2 groups"
    assert browser.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert browser.evaluate("document.images.length") > 0
    assert (browser.said, browser.asked) == ([], [html.as_uri()])


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        pytest.param({}, "5 judgements in 2 groups", id="none"),
        pytest.param({"outcome": "failed"}, "1 judgement in 1 group", id="failed"),
        pytest.param({"outcome": "refused"}, "1 judgement in 1 group", id="one-kind-of-failure"),
        pytest.param({"outcome": "scored"}, "4 judgements in 2 groups", id="scored"),
        pytest.param({"low": 6}, "2 judgements in 2 groups", id="least-score"),
        pytest.param({"low": 3, "high": 7}, "2 judgements in 2 groups", id="both-ends-of-the-score"),
        pytest.param({"shortest": 100}, "1 judgement in 1 group", id="long-answers"),
        pytest.param({"longest": 5}, "3 judgements in 2 groups", id="short-answers"),
        pytest.param({"from": 1}, "2 judgements in 1 group", id="later-steps"),
        pytest.param({"until": 3}, "3 judgements in 1 group", id="earlier-steps"),
        pytest.param({"text": "MIDDLING"}, "3 judgements in 1 group", id="a-word-of-an-answer"),
        pytest.param({"text": "would not say"}, "2 judgements in 1 group", id="a-word-of-a-reason"),
        pytest.param({"text": "nothing like it"}, "0 judgements in 0 groups", id="nothing"),
        pytest.param({"outcome": "refused", "until": 3}, "0 judgements in 0 groups", id="two-that-exclude-each-other"),
    ],
)
def test_filters(browser: Browser, tmp_path: Path, fields: dict[str, object], found: str) -> None:
    browser.open(page(tmp_path, few()).as_uri())
    assert fill(browser, **fields) == found
    assert browser.said == []


def test_a_failure_is_found_with_its_reason(browser: Browser, tmp_path: Path) -> None:
    browser.open(page(tmp_path, few()).as_uri())
    fill(browser, outcome="failed")
    assert "refused" in detail(browser) and "it would not say" in detail(browser)


def test_candidates_are_side_by_side_in_judged_order_with_their_reasoning(browser: Browser, tmp_path: Path) -> None:
    browser.open(page(tmp_path, few()).as_uri())
    scores = "[...document.querySelectorAll('.card .score')].map((one) => one.textContent)"
    assert browser.evaluate(scores) == ["9", "5", "2"]
    tops = browser.evaluate("[...document.querySelectorAll('.card')].map((one) => one.offsetTop)")
    assert tops[0] == tops[1]
    assert browser.evaluate("document.querySelectorAll('.card .reply').length") == 3


def test_equal_scores_share_a_place(browser: Browser, tmp_path: Path) -> None:
    lines = [line("q", "a", place, 0, scores=[score]) for place, score in enumerate((3.0, 9.0, 3.0, 1.0))]
    browser.open(page(tmp_path, [*lines, failed("q", group="a", place=4)]).as_uri())
    places = "[...document.querySelectorAll('.card header span:first-child')].map((one) => one.textContent.trim())"
    assert browser.evaluate(places) == ["1.", "2. (tie)", "2. (tie)", "4.", ""]
    assert "candidates, best first; scores from 1 to 10" in detail(browser).lower()
    assert browser.said == []


@pytest.mark.parametrize(
    ("order", "first"),
    [("low", "step 0"), ("high", "step 0"), ("spread", "step 0"), ("flat", "step 0"), ("failed", "step 4")],
)
def test_orders(browser: Browser, tmp_path: Path, order: str, first: str) -> None:
    browser.open(page(tmp_path, few()).as_uri())
    fill(browser, order=order)
    assert detail(browser).strip().startswith(first)


def test_it_is_used_from_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    browser.open(page(tmp_path, few()).as_uri())
    browser.key("/")
    for letter in "other":
        browser.key(letter)
    browser.wait("document.getElementById('count').textContent === '2 judgements in 1 group'")
    browser.evaluate("document.forms.filters.reset()")
    browser.wait("document.getElementById('count').textContent === '5 judgements in 2 groups'")
    browser.key("Escape", 27)
    focused = "document.activeElement.id"
    assert browser.evaluate(focused) == "list"
    browser.key("ArrowDown", 40)
    assert detail(browser).startswith("step 4")
    assert browser.evaluate("document.getElementById('list').getAttribute('aria-activedescendant')") == "row1"
    browser.key("Enter", 13)
    assert browser.evaluate(focused) == "detail"
    browser.key("Escape", 27)
    browser.key("Home", 36)
    assert browser.evaluate(focused) == "list" and detail(browser).startswith("step 0")
    browser.key("Tab", 9)
    assert browser.said == []


@pytest.mark.parametrize(
    "then",
    [
        pytest.param("form.requestSubmit()", id="enter"),
        pytest.param("form.reset(); await pause(50)", id="cleared"),
        pytest.param("list.focus()", id="escape-at-once"),
    ],
)
def test_a_filter_that_is_typed_undoes_no_later_choice(browser: Browser, tmp_path: Path, then: str) -> None:
    """What is typed is applied after a moment; a key that chooses a row in this moment keeps its effect."""
    browser.open(page(tmp_path, few()).as_uri())
    browser.evaluate(f"""(async () => {{
      const form = document.forms.filters, list = document.getElementById('list');
      const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
      form.elements.text.value = 't';
      form.elements.text.dispatchEvent(new Event('input', {{bubbles: true}}));
      {then};
      list.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowDown'}}));
      await pause(250);
    }})()""")
    assert detail(browser).startswith("step 4")
    assert browser.evaluate("document.getElementById('list').getAttribute('aria-activedescendant')") == "row1"


def test_the_filters_outlive_a_reload(browser: Browser, tmp_path: Path) -> None:
    address = page(tmp_path, few()).as_uri()
    browser.open(address)
    fill(browser, outcome="refused")
    assert browser.evaluate("location.hash") == "#outcome=refused"
    browser.open(f"{address}#outcome=refused&length=9&from=x")
    assert browser.evaluate("document.getElementById('count').textContent") == "1 judgement in 1 group"
    assert browser.said == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_read_on_a_phone(browser: Browser, tmp_path: Path, dark: bool) -> None:
    browser.screen(360, 740, dark, phone=True)
    browser.open(page(tmp_path, few()).as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    hidden = "getComputedStyle(document.getElementById('detail')).display"
    assert browser.evaluate(hidden) == "none"
    browser.evaluate("document.querySelector('.row').click()")
    assert browser.evaluate(hidden) == "block"
    assert browser.evaluate("document.getElementById('detail').scrollWidth") <= 360
    browser.evaluate("document.querySelector('.close').click()")
    assert browser.evaluate(hidden) == "none"
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


def test_long_words_and_what_a_file_does_not_hold_fit_a_phone(browser: Browser, tmp_path: Path) -> None:
    """Words of 5,000 characters, and an image that is only a digest in the output of `score`."""
    browser.screen(360, 740, phone=True)
    browser.open(page(tmp_path / "word", [line("x" * 5_000, "a", candidates=[["y" * 5_000]])]).as_uri())
    browser.evaluate("document.querySelector('.row').click()")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    assert browser.evaluate("document.getElementById('detail').scrollWidth") <= 360
    scored = {"id": 1, "question": [{"image": "cd" * 32}, "What is it?"], "candidates": [["a cat"]], "scores": [7.0]}
    browser.open(page(tmp_path / "digest", [{"line": 1, **scored, "failures": [None]}]).as_uri())
    assert "What is it?" in browser.evaluate("document.querySelector('.row').innerText")
    assert "cdcd" not in browser.evaluate("document.body.innerText")
    browser.evaluate("document.querySelector('.row').click()")
    assert "image: not in this file; --record keeps it" in detail(browser)
    assert fill(browser, text="nothing like it") == "0 judgements in 0 groups"
    assert "No judgement fits." in detail(browser)
    assert browser.said == []


def test_only_rows_in_view_are_drawn(browser: Browser, tmp_path: Path) -> None:
    browser.open(page(tmp_path, training(4_000)).as_uri())
    rows = "document.querySelectorAll('.row').length"
    assert browser.evaluate(rows) < 40
    browser.evaluate("document.getElementById('list').scrollTop = 1e9")
    browser.wait("document.querySelector('.row[aria-posinset=\"500\"]') !== null")
    assert browser.evaluate(rows) < 40
    assert browser.said == []


def test_payloads_change_nothing_of_the_page(browser: Browser, tmp_path: Path) -> None:
    attacked = page(tmp_path / "hostile", hostile(PAYLOADS))
    plain = page(tmp_path / "plain", hostile(f"{BENIGN} {number}" for number in range(len(PAYLOADS))))
    assert changes(browser, attacked, plain, len(PAYLOADS)) == []


def test_a_served_page_follows_the_run(browser: Browser, tmp_path: Path) -> None:
    source = write(tmp_path / "run" / "judgements.jsonl", few()[:2])
    with Server(source.parent, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        browser.open(address)
        count = "document.getElementById('count')?.textContent"
        assert browser.evaluate(count) == "2 judgements in 1 group"
        write(source, few())
        browser.wait(f"{count} === '5 judgements in 2 groups'")
        assert browser.said == [] and {one for one in browser.asked if one != f"{address}state"} == {address}
        server.shutdown()
