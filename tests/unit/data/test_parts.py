"""Parts of a set, compressed files and CSV: the same rows, in the chosen order."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import ConfigError
from flexjudge_reward.data.rows import BadRow, Row, Rows
from support.late import late

datasets = late("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # after a shuffled stream
    datasets.disable_progress_bars()


COUNT = 20
TEXTS = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(COUNT)]


def any_row(row: Row) -> None:
    """A check that every row passes."""


def read(source: str | Path, **options: Any) -> list[int]:
    """Which of the rows come, by the number in their question."""
    rows = Rows(source, **options)
    known, found = rows.verify(any_row), []
    for row in rows.read(any_row):
        assert isinstance(row, Row)
        found.append(int(str(row.example.question[0])[1:]))
    assert known in (None, len(found))
    return found


def as_lines(folder: Path) -> Path:
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in TEXTS))
    return folder / "in.jsonl"


def as_gzip(folder: Path) -> Path:
    (folder / "in.jsonl.gz").write_bytes(gzip.compress(as_lines(folder).read_bytes()))
    return folder / "in.jsonl.gz"


def as_csv(folder: Path) -> Path:
    (folder / "in.csv").write_text("question,answer\r\n" + "".join(f'q{n},"a\n{n}"\r\n' for n in range(COUNT)))
    return folder / "in.csv"


def as_parquet(folder: Path) -> Path:
    datasets.Dataset.from_list(TEXTS).to_parquet(folder / "in.parquet")
    return folder / "in.parquet"


def as_folder(folder: Path) -> Path:
    (folder / "set").mkdir()
    for number, part in enumerate((TEXTS[:7], TEXTS[7:])):
        datasets.Dataset.from_list(part).to_parquet(folder / "set" / f"train-{number}.parquet")
    return folder / "set"


def as_saved(folder: Path) -> Path:
    halves = {"train": datasets.Dataset.from_list(TEXTS[:15]), "test": datasets.Dataset.from_list(TEXTS[15:])}
    datasets.DatasetDict(halves).save_to_disk(folder / "saved")
    return folder / "saved"


EVERY = [as_lines, as_gzip, as_csv, as_parquet, as_folder]


@pytest.mark.parametrize("stored", EVERY)
def test_limit_takes_the_first_rows_and_a_seed_all_in_one_random_order(
    tmp_path: Path, stored: Callable[[Path], Path]
) -> None:
    source = stored(tmp_path)
    assert read(source) == list(range(COUNT)) and read(source, limit=3) == [0, 1, 2]
    assert read(source, limit=99) == list(range(COUNT))
    one, same, other = (read(source, shuffle_seed=seed) for seed in (1, 1, 2))
    assert one == same != other and sorted(one) == sorted(other) == list(range(COUNT)) and one != sorted(one)
    assert read(source, shuffle_seed=1, limit=4) == one[:4]


@pytest.mark.parametrize("stored", EVERY)
def test_a_row_keeps_its_number_in_any_order(tmp_path: Path, stored: Callable[[Path], Path]) -> None:
    source = stored(tmp_path)
    numbers = [
        {
            row.number: row.entry["question"]
            for row in Rows(source, shuffle_seed=seed).read(any_row)
            if isinstance(row, Row)
        }
        for seed in (None, 3)
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) == COUNT


@pytest.mark.parametrize("seed", [None, 5], ids=["in_order", "shuffled"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        pytest.param("train", range(15), id="whole"),
        pytest.param("train[:4]", range(4), id="first"),
        pytest.param("train[4:6]", range(4, 6), id="middle"),
        pytest.param("train[-3:]", range(12, 15), id="last"),
        pytest.param("train[:-10]", range(5), id="but_the_last"),
        pytest.param("train[20%:40%]", range(3, 6), id="percent"),
        pytest.param("train[10:99]", range(10, 15), id="past_the_end"),
        pytest.param("train[:]", range(15), id="no_bounds"),
        pytest.param("train+test", range(20), id="two"),
        pytest.param("train[:2]+test[1:3]", [0, 1, 16, 17], id="parts_of_two"),
        pytest.param(" train [ :2 ] ", range(2), id="blanks"),
    ],
)
def test_a_split_is_cut_as_datasets_writes_it(tmp_path: Path, split: str, expected: Any, seed: int | None) -> None:
    found = read(as_saved(tmp_path), split=split, shuffle_seed=seed)
    assert sorted(found) == list(expected) and (seed is not None or found == sorted(found))
    rows = Rows(tmp_path / "saved", split=split, shuffle_seed=seed).read(any_row)
    assert len({row.id for row in rows}) == len(found)


@pytest.mark.parametrize("stored", [as_parquet, as_folder])
def test_a_stream_is_cut_too(tmp_path: Path, stored: Callable[[Path], Path]) -> None:
    source = stored(tmp_path)
    for split, expected in (
        ("train[:3]", [0, 1, 2]),
        ("train[18:]", [18, 19]),
        ("train[-2:]", [18, 19]),
        ("train[50%:60%]", [10, 11]),
    ):
        assert read(source, split=split) == expected
    assert [row.number for row in Rows(source, split="train[18:]").read(any_row)] == [18, 19]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        pytest.param("train[3:3]", "the part from 3 to 3 has no rows", id="nothing"),
        pytest.param("train[99:]", "the part from 99 to 20 has no rows", id="behind_the_end"),
        pytest.param("train[a:b]", r"not 'train\[a:b\]', or a part such as train\[:1000\]", id="letters"),
        pytest.param("train[5]", r"not 'train\[5\]'", id="one_number"),
        pytest.param("train[::2]", r"not 'train\[::2\]'", id="steps"),
        pytest.param("train+", "has the splits train; not", id="nothing_behind_plus"),
        pytest.param("dev[:3]", "has the splits train; not", id="other_split"),
    ],
)
def test_a_part_that_is_none_is_named(tmp_path: Path, split: str, message: str) -> None:
    datasets.Dataset.from_list(TEXTS).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match=message):
        Rows(tmp_path / "saved", split=split)


def test_the_order_and_the_part_are_in_the_fingerprint_and_the_name(tmp_path: Path) -> None:
    source = as_parquet(tmp_path)
    made = [
        Rows(source, **options)
        for options in ({}, {"limit": 3}, {"shuffle_seed": 1}, {"split": "train[:3]"}, {"completion": "all"})
    ]  # type: ignore[arg-type]
    assert len({rows.fingerprint() for rows in made}) == 5
    assert str(made[1]) == "in.parquet (limit 3)" and str(made[2]) == "in.parquet (shuffle seed 1)"


# ---------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`org/set` on a Hub that is a folder here, with the sizes of its splits."""
    folder, build = as_folder(tmp_path), datasets.load_dataset_builder
    found = SimpleNamespace(sizes={})

    def builder(name: str, *arguments: Any, **options: Any) -> Any:
        made = build(str(folder), *arguments, **options)
        sizes = {name: datasets.SplitInfo(name, num_examples=n) for name, n in found.sizes.items()}
        made.info.splits = datasets.SplitDict(sizes)
        return made

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    return found


