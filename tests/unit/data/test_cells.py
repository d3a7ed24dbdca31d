"""What stands in a cell: pictures as data URIs, paths or addresses, clips as bytes, one reference or several."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import Judge, Media, Pointwise, ScriptedEngine, annotate_file, score_file
from flexjudge_reward.data.messages import Columns, examples
from flexjudge_reward.data.rows import Row, Rows
from flexjudge_reward.media.source import kind_of
from support.images import clip, noise, saved
from support.late import late

datasets = late("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(source: Path, **options: Any) -> tuple[dict[str, Any], ScriptedEngine]:
    """The first output row, and the engine that was asked."""
    engine = ScriptedEngine(lambda request: "<think></think><answer>7</answer>")
    score_file(source, Judge(Pointwise(), engine), source.with_name("out.jsonl"), **options)
    return json.loads(source.with_name("out.jsonl").read_text().splitlines()[0]), engine


# ---------------------------------------------------------------- encoded pictures

PNG = saved(noise())
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
IMAGE = Media.image(noise())


@pytest.mark.parametrize("root", [True, False], ids=["with_a_root", "without"])
@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"question": "q", "images": [URI]}, id="images"),
        pytest.param({"question": "q", "images": URI}, id="one_for_a_list"),
        pytest.param({"question": "q", "image": URI}, id="singular"),
        pytest.param({"question": "q", "image": URI.partition(",")[2]}, id="bare_base64"),
        pytest.param({"question": "q", "images": [None, URI, ""]}, id="empty_beside_it"),
        pytest.param({"question": ["q", {"image": URI}]}, id="part"),
        pytest.param({"question": ["q", {"type": "image", "url": URI}]}, id="part_by_url"),
        pytest.param({"question": ["q", {"type": "image"}], "images": [URI]}, id="place"),
        pytest.param({"question": ["q", {"type": "image_url", "image_url": {"url": URI}}]}, id="as-the-api-has-it"),
        pytest.param({"question": ["q", {"type": "image_url", "image_url": URI}]}, id="address-alone"),
        pytest.param(
            {"question": [{"type": "input_text", "text": "q"}, {"type": "input_image", "image_url": URI}]},
            id="newer-api",
        ),
        pytest.param(
            {
                "question": [
                    {"type": "output_text", "text": "q"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": URI.split(",")[1]},
                    },
                ]
            },
            id="anthropic",
        ),
        pytest.param({"question": ["q", {"type": "image", "source": {"type": "url", "url": URI}}]}, id="anthropic-url"),
        pytest.param({"question": [{"from": "human", "value": "<image>q"}], "image": URI}, id="sharegpt"),
        pytest.param({"question": [{"role": "user", "content": ["q", {"image": URI}]}]}, id="message"),
        pytest.param({"question": "q", "image": {"bytes": None, "path": URI}}, id="struct"),
        pytest.param({"question": "q", "images": [URI.replace("data:image", "DATA:image")]}, id="capital_letters"),
    ],
)
def test_a_data_uri_may_be_where_a_path_may(tmp_path: Path, row: dict[str, Any], root: bool) -> None:
    found, engine = score(write(tmp_path / "in.jsonl", {"answer": "a", **row}), media_root=tmp_path if root else None)
    assert found["scores"] == [7] and engine.prompts[0].media == (IMAGE,)


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": URI}}, {"type": "image", "image": URI}])
def test_an_image_that_a_tool_returns_is_shown_as_one(tmp_path: Path, part: dict[str, Any]) -> None:
    """Not as a text of its base64."""
    turns = [{"role": "tool", "content": [part]}, {"role": "assistant", "content": "a"}]
    _, engine = score(write(tmp_path / "in.jsonl", {"question": "q", "answer": turns}))
    assert engine.prompts[0].media == (IMAGE,)


@pytest.mark.parametrize("root", [True, False], ids=["with_a_root", "without"])
@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a.png",
        "http://127.0.0.1:9/a.png",
        "file:///etc/hostname",
        "s3://bucket/a.png",
        "hf://datasets/org/name/a.png",
        "HTTPS://example.org/a.png",
        "gs://bucket/a.png",
    ],
)
def test_an_address_is_never_fetched_and_the_message_says_so(tmp_path: Path, address: str, root: bool) -> None:
    for row in ({"question": "q", "images": [address]}, {"question": ["q", {"image": address}]}):
        source = write(tmp_path / "in.jsonl", {"answer": "a", **row})
        found, engine = score(source, media_root=tmp_path if root else None)
        assert not engine.prompts and found["failures"][0]["kind"] == "media"
        assert "URLs are not fetched" in found["failures"][0]["detail"] and "media-root" not in str(found)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        pytest.param("https://user:canary@example.org/a.png", "https://example.org/a.png", id="login"),
        pytest.param("https://example.org/a.png?sig=canary", "https://example.org/a.png", id="signature"),
        pytest.param("https://canary@example.org/a.png#canary", "https://example.org/a.png", id="user_and_fragment"),
        pytest.param("s3://canary:canary@bucket/a.png", "s3://bucket/a.png", id="other_scheme"),
        pytest.param("https://example.org/?canary", "https://example.org/", id="query_only"),
        pytest.param("https://a:canary@[::1/a.png", "https://[::1/a.png", id="damaged_host"),
    ],
)
def test_logins_and_signatures_of_an_address_are_not_shown(tmp_path: Path, source: str, shown: str) -> None:
    found, _ = score(write(tmp_path / "in.jsonl", {"question": "q", "answer": "a", "images": [source]}))
    assert shown in found["failures"][0]["detail"] and "canary" not in str(found)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        pytest.param("data:image/png;base64,####", "not base64", id="no_base64"),
        pytest.param("data:image/png;base64,", "empty", id="empty"),
        pytest.param("data:image/png,abc", "only data URIs of the form", id="not_encoded"),
        pytest.param("data:image/png;base64,YWJj", "not an image", id="no_image"),
        pytest.param(URI[: len(URI) // 2 // 4 * 4 + 2], "", id="cut"),
        pytest.param("data:", "only data URIs of the form", id="bare"),
    ],
)
def test_a_damaged_data_uri_fails_its_row_only(tmp_path: Path, uri: str, message: str) -> None:
    rows = [{"question": "q", "answer": "a", "images": [one]} for one in (uri, URI)]
    found, engine = score(write(tmp_path / "in.jsonl", *rows))
    assert found["failures"][0]["kind"] == "media" and message in found["failures"][0]["detail"]
    assert len(engine.prompts) == 1


def test_data_uris_and_addresses_are_text_where_a_text_is_expected(tmp_path: Path) -> None:
    _, engine = score(write(tmp_path / "in.jsonl", {"question": URI, "answer": "https://example.org/a.png"}))
    assert not engine.prompts[0].media


MARKS: dict[str, tuple[Any, int, list[str]]] = {
    "one": ("<image>\nWhat?", 1, ["image", "\nWhat?"]),
    "two within the text": ("Is <image> lighter than <image>?", 2, ["Is ", "image", " lighter than ", "image", "?"]),
    "side by side": ("<image><image>Same?", 2, ["image", "image", "Same?"]),
    "in a message": ([{"role": "user", "content": "Look: <image>"}], 1, ["Look: ", "image"]),
    "in a part": ([{"type": "text", "text": "Look: <image>"}, "now"], 1, ["Look: ", "image", "now"]),
    "fewer than images": ("<image>What?", 2, ["image", "image", "<image>What?"]),
    "more than images": ("<image> or <image>?", 1, ["image", "<image> or <image>?"]),
    "beside a place": ([{"type": "image"}, "a <image> tag?"], 1, ["image", "a <image> tag?"]),
    "no images": ("What does <image> do?", 0, ["What does <image> do?"]),
}


@pytest.mark.parametrize(("question", "count", "shown"), MARKS.values(), ids=MARKS)
def test_an_image_is_shown_where_a_mark_in_the_text_says(
    tmp_path: Path, question: Any, count: int, shown: list[str]
) -> None:
    """As LLaVA's sets have it, and so LLaMA-Factory's, ms-swift's and verl's; files and trainers alike."""
    row = {"question": question, "answer": "a", **({"images": [URI] * count} if count else {})}
    (read,) = Rows(write(tmp_path / "in.jsonl", row)).read(lambda row: None)
    assert isinstance(read, Row)
    assert [one if isinstance(one, str) else one.kind for one in read.example.question] == shown
    prompt = question if isinstance(question, str) or "role" in question[0] else [{"role": "user", "content": question}]
    (trained,) = examples([prompt], ["a"], {"images": [[URI] * count]}, Columns())
    assert trained.question == read.example.question


def test_trainers_and_files_read_pictures_alike(tmp_path: Path) -> None:
    for name, cell in (("image", URI), ("images", [URI]), ("images", URI), ("image", [URI, URI])):
        (trained,) = examples(["q"], ["a"], {name: [cell]}, Columns())
        (row,) = Rows(write(tmp_path / "in.jsonl", {"question": "q", "answer": "a", name: cell})).read(lambda row: None)
        assert isinstance(row, Row) and row.example == trained and row.example.media


def test_a_picture_that_is_named_as_a_candidate_is_not_in_the_question(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "q", "image": [{"image": URI}], "images": [{"image": URI}]})
    columns = {"question": ["prompt"], "candidates": ["images"], "image": []}
    (row,) = Rows(source, columns=columns).read(lambda row: None)
    assert isinstance(row, Row) and row.example.question == ("q",) and row.example.candidates == ((IMAGE,),)


# ---------------------------------------------------------------- clips


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("mp4", "mpeg4"),
        ("matroska", "mpeg4"),
        ("avi", "mpeg4"),
        ("mov", "mpeg4"),
        ("mpeg", "mpeg1video"),
        ("flv", "flv1"),
    ],
)
def test_bytes_of_a_clip_are_known_in_every_container(form: str, codec: str) -> None:
    assert kind_of(clip(form, codec, frames=3, rate=25)) == "video"


@pytest.mark.parametrize(
    ("begin", "path", "kind"),
    [
        pytest.param(PNG[:16], None, "image", id="png"),
        pytest.param(b"RIFF\0\0\0\0WEBPVP8 ", None, "image", id="webp"),
        pytest.param(b"\0\0\0\x1cftypavif", None, "image", id="avif"),
        pytest.param(b"RIFF\0\0\0\0WAVEfmt ", None, "audio", id="wav"),
        pytest.param(b"ID3\x03", None, "audio", id="mp3"),
        pytest.param(b"\0\0\0\x1cftypM4A ", None, "audio", id="m4a"),
        pytest.param(b"RIFF\0\0\0\0AVI LIST", None, "video", id="avi"),
        pytest.param(b"\x1aE\xdf\xa3", None, "video", id="webm"),
        pytest.param(b"nothing known", None, "image", id="in_doubt"),
        pytest.param(b"", "a/b.MP4", "video", id="by_name"),
        pytest.param(b"", "a.mp4/b", "image", id="folder_with_an_ending"),
        pytest.param(b"", None, "image", id="nothing"),
    ],
)
def test_what_bytes_are_is_read_from_them(begin: bytes, path: str | None, kind: str) -> None:
    assert kind_of(begin, path) == kind


HEARD = {"array": [0.1] * 800, "sampling_rate": 16_000}


@pytest.mark.parametrize("name", ["audio", "audios"])
@pytest.mark.parametrize(
    ("cell", "count"),
    [
        pytest.param([HEARD], 1, id="one"),
        pytest.param([HEARD, HEARD], 2, id="two"),
        pytest.param([(HEARD["array"], 16_000)], 1, id="a-pair-in-a-list"),
        pytest.param([HEARD, None, ""], 1, id="empty-beside-it"),
        pytest.param([], 0, id="none"),
        pytest.param(None, 0, id="null"),
    ],
)
def test_a_list_of_sounds_is_several(cell: Any, count: int, name: str) -> None:
    (row,) = examples(["q"], ["a"], {name: [cell]}, Columns())
    assert [len(one.samples()) for one in row.media] == [1600] * count


def test_an_array_and_its_rate_are_one_sound() -> None:
    for given in ((HEARD["array"], 16_000), [HEARD["array"], 16_000.0]):
        (row,) = examples(["q"], ["a"], {"audio": [given]}, Columns())
        assert [len(one.samples()) for one in row.media] == [1600]


def test_a_list_of_frames_is_one_video(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "f.png")
    for cell in ({"video": ["f.png", "f.png"]}, {"videos": [["f.png", URI]]}):
        row = {"question": "q", "answer": "a", **cell}
        _, engine = score(write(tmp_path / "in.jsonl", row), media_root=tmp_path)
        if cell.get("video"):
            (video,) = engine.prompts[0].media
            assert video.kind == "video" and len(video.images()) == 2


# ---------------------------------------------------------------- references and lists of texts


@pytest.mark.parametrize(
    ("row", "shown", "glued"),
    [
        pytest.param({"reference": ["cat", "kitty"]}, "right answer 2\nkitty\n", "catkitty", id="references"),
        pytest.param({"reference": ["cat"]}, "\ncat\n", "right answer", id="list_of_one"),
        pytest.param({"reference": [4, 4.5]}, "right answer 1\n4\n", "44", id="numbers"),
        pytest.param({"reference": ["cat", None]}, None, "None", id="null_among_them"),
        pytest.param({"reference": ["cat", ""]}, "\ncat\n", "right answer", id="blank_among_them"),
        pytest.param({"reference": 42}, "\n42\n", "right answer", id="number"),
        pytest.param(
            {"reference": ["a\n```\n", "b"]}, "````right answer 2\nb\n````", "[Reference Answer]\n```right", id="forged"
        ),
        pytest.param({"answer": ["add 2", "divide by 4"]}, "add 2\ndivide by 4", "2divide", id="answer_in_steps"),
        pytest.param({"question": ["hello", "how are you?"]}, "hello\nhow are you?", "hellohow", id="turns_as_texts"),
        pytest.param({"question": [{"text": "a"}, {"text": "b"}]}, "a\nb", "ab\n", id="text_parts"),
        pytest.param({"question": ["see ", "a cat"]}, "see a cat", "see \n", id="space_between"),
        pytest.param({"answer": 4.5}, "\n4.5\n", "'4.5'", id="answer_that_is_a_number"),
    ],
)
def test_texts_of_a_list_never_run_together(tmp_path: Path, row: Any, shown: str | None, glued: str) -> None:
    source = write(
        tmp_path / "in.jsonl", {"question": "What?", "answer": "a cat", **row}, {"question": "q", "answer": "b"}
    )
    found, engine = score(source)
    if shown is None:
        assert "a part is a text" in found["error"]
        return
    text = "".join(getattr(part, "text", str(part)) for part in engine.prompts[0].messages[-1].parts)
    assert shown in text and glued not in text


@pytest.mark.parametrize(
    "cell", [["cat", "kitty"], ["cat"], 42, [1, 2], None, "", " ", [], float("nan")], ids=lambda cell: repr(cell)
)
def test_trainers_and_files_read_references_alike(tmp_path: Path, cell: Any) -> None:
    (trained,) = examples(["q"], ["a"], {"truth": [cell]}, Columns(reference="truth"))
    (row,) = Rows(write(tmp_path / "in.jsonl", {"question": "q", "answer": "a", "reference": cell})).read(
        lambda row: None
    )
    assert isinstance(row, Row) and row.example.reference == trained.reference
    assert (trained.reference is None) == (cell in (None, "", " ", []) or cell != cell)


def test_pairs_are_written_with_the_same_texts(tmp_path: Path) -> None:
    row = {"id": 1, "question": ["0 q", "and?"], "candidates": [["9 a", "b"], 3]}
    engine = ScriptedEngine(lambda request: f"<think></think><answer>{9 if '9 a' in str(request) else 3}</answer>")
    annotate_file(write(tmp_path / "in.jsonl", row), Judge(Pointwise(), engine), tmp_path / "out.jsonl")
    pair = json.loads((tmp_path / "out.jsonl").read_text())
    contents = [pair[name][0]["content"] for name in ("prompt", "chosen", "rejected")]
    assert contents == ["0 q\nand?", "9 a\nb", "3"]
