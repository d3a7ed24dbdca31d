"""Hostile texts in a run's files change nothing of the page but its texts; parsed without a browser."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from flexjudge_reward.cli.main import main
from flexjudge_reward.report.render import report
from support.pages import BENIGN, PAYLOADS, Structure, hostile, write

_LINKS = {"data:,", "#list"}


@cache
def plain(folder: Path) -> Structure:
    return Structure(report(write(folder / "plain" / "judgements.jsonl", hostile([BENIGN]))).html)


def test_there_are_eighty_payloads() -> None:
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 80


@pytest.mark.parametrize("payload", [pytest.param(one, id=f"{n}-{one!a:.30}") for n, one in enumerate(PAYLOADS)])
def test_a_payload_is_text(payload: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    html = report(write(tmp_path / "judgements.jsonl", hostile([payload]))).html
    page, expected = Structure(html), plain(tmp_path_factory.getbasetemp())
    assert page.elements == expected.elements
    addresses = {value for element in page.elements if isinstance(element, tuple) for name, value in element[1]
                 if name in ("href", "src", "action", "data", "srcset")}  # fmt: skip
    assert addresses == _LINKS
    assert not set(page.data) & set("<>&\u2028\u2029")
    (row,) = json.loads(page.data)["rows"]
    seen = payload.encode("utf-8", "replace").decode()
    for text in (row["question"][1], row["rubric"], row["reference"][0], row["candidates"][0]["parts"][0],
                 row["candidates"][0]["replies"][0], row["candidates"][1]["failure"][1]):  # fmt: skip
        assert text == seen or (len(seen) > 8_000 and text.startswith(seen[:8_000]) and "more characters" in text)


@pytest.mark.parametrize("payload", PAYLOADS[::7])
def test_a_payload_in_other_files_is_text(payload: str, tmp_path: Path) -> None:
    def lines(text: str) -> list[dict[str, object]]:
        failure = {"kind": text, "detail": text}
        judged = {
            "id": text,
            "scores": [3, None],
            "failures": [None, failure],
            "scale": [1, 5],
            "reasoning": [text, text],
        }
        said = [{"role": "user", "content": [{"type": text, "text": text}, {"type": "image", "image": text}]}]
        pair = {"id": text, "prompt": said, "chosen": text, "rejected": said, "scores": [3, 1], "pair": [0, 1]}
        return [judged, {"id": text, "pair": [1, text], "why": text, "detail": text}, pair]

    pages = []
    for number, text in enumerate((payload, BENIGN)):
        for place, line in enumerate(lines(text)):
            write(tmp_path / f"{number}" / f"{place}.jsonl", [line], pictures=False)
        pages.append(Structure(report(tmp_path / f"{number}").html).elements)
    assert pages[0] == pages[1]


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "{{ 7 * 7 }}", '"><b>', "\u202egnp", "</title><b>"])
def test_the_name_of_a_run_is_text(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name.replace("/", "\\")
    page = Structure(report(write(folder / "judgements.jsonl", hostile([BENIGN])).parent).html)
    plain_page = Structure(report(write(tmp_path / "run" / "judgements.jsonl", hostile([BENIGN])).parent).html)
    assert page.elements == plain_page.elements and folder.name in page.texts


def test_the_policy_allows_the_pages_own_script_and_nothing_else(tmp_path: Path) -> None:
    page = Structure(report(write(tmp_path / "judgements.jsonl", hostile([BENIGN]))).html)
    metas = [dict(element[1]) for element in page.elements if isinstance(element, tuple) and element[0] == "meta"]
    (policy,) = [meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:" and "connect-src" not in rules
    assert rules["script-src"].startswith("'sha256-") and rules["style-src"].startswith("'sha256-")
    assert "unsafe" not in str(policy)


def test_the_terminal_sees_no_text_of_the_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "judgements.jsonl", hostile(PAYLOADS))
    assert main(["report", str(source), "-o", str(tmp_path / "r.html")]) == 0
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.isprintable() is False and "\x1b" not in err
    assert f"{2 * len(PAYLOADS)} judgements, {len(PAYLOADS)} failed" in err