def test_a_hub_stream_is_cut_limited_and_shuffled_by_its_buffer(hub: SimpleNamespace) -> None:
    assert read("org/set", split="train[:3]") == [0, 1, 2] and read("org/set", split="train[18:]") == [18, 19]
    assert read("org/set", limit=2) == [0, 1]
    shuffled = read("org/set", shuffle_seed=1)
    assert shuffled == read("org/set", shuffle_seed=1) != sorted(shuffled) == list(range(COUNT))
    with pytest.raises(ConfigError, match=r"not known: cut it with whole numbers, such as train\[:1000\]"):
        Rows("org/set", split="train[:10%]")
    hub.sizes = {"train": COUNT}
    assert read("org/set", split="train[:10%]") == [0, 1] and read("org/set", split="train[-1:]", limit=5) == [19]


# ---------------------------------------------------------------- compressed files and CSV


def test_zst_needs_its_package_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.jsonl.zst").write_bytes(as_lines(tmp_path).read_bytes())
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(
        ConfigError, match="needs the package zstandard: pip install zstandard, or unpack the file first"
    ):
        Rows(tmp_path / "in.jsonl.zst")


@pytest.fixture
def zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the package, with the compression of zlib."""
    made = SimpleNamespace(decompressobj=zlib.decompressobj)
    monkeypatch.setitem(sys.modules, "zstandard", SimpleNamespace(ZstdDecompressor=lambda: made, ZstdError=zlib.error))


@pytest.mark.usefixtures("zstandard")
def test_zst_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    plain, source = as_lines(tmp_path).read_bytes(), tmp_path / "in.jsonl.zst"
    for packed in (zlib.compress(plain), zlib.compress(plain[:100]) + zlib.compress(plain[100:])):
        source.write_bytes(packed)
        assert read(source) == list(range(COUNT)) == sorted(read(source, shuffle_seed=1))
    for damaged in (packed[:-9], packed[:60], b"nothing", packed + b"more"):
        source.write_bytes(damaged)
        with pytest.raises(ConfigError, match="cannot be read"):
            read(source)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        pytest.param(lambda data: data[: len(data) // 2], "cannot be read", id="cut"),
        pytest.param(lambda data: b"no gzip" + data, "cannot be read: Not a gzipped file", id="no_gzip"),
        pytest.param(lambda data: data[:20] + b"\0\0\0\0" + data[24:], "cannot be read", id="changed"),
        pytest.param(lambda data: data[:-8] + bytes(8), "cannot be read after line", id="checksum"),
        pytest.param(lambda data: data + b"more", "cannot be read after line", id="trailing"),
        pytest.param(lambda data: b"", "has no rows", id="empty"),
    ],
)
def test_a_damaged_gzip_file_is_no_short_set(tmp_path: Path, damaged: Callable[[bytes], bytes], message: str) -> None:
    source = as_gzip(tmp_path)
    source.write_bytes(damaged(source.read_bytes()))
    with pytest.raises(ConfigError, match=message):
        read(source)


CSV: dict[str, tuple[bytes, list[str]]] = {
    "quotes": (b'question,answer\n"a ""b"", c",d\n', ['a "b", c']),
    "line_break_in_a_cell": (b'question,answer\n"a\nb",d\n', ["a\nb"]),
    "byte_order_mark": (b"\xef\xbb\xbfquestion,answer\nq,d\n", ["q"]),
    "windows_line_ends": (b"question,answer\r\nq,d\r\n", ["q"]),
    "long_cell": (b"question,answer\n" + b"x" * 200_000 + b",d\n", ["x" * 200_000]),
    "blank_lines": (b"question,answer\n\nq,d\n\n", ["q"]),
    "json_in_a_cell_is_text": (b'question,answer\n"[""a""]",d\n', ['["a"]']),
    "other_columns": (b"n,question,answer\n1,q,d\n", ["q"]),
}


@pytest.mark.parametrize(("text", "questions"), CSV.values(), ids=CSV)
def test_csv_is_read_as_texts(tmp_path: Path, text: bytes, questions: list[str]) -> None:
    for name, data in (("in.csv", text), ("in.csv.gz", gzip.compress(text))):
        (tmp_path / name).write_bytes(data)
        rows = list(Rows(tmp_path / name, strict=True).read(any_row))
        assert [row.example.question[0] for row in rows if isinstance(row, Row)] == questions
        assert [row.number for row in rows] == list(range(len(questions))) == [row.id for row in rows]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"q,d,e\n", id="more_cells"),
        pytest.param(b"q\n", id="fewer_cells"),
        pytest.param(b"\xff,d\n", id="not_utf8"),
        pytest.param(b'"a"b,d\n', id="quotes"),
        pytest.param(b"\xed\xa0\x80,d\n", id="half_a_character"),
    ],
)
def test_a_bad_row_of_csv_is_one_row(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "in.csv").write_bytes(b"question,answer\nfirst,d\n" + bad + b"last,d\n")
    first, broken, last = Rows(tmp_path / "in.csv").read(any_row)
    assert isinstance(broken, BadRow) and broken.number == 1
    assert isinstance(last, Row) and last.example.question == ("last",) and isinstance(first, Row)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        pytest.param("in.csv", b"question,answer,answer\nq,a,b\n", "two columns are named 'answer'", id="a_name_twice"),
        pytest.param(
            "in.csv", b"question;answer\nq;a\n", "separated by ';': save the file with commas", id="semicolons"
        ),
        pytest.param("in.CSV", b"sep=;\nquestion;answer\nq;a\n", "separated by ';'", id="excel"),
        pytest.param("in.csv", "question,answer\nq,a\n".encode("utf-16"), "iconv -f UTF-16", id="utf16"),
        pytest.param("in.csv", b'"question"x,answer\nq,a\n', "names of the columns cannot be read", id="quotes"),
        pytest.param("in.tsv", b"question\tanswer\nq\ta\n", "separated by tabs", id="tabs"),
        pytest.param("in.jsonl", gzip.compress(b"{}"), "is a .gz file: give its name this ending", id="gz"),
        pytest.param("in.jsonl.bz2", b"BZh91AY", "is a .bz2 file: unpack it", id="bz2"),
        pytest.param("in.csv.gz", b"\xfd7zXZ\0", "is a .xz file: unpack it", id="xz"),
        pytest.param("in.csv", b"PK\x03\x04\x14", "is a .zip file: unpack it, or save it as CSV", id="spreadsheet"),
        pytest.param("in.json", b'[{"question": "q", "answer": "a"}]', "one object a line, as in jq", id="json_list"),
    ],
)
def test_a_file_of_another_form_says_what_to_do(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    """Two columns of one name would judge the wrong one in silence."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        Rows(tmp_path / name).verify(any_row)
    assert name in str(caught.value)


def test_columns_without_names_hide_nothing(tmp_path: Path) -> None:
    """Spreadsheets write them behind the last column."""
    (tmp_path / "in.csv").write_text("question,answer,,\nq,a,,\n")
    (row,) = Rows(tmp_path / "in.csv").read(any_row)
    assert isinstance(row, Row) and row.example.candidates == (("a",),)


def test_a_number_beyond_all_floats_is_one_bad_row(tmp_path: Path) -> None:
    lines = [f'{{"question": {question}, "answer": "a"}}\n' for question in ("1" * 400, '"q"')]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    bad, good = Rows(tmp_path / "in.jsonl").read(any_row)
    assert isinstance(bad, BadRow) and isinstance(good, Row)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_at_least_one(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        Rows(as_lines(tmp_path), limit=limit)
