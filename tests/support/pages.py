"""Records and hostile payloads for the tests and the benchmark of `flexjudge report`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from support.browser import Browser

_TAGS = """
<script>alert(1)</script>
<SCRIPT SRC=http://127.0.0.1:9/x.js></SCRIPT>
<scr<script>ipt>alert(1)</scr</script>ipt>
<img src=x onerror=alert(1)>
<img src="http://127.0.0.1:9/pixel.png">
<svg onload=alert(1)>
<svg><script>alert(1)</script></svg>
<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>
<iframe src="javascript:alert(1)"></iframe>
<iframe srcdoc="<script>parent.alert(1)</script>"></iframe>
<object data="data:text/html,<script>alert(1)</script>"></object>
<embed src="http://127.0.0.1:9/x.swf">
<link rel=stylesheet href=http://127.0.0.1:9/x.css>
<style>* { display: none }</style>
<meta http-equiv=refresh content="0;url=http://127.0.0.1:9/">
<base href="http://127.0.0.1:9/">
<form action="http://127.0.0.1:9/"><input autofocus onfocus=alert(1)>
<video><source onerror=alert(1)></video>
<details open ontoggle=alert(1)>
<template><script>alert(1)</script></template>
<a href="javascript:alert(1)">click</a>
<body onload=alert(1)>
</div></article></main><h1>forged</h1>
<!-- comment
--><script>alert(1)</script><!--
<![CDATA[<script>alert(1)</script>]]>
<?xml version="1.0"?><x/>
<plaintext>
<noscript><p title="</noscript><img src=x onerror=alert(1)>">
<textarea><script>alert(1)</script>
<xmp><script>alert(1)</script></xmp>
<title></title><script>alert(1)</script>
""".strip().split("\n")
_BREAKS = [
    "</script><script>alert(1)</script>",
    "</SCRIPT ><script>alert(1)</script>",
    "<!--<script>",
    "</script\n>",
    "]]></script>",
    '"}]}</script><script>alert(1)//',
    "\\u003c/script>\\u003cscript>alert(1)\\u003c/script>",
    '","rows":[],"x":"',
    "\\",
    '\\"',
    "\u2028alert(1)\u2029",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "` onmouseover=`alert(1)",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    "x=y autofocus onfocus=alert(1)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "&quot; onload=&quot;alert(1)",
    "&amp;lt;b&amp;gt;",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
    "%3Cscript%3Ealert(1)%3C/script%3E",
]
_TEMPLATES = [
    "{{ 7 * 7 }}",
    "{{ config }}{{ self.__init__.__globals__ }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{# hidden #}",
    "${alert(1)}",
    "#{7*7}",
    "__proto__",
    "constructor",
]
_ADDRESSES = [
    "javascript:alert(1)",
    "http://127.0.0.1:9/x?y=1&z=2",
    "![x](http://127.0.0.1:9/x.png)",
    "url(http://127.0.0.1:9/x.png); background: red",
]
_CHARACTERS = [
    "\u202egnp.exe",
    "\u2066\u202d\u2069 isolate",
    "zero\u200b\u200d\ufeffwidth",
    "nul\x00and\x08back",
    "\x1b[2J\x1b]8;;http://127.0.0.1:9/\x07link\x1b]8;;\x07",
    "half \ud83d a pair",
    "e" + "\u0301" * 400,
    "w" * 9_000,
    "\n" * 500 + "below",
    "\r\n\x0b\x0c\x85",
    '=HYPERLINK("http://127.0.0.1:9/","x")',
    "@SUM(1+1)*cmd|' /C calc'!A0",
]
PAYLOADS = [*_TAGS, *_BREAKS, *_TEMPLATES, *_ADDRESSES, *_CHARACTERS]
BENIGN = "a plain text"
DIGEST = "ab" * 32


def line(text: str = BENIGN, group: str = "g", place: int = 0, step: int | None = 0, **other: Any) -> dict[str, Any]:
    """A line of a record with `text` as question, answer, reference, rubric, reply, group, judge and time."""
    return {
        "time": text,
        "judge": {"model": text, "format": "Pointwise", text: text},
        "question": [{"image": DIGEST}, text],
        "candidates": [[text]],
        "reference": [text],
        "rubric": text,
        "scores": [7.0],
        "scale": [1.0, 10.0],
        "failure": None,
        "replies": [{"text": text, "finish_reason": "stop", "completion_tokens": 9, "cached": False}],
        "step": step,
        "group": f"{group} {text}",
        "rows": [[0, place]],
        **other,
    }


def failed(text: str = BENIGN, kind: str = "truncated", **other: Any) -> dict[str, Any]:
    """A line about a judgement that failed, with `text` as the reason."""
    return line(text, **{"scores": None, "failure": {"kind": kind, "detail": text}, **other})


def hostile(payloads: Iterable[str]) -> list[dict[str, Any]]:
    """A group of a scored and a failed judgement for each payload."""
    return [
        one
        for index, text in enumerate(payloads)
        for one in (line(text, str(index)), failed(text, group=str(index), place=1))
    ]


def write(path: Path, lines: Iterable[dict[str, Any]], pictures: bool = True) -> Path:
    """A record with the thumbnail of `DIGEST`."""
    import PIL.Image

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    if pictures:
        folder = path.with_suffix(".media")
        folder.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (8, 8), (200, 30, 30)).save(folder / f"{DIGEST}.jpg")
    return path


def training(count: int, size: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """A training run of `count` judgements in groups of `size`, some of which fail; texts are as long as usual."""
    rng, lines = random.Random(seed), []
    words = [f"word{number}" for number in range(400)]

    def prose(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    for number in range(0, count, size):
        question = prose(8, 40)
        for place in range(min(size, count - number)):
            step = number // (size * 16)
            reply = {"text": f"<think>{prose(50, 140)}</think>", "finish_reason": "stop", "completion_tokens": 120}
            one = line(prose(5, 70), "", place, step)
            one |= {
                "group": f"{number:016x}",
                "question": [{"image": f"{number // size:064x}"}, question],
                "reference": None,
                "rubric": None,
            }
            one |= {
                "judge": {"model": "judge"},
                "scores": [float(rng.randint(1, 10))],
                "time": "now",
                "replies": [reply],
            }
            if rng.random() < 0.03:
                kind = rng.choice(["truncated", "malformed", "timeout"])
                one |= {"scores": None, "failure": {"kind": kind, "detail": "the token limit cut the reply"}}
            lines.append(one)
    return lines


class Structure(HTMLParser):
    """The elements of a page with their attributes, its texts, and the data island."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Any] = []
        self.texts: list[str] = []
        self.data = ""
        self._island = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))
        self._island = ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        self.elements.append(f"/{tag}")
        self._island = False

    def handle_comment(self, data: str) -> None:
        self.elements.append("comment")

    def handle_decl(self, decl: str) -> None:
        self.elements.append(decl)

    def handle_pi(self, data: str) -> None:
        self.elements.append("instruction")

    def handle_data(self, data: str) -> None:
        if self._island:
            self.data += data
        else:
            self.texts.append(data)


