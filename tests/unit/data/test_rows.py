"""The reader of `score`, `rerank` and `annotate`: files, folders and data sets give the same rows; rows are data."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from flexjudge_reward import (
    ConfigError,
    Judge,
    Media,
    MediaError,
    MissingExtra,
    Pairwise,
    Pointwise,
    ScriptedEngine,
    rerank_file,
    score_file,
)
from flexjudge_reward.data.rows import BadRow, Row, Rows
from flexjudge_reward.data.tables import Table
from support import sounds
from support.images import png_header, saved
from support.late import late

datasets = late("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()


def png(shade: int) -> bytes:
    return saved(Image.new("RGB", (8, 8), (shade, 0, 0)))


def shade(media: Media) -> int:
    return media.images()[0].getpixel((0, 0))[0]  # type: ignore[index, no-any-return]


def write(path: Path, rows: list[dict[str, Any]], **features: Any) -> Path:
    """A parquet file as the Hub has them. `Dataset.to_parquet` would open the paths of images."""
    found = datasets.Dataset.from_list(rows)
    for column, feature in features.items():
        found = found.cast_column(column, feature)
    schema = found.features.arrow_schema
    pq.write_table(found.with_format("arrow")[:].replace_schema_metadata(schema.metadata), path)
    return path


def any_row(row: Row) -> None:
    """A check that every row passes."""


def read(source: str | Path, **options: Any) -> list[Row]:
    """All rows; a bad one is an error."""
    found = Rows(source, **{"strict": True, **options}).read(any_row)
    return [row for row in found if isinstance(row, Row)]


# ---------------------------------------------------------------- sources

TEXTS = [{"id": f"r{n}", "question": f"q{n}", "candidates": [f"a{n}", f"b{n}"]} for n in range(5)]
Stored = Callable[[Path, list[dict[str, Any]]], Path]


def as_lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "in.jsonl"


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).to_parquet(folder / "in.parquet")
    return folder / "in.parquet"


def as_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "set").mkdir()
    for number, part in enumerate((rows[:3], rows[3:])):
        datasets.Dataset.from_list(part).to_parquet(folder / "set" / f"train-{number}.parquet")
    return folder / "set"


def as_saved(folder: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(folder / "splits")
    return folder / "splits"


@pytest.mark.parametrize("stored", [as_lines, as_parquet, as_folder, as_saved, as_saved_splits])
def test_every_source_gives_the_same_rows(tmp_path: Path, stored: Stored) -> None:
    source = Rows(stored(tmp_path, TEXTS))
    assert source.verify(any_row, unique=True) == 5
    rows = list(source.read(any_row))
    assert [(row.id, row.example.question, row.example.candidates) for row in rows] == [
        (f"r{n}", (f"q{n}",), ((f"a{n}",), (f"b{n}",))) for n in range(5)
    ]
    first = 1 if stored is as_lines else 0
    assert [row.number for row in rows] == list(range(first, first + 5))
    assert source.fingerprint() == Rows(source.name).fingerprint()


@pytest.mark.parametrize("stored", [as_lines, as_parquet, as_folder, as_saved])
def test_columns_by_other_names(tmp_path: Path, stored: Stored) -> None:
    rows = [
        {"prompt": "q", "one": "a", "other": "b", "answer": "the truth"},
        {"prompt": "p"} | dict.fromkeys(("one", "other", "answer"), "c"),
    ]
    columns = {"question": ["prompt"], "candidates": ["one", "other"]}
    found = read(stored(tmp_path, rows * 2), columns=columns)
    assert found[0].example.question == ("q",) and found[0].example.candidates == (("a",), ("b",))
    assert [row.id for row in found] == ([None] * 4 if stored is as_lines else [0, 1, 2, 3])


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@pytest.mark.parametrize("stored", [as_lines, as_parquet])
def test_a_lone_chat_message_is_its_content_and_a_longer_conversation_is_enclosed(
    tmp_path: Path, stored: Stored
) -> None:
    row = {"prompt": [message("user", "q")], "chosen": [message("assistant", "a")]}
    row |= {"rejected": [message("assistant", "b")]}
    columns = {"question": ["prompt"], "candidates": ["chosen", "rejected"]}
    (found,) = read(stored(tmp_path, [row]), columns=columns)
    assert found.example.question == ("q",) and found.example.candidates == (("a",), ("b",))
    assert found.entry["candidates"] == ["a", "b"]
    (found,) = read(stored(tmp_path, [{**row, "prompt": row["prompt"] * 2}]), columns=columns)
    assert "".join(map(str, found.example.question)) == "```user\nq\n```\n" * 2
    assert found.entry["question"] == row["prompt"] * 2


@pytest.mark.parametrize("stored", [as_lines, as_parquet])
def test_a_molecule_is_drawn_if_its_part_says_so(tmp_path: Path, stored: Stored) -> None:
    parts: list[Any] = [[{"molecule": "CCO", "as_": form}] for form in ("drawing", "text", None)]
    (found,) = read(stored(tmp_path, [{"question": "q", "candidates": parts}]))
    plain = (Media.molecule("CCO"),)
    assert found.example.candidates == ((Media.molecule("CCO", as_="drawing"),), plain, plain)


# ---------------------------------------------------------------- images of a data set

CHAT = [
    {"role": "system", "content": [{"text": "s", "image": None}]},
    {"role": "user", "content": [{"text": None, "image": png(3)}, {"text": "q", "image": None}]},
]


@pytest.mark.parametrize(
    ("columns", "stored", "named"),
    [
        pytest.param({"images": [png(3)]}, "images", {}, id="list"),
        pytest.param({"image": png(3)}, "image", {"images": ["image"]}, id="one"),
        pytest.param({"image": png(3)}, "", {"images": ["image"]}, id="bare_bytes"),
        pytest.param(
            {"image": {"bytes": png(3), "path": "http://h/x.png"}}, "image", {"images": ["image"]}, id="named"
        ),
        pytest.param({"image": "x.png"}, "", {"images": ["image"]}, id="path"),
        pytest.param(
            {"image": {"bytes": None, "path": "x.png"}}, "image", {"images": ["image"]}, id="struct_with_path"
        ),
        pytest.param({"parts": [{"image": png(3)}, {"text": "q"}]}, "", {"question": ["parts"]}, id="parts"),
        pytest.param(
            {"parts": [{"type": "image", "text": None, "image": {"bytes": None, "path": "x.png"}}]},
            "",
            {"question": ["parts"]},
            id="part_with_path",
        ),
        pytest.param(
            {"chat": CHAT},
            "",
            {"question": ["chat"]},
            id="part_of_a_conversation",
        ),
    ],
)
def test_images_may_be_where_paths_may(
    tmp_path: Path, columns: dict[str, Any], stored: str, named: dict[str, list[str]]
) -> None:
    """`stored` is the column whose type is that of images; others are what Arrow makes of their values."""
    features = {"image": datasets.Image(), "images": datasets.List(datasets.Image())}
    features = {stored: features[stored]} if stored else {}
    (tmp_path / "x.png").write_bytes(png(3))
    write(tmp_path / "in.parquet", [{"question": "q", "answer": "a", **columns}], **features)
    (row,) = read(tmp_path / "in.parquet", columns=named, media_root=tmp_path)
    (image,) = row.example.media
    assert shade(image) == 3


def test_a_row_without_its_image_has_none(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "image": image} for image in (png(3), None)]
    write(tmp_path / "in.parquet", rows, image=datasets.Image())
    assert [len(row.example.media) for row in read(tmp_path / "in.parquet", columns={"images": ["image"]})] == [1, 0]


def test_candidates_may_be_images(tmp_path: Path) -> None:
    rows = [{"prompt": "red", "images": [png(3), png(9)], "jpg_0": png(1), "jpg_1": png(2)}]
    write(tmp_path / "in.parquet", rows, images=datasets.List(datasets.Image()))
    for candidates, shades in ((["images"], [3, 9]), (["jpg_0", "jpg_1"], [1, 2])):
        columns = {"question": ["prompt"], "candidates": candidates, "images": ["images"]}
        (row,) = read(tmp_path / "in.parquet", columns=columns)
        assert [shade(part) for (part,) in row.example.candidates if isinstance(part, Media)] == shades


def test_media_of_a_row_are_read_once(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "images": [png(3)]}]
    (row,) = read(write(tmp_path / "in.parquet", rows, images=datasets.List(datasets.Image())))
    assert row.entry["images"][0] is row.example.media[0] and isinstance(row.entry["images"][0], Media)


# ---------------------------------------------------------------- hostile rows


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that would send an image, and the requests it got."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(3))

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}", requests
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.mark.parametrize(
    "image",
    [
        pytest.param({"bytes": None, "path": "{url}/x.png"}, id="url"),
        pytest.param({"bytes": b"{url}/x.png", "path": None}, id="url_as_bytes"),
        pytest.param({"bytes": None, "path": "../secret.png"}, id="traversal"),
        pytest.param({"bytes": None, "path": "{folder}/secret.png"}, id="absolute"),
        pytest.param({"bytes": None, "path": "file://{folder}/secret.png"}, id="file_url"),
        pytest.param({"bytes": None, "path": "link.png"}, id="link_out_of_the_root"),
        pytest.param({"bytes": None, "path": "zip://x.png::{folder}/secret.zip"}, id="chained_url"),
        pytest.param({"bytes": None, "path": "hf://datasets/org/name/x.png"}, id="hub_path"),
        pytest.param({"bytes": b"../secret.png", "path": "../secret.png"}, id="path_as_bytes"),
        pytest.param({"bytes": bytes(32_000_001), "path": None}, id="huge"),
        pytest.param({"bytes": png_header(5000, 5000), "path": None}, id="too_many_pixels"),
        pytest.param({"bytes": png(3)[:40], "path": None}, id="cut"),
        pytest.param({"bytes": b"", "path": None}, id="empty"),
    ],
)
def test_a_hostile_image_is_never_opened_and_fails_its_row_only(
    tmp_path: Path, server: tuple[str, list[str]], image: dict[str, Any]
) -> None:
    (url, requests), root = server, tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png(3))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    path = image["path"] and image["path"].format(url=url, folder=tmp_path)
    hostile = {"bytes": image["bytes"] and image["bytes"].replace(b"{url}", url.encode()), "path": path}
    rows = [{"question": "q", "answer": "a", "image": one} for one in (hostile, {"bytes": png(3), "path": None})]
    write(tmp_path / "in.parquet", rows, image=datasets.Image())
    engine = ScriptedEngine(lambda request: f"<think>{len(request.prompt.media)}</think><answer>3</answer>")
    options: dict[str, Any] = {"columns": {"images": ["image"]}, "media_root": root}
    score_file(tmp_path / "in.parquet", Judge(Pointwise(), engine), tmp_path / "out.jsonl", **options)
    bad, good = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert bad["failures"][0]["kind"] == "media" and bad["scores"] == [None]
    assert good["failures"] == [None] and good["reasoning"] == ["1"]
    assert requests == []
    with pytest.raises(MediaError):
        read(tmp_path / "in.parquet", **options)[0].example.media[0].load()


def test_a_path_needs_a_root(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "images": [{"bytes": None, "path": "x.png"}]}]
    write(tmp_path / "in.parquet", rows, images=datasets.List(datasets.Image()))
    with pytest.raises(
        ConfigError, match=r"in\.parquet, row 0: image 'x\.png' needs a folder .* give --media-root DIR"
    ):
        read(tmp_path / "in.parquet")


@pytest.mark.parametrize("shuffle_seed", [None, 3])
@pytest.mark.parametrize("entry", ["file_name", "audio_file_name", "audio_file_names", "audios_file_names"])
def test_a_folder_of_sounds_with_a_table_needs_no_torchcodec(
    entry: str, shuffle_seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    (tmp_path / "train").mkdir()
    lines = []
    for number in range(3):
        (tmp_path / "train" / f"{number}.wav").write_bytes(sounds.wav(0.1 * (number + 1)))
        named = [f"{number}.wav"] if entry.endswith("s") else f"{number}.wav"
        lines.append(json.dumps({"question": f"q{number}", "answer": "a", entry: named}) + "\n")
    (tmp_path / "train" / "metadata.jsonl").write_text("".join(lines))
    rows = read(tmp_path, media_root=tmp_path, shuffle_seed=shuffle_seed)
    heard = {row.example.question[-1]: [len(one.samples()) for one in row.example.media] for row in rows}
    assert heard == {"q0": [3200], "q1": [6400], "q2": [9600]}


# ---------------------------------------------------------------- mistakes

ROW = {"question": "q", "candidates": ["a", "b"]}


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        pytest.param(
            {"prompt": "q", "responses": ["a"], "image": png(3)},
            {},
            r"has no column 'question'; it has prompt, responses, image\. Say which it is: --column question=COLUMN",
            id="question",
        ),
        pytest.param(
            {"question": "q", "responses": ["a"]},
            {},
            r"has no column 'candidates'; it has question, responses\. Say which it is: --column candidates=COLUMN",
            id="candidates",
        ),
        pytest.param(ROW, {"columns": {"images": ["img"]}}, "no column 'img'; it has question, candidates", id="named"),
        pytest.param(ROW, {"columns": {"picture": ["x"]}}, "there is no entry 'picture' to name; there", id="entry"),
        pytest.param(ROW, {"split": "test"}, "has the splits train; not 'test'", id="split"),
        pytest.param({**ROW, "id": 0.5}, {}, "row 0: an id is a text or a whole number, found 0.5", id="id"),
        pytest.param({"question": True, "answer": "a"}, {}, "row 0: a part is a text", id="truth"),
        pytest.param({"question": "q", "candidates": "a"}, {}, "row 0: 'candidates' must be a list", id="text"),
        pytest.param({"question": None, "answer": "a"}, {}, "row 0: a part is a text", id="null"),
        pytest.param(
            {**ROW, "videos": [4]}, {"media_root": Path()}, "row 0: the video is given by its path", id="video"
        ),
    ],
)
def test_what_is_wrong_with_a_data_set_is_named(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "in.parquet", **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("none.jsonl", "no file or folder 'none.jsonl'", id="file"),
        pytest.param("data/none.parquet", "no file or folder 'data/none.parquet'", id="file_like_a_name"),
        pytest.param("none", "no file or folder 'none', and a data set of the Hub is named as org/name", id="word"),
        pytest.param("org/none", "no file or folder 'org/none'; as a data set of the Hub: .* cannot be", id="name"),
        pytest.param("broken.parquet", "'broken.parquet' cannot be read: ", id="broken"),
        pytest.param("empty", "'empty' cannot be read: ", id="empty_folder"),
        pytest.param("two", "two has the splits train, test; say which: --split NAME", id="splits"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.parquet").write_bytes(b"PAR1 nothing")
    Path("empty").mkdir()
    datasets.DatasetDict(train=datasets.Dataset.from_list([ROW]), test=datasets.Dataset.from_list([ROW])).save_to_disk(
        "two"
    )
    with pytest.raises(ConfigError, match=message):
        Rows(source)
    assert len(read("two", split="test")) == 1


def test_a_file_of_lines_has_no_splits_and_names_its_entries(tmp_path: Path) -> None:
    source = as_lines(tmp_path, TEXTS)
    with pytest.raises(ConfigError, match="which has no splits"):
        Rows(source, split="train")
    with pytest.raises(ConfigError, match="line 1: the entry 'prompt' is missing; there are id, question, candidates"):
        read(source, columns={"question": ["prompt"]})


def test_an_entry_that_means_something_else_is_left_out(tmp_path: Path) -> None:
    rows = [{**ROW, "id": "same", "rubric": "R4", "reference": 3} for _ in range(2)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "in.parquet")
    left_out: dict[str, list[str]] = {"rubric": [], "reference": []}
    with pytest.raises(ConfigError, match="row 1: the id 'same' is that of row 0, too; --column id= numbers the rows"):
        Rows(tmp_path / "in.parquet", columns=left_out, strict=True).verify(any_row, unique=True)
    assert [row.id for row in read(tmp_path / "in.parquet", columns={**left_out, "id": []})] == [0, 1]


def test_rows_that_stop_coming_are_an_error_with_their_number() -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield ROW
        raise OSError("the line\nwas cut")

    rows = Table("org/name", tuple(ROW), (), None, False, "commit", broken()).rows()
    assert next(rows) == ROW
    with pytest.raises(ConfigError, match="org/name cannot be read after 1 rows: OSError: the line was cut"):
        next(rows)


def test_without_datasets_files_of_lines_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet, lines = as_parquet(tmp_path, TEXTS), as_lines(tmp_path, TEXTS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'flexjudge-reward\[datasets\]'"):
        Rows(parquet)
    assert len(read(lines)) == 5


def test_images_that_the_judge_would_not_see_are_an_error(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "photo": png(3), "views": [png(3)]}]
    parquet = tmp_path / "in.parquet"
    write(parquet, rows, photo=datasets.Image(), views=datasets.List(datasets.Image()))
    with pytest.raises(ConfigError, match=r"'photo' holds images, .*--column images=photo shows them, --ignored-col"):
        Rows(parquet, columns={"images": ["views"]})
    (row,) = Rows(parquet, columns={"images": ["views"]}, ignored_columns="other, photo").read(lambda row: None)
    assert isinstance(row, Row) and len(row.example.media) == 1


def test_a_row_of_a_file_with_media_that_the_judge_would_not_see_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"question": "q", "answer": "a", "look": ["data:image/png;base64,AA"]})
    )
    (row,) = Rows(tmp_path / "in.jsonl").read(lambda row: None)
    assert isinstance(row, BadRow) and "'look' holds images, which the judge would not see" in row.why


@pytest.mark.parametrize("run", [score_file, rerank_file])
def test_an_output_may_not_change_the_input(tmp_path: Path, run: Any) -> None:
    judge = Judge(Pairwise(), ScriptedEngine([]))
    for source, output in ((as_lines(tmp_path, TEXTS), "in.jsonl"), (as_folder(tmp_path, TEXTS), "set/out.jsonl")):
        with pytest.raises(ConfigError, match="would change the input"):
            run(source, judge, tmp_path / output)


def test_rerank_numbers_the_rows_of_a_data_set(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "responses": ["x" * n, "xxxxx"]} for n in (2, 7)]
    judge = Judge(Pairwise(), ScriptedEngine(lambda request: "<think></think><answer>3</answer><answer>8</answer>"))
    columns = {"question": ["prompt"], "candidates": ["responses"]}
    rerank_file(as_parquet(tmp_path, rows), judge, tmp_path / "out.jsonl", columns=columns)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["row"], row["id"], row["best"]) for row in found] == [(0, 0, 1), (1, 1, 1)]
