"""A run's files as one HTML page that loads nothing.

Promised: what the files hold is text on the page, never markup, script, style or an address. The template escapes every
value; the rows travel as JSON in which no character can end a script, and `page.js` shows them as text nodes only. A
content security policy allows this page's own script and style by their hashes, pictures and sounds as data URIs,
nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexjudge_reward.errors import MissingExtra
from flexjudge_reward.report import charts
from flexjudge_reward.report.lines import Candidate, Group, Parts, Seen, files_of, groups_of
from flexjudge_reward.report.page import BINS, MOST, Page, Step
from flexjudge_reward.report.pictures import DIGEST, Pictures

if TYPE_CHECKING:
    from jinja2 import Template

_HERE = Path(__file__).parent
_UNSAFE = "<>&\u2028\u2029"  # in a script element


@dataclass(frozen=True)
class Report:
    """A page and what it counts."""

    html: str
    judged: int
    failed: int
    shown: int
    pairs: int

    def __str__(self) -> str:
        sample = f", {self.shown:,} of them on the page" if self.shown < self.judged else ""
        pairs = f", {self.pairs:,} pairs" if self.pairs else ""
        return (
            f"{self.judged:,} judgements, {self.failed:,} failed{pairs}{sample}; {len(self.html.encode()) / 1e6:.1f} MB"
        )


def report(source: Path, media_root: Path | None = None, live: str = "", most: int = MOST) -> Report:
    """The page of a record, of an output of `score`, `rerank` or `annotate`, or of a folder with such files.

    Args:
        media_root: the folder below which media that the files name by path may be read.
        live: the state of the files (`serve.py`); a page with one asks its server whether there is more.
        most: judgements that the page holds; beyond, it is a sample of whole groups.

    Raises:
        ConfigError: there is nothing at `source`.
        MissingExtra: Jinja is not installed.
    """
    template = _template()
    files = files_of(source)
    page = Page((group for kind, file in files for group in groups_of(kind, file)), most)
    pictures = Pictures(media_root)
    rows = [_group(group, page, pictures) for group in page.held]
    island = _island({"rows": rows, "pictures": pictures.uris, "sounds": pictures.sounds, "judges": len(page.judges)})
    script, style = (_HERE.joinpath(name).read_text("utf-8") for name in ("page.js", "page.css"))
    html = template.render(
        page=page,
        name=source.resolve().name.encode("utf-8", "replace").decode(),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        charts=_charts(page),
        judges=[_settings(judge) for judge in page.judges],
        left_out=pictures.left_out,
        steps=len(page.steps),
        c=charts,
        live=live,
        policy=_policy(script, style, bool(live)),
        script=script,
        style=style,
        island=island,
    )
    return Report(html, page.judged, page.everything.failures.total(), page.shown, page.pairs.total())


@cache
def _template() -> Template:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise MissingExtra("jinja2", "report") from None
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    found = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, **blocks)
    return found.get_template("page.html.j2")


def _policy(script: str, style: str, live: bool) -> str:
    """The content security policy."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    own = " connect-src 'self';" if live else ""
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src data:;"
        f" media-src data:;{own}"
        " base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _island(data: object) -> str:
    """JSON that is the same data inside a script element, whatever its texts hold."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for char in _UNSAFE:
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _charts(page: Page) -> list[charts.Chart]:
    def over(value: Any) -> dict[int, float | None]:
        return {number: value(step) for number, step in page.steps.items()}

    def share(step: Step) -> float | None:
        return step.cached / step.calls if step.calls else None

    failures = {kind: over(lambda step, kind=kind: step.failures[kind]) for kind in sorted(page.everything.failures)}
    means = {f"judge {n + 1}": over(lambda step, n=n: step.mean_of(n)) for n in page.judges.values()}
    drawn = [
        charts.lines("Mean reward, 0 to 1", means if len(means) > 1 else {"mean": over(lambda step: step.mean)}, 1.0),
        charts.lines("Spread of the scores within a group", {"spread": over(lambda step: step.spread)}),
        charts.lines("Failures by kind", failures),
        charts.lines("Judge tokens of a judgement", {"tokens": over(lambda step: step.tokens / max(1, step.judged))}),
        charts.lines("Share of replies from the cache", {"cached": over(share)}, 1.0),
    ]
    if any(page.scores):
        drawn.append(charts.bars("Scores, 0 to 1", page.scores, 0.0, 1.0))
    for kept, margins in page.margins.items():
        title = f"Margins of the pairs that were {'' if kept else 'not '}kept"
        drawn += [charts.bars(title, *charts.histogram(margins, BINS))] if margins else []
    return [chart for chart in drawn if chart is not None]


def _settings(judge: str) -> tuple[str, dict[str, str]]:
    """A judge's name and its settings."""
    settings: dict[str, str] = json.loads(judge)
    return settings.get("model") or settings.get("engine", "unknown"), settings


def _group(group: Group, page: Page, pictures: Pictures) -> dict[str, Any]:
    """A row of the page; entries that are empty are left out."""

    def parts(given: Parts) -> list[Any]:
        return [part if isinstance(part, str) else _media(part, *pictures.name(part, group.file)) for part in given]

    def candidate(one: Candidate) -> dict[str, Any]:
        unit = None if one.unit is None else round(one.unit, 4)
        length = sum(len(part) for part in one.parts if isinstance(part, str))
        shown = {"parts": parts(one.parts), "score": one.score, "unit": unit, "failure": one.failure, "length": length}
        return {**shown, "replies": one.replies, "label": one.label}

    row = {
        "name": group.name,
        "step": group.step,
        "question": parts(group.question),
        "reference": parts(group.reference),
        "rubric": group.rubric,
        "judge": page.judges.get(group.judge),
        "replies": group.replies,
        "candidates": [_present(candidate(one)) for one in group.candidates.values()],
        "pair": group.pair,
        "detail": group.detail,
        "margin": group.margin,
        "scale": group.scale,
    }
    return _present(row)


def _media(seen: Seen, picture: int | None, sound: int | None) -> dict[str, Any]:
    """A media item: its picture and sound, or the text that stands for it."""
    named = "" if picture is not None or DIGEST.fullmatch(seen.source) else seen.source  # a digest says nothing
    shown = {"kind": seen.kind, "picture": picture, "text": seen.text or named}
    return shown if sound is None else {**shown, "sound": sound}


def _present(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value not in (None, "", [])}