_SIGNATURE = """(() => {
  const list = document.getElementById('list'), seen = [];
  const about = (e) => e.tagName + [...e.attributes].map((a) => a.name + '=' + a.value).join() + e.childElementCount;
  list.dispatchEvent(new KeyboardEvent('keydown', {key: 'Home'}));
  const shape = () => [...document.querySelectorAll('*')].filter((e) => e.tagName !== 'META').map(about).join('\\n');
  for (let at = 0; at < COUNT; at++) {
    seen.push(shape().replaceAll(/ (?:id|aria-posinset)=[^,]*/g, ''));
    list.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowDown'}));
  }
  return seen;
})()"""


def changes(browser: Browser, hostile_page: Path, benign_page: Path, count: int) -> Sequence[int]:
    """The groups with which a page of payloads differs from a page of plain texts, in its elements or attributes."""
    browser.open(hostile_page.as_uri())
    found = browser.evaluate(_SIGNATURE.replace("COUNT", str(count)))
    said, asked = [*browser.said], [*browser.asked]
    browser.open(benign_page.as_uri())
    plain = browser.evaluate(_SIGNATURE.replace("COUNT", str(count)))
    assert (said, asked) == ([], [hostile_page.as_uri()]), (said, asked)
    return [index for index, (one, other) in enumerate(zip(found, plain, strict=True)) if one != other]


def photos(record: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Thumbnails of the pictures of `lines`, with as much detail as photographs have."""
    import numpy as np
    import PIL.Image

    from flexjudge_reward.media.image import thumbnail

    folder, numbers = record.with_suffix(".media"), np.random.default_rng(0)
    for digest in dict.fromkeys(one["question"][0]["image"] for one in lines):
        coarse, fine = (numbers.integers(0, 256, (side, side * 4 // 3, 3), dtype=np.uint8) for side in (6, 120))
        soft, grain = (PIL.Image.fromarray(one).resize((640, 480)) for one in (coarse, fine))
        folder.joinpath(f"{digest}.jpg").write_bytes(thumbnail([PIL.Image.blend(soft, grain, 0.12)]))
