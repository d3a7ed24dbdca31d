"""Pairs as a data set: read from any folder with its images and reasoning, pushed as it is, with a card to share."""

from __future__ import annotations

import json
import re
import shlex
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, HfApi
from PIL import Image
from pyarrow.parquet import read_table

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Judge,
    MissingExtra,
    Pairwise,
    Pointwise,
    Request,
    ScriptedEngine,
    annotate_file,
)
from flexjudge_reward.cli.judging import judge_config, row_options
from flexjudge_reward.cli.main import _parser
from flexjudge_reward.data.rows import Rows
from flexjudge_reward.offline import dataset
from flexjudge_reward.offline.annotate import layer_settings
from flexjudge_reward.offline.card import Making, _named
from flexjudge_reward.offline.pairs import pair_format
from flexjudge_reward.report.render import report
from support.hub import fake_hub
from support.images import saved
from support.judging import candidates, grade, tags
from support.late import late

datasets = late("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


def thoughtful(request: Request) -> str:
    """Scores a text by the number it begins with, two images by their shades, and says why."""
    texts = [text for text in candidates(request) if text[:1].isdecimal() and text[0] != "0"]
    if not texts:
        shades = [media.images()[0].getpixel((0, 0))[0] // 25 for media in request.prompt.media[-2:]]  # type: ignore[index]
        return tags(*shades)
    return f"<think>because of {' and '.join(texts)}</think>{tags(*map(grade, texts)).split('</think>')[1]}"


def shade(value: int, size: tuple[int, int] = (8, 8), form: str = "PNG") -> bytes:
    return saved(Image.new("RGB", size, (value, value, value)), form)


def row(number: object, *answers: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "question": "0 q", "candidates": list(answers), **more}


def annotated(folder: Path, rows: list[Any], format: Any = None, **options: Any) -> Path:
    """The data set of these rows, whose media are in `folder`."""
    (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    judge = Judge(format or Pointwise(), ScriptedEngine(thoughtful))
    annotate_file(folder / "in.jsonl", judge, folder / "pairs", media_root=folder, **options)
    return folder / "pairs"


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


# ---------------------------------------------------------------- what is read back


@pytest.mark.usefixtures("elsewhere")
def test_images_and_the_reasoning_of_both_sides_are_read_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(shade(50, (16, 8)))
    (tmp_path / "b.jpg").write_bytes(shade(90, form="JPEG"))
    folder = annotated(tmp_path, [row(1, "5 a", "9 b", images=["a.png"]), row(2, "5 c", "8 d", images=["b.jpg"])])
    (tmp_path / "a.png").unlink()
    (moved := tmp_path / "moved").mkdir()
    folder.rename(moved / "pairs")
    found = datasets.load_dataset(str(moved / "pairs"), split="train")
    first, second = found
    assert first["prompt"] == [{"role": "user", "content": "0 q"}] and first["id"] == 1
    assert first["chosen"] == [{"role": "assistant", "content": "9 b"}]
    assert first["images"][0].size == (16, 8) and second["images"][0].format == "JPEG"
    assert first["reasoning"] == ["because of 9 b", "because of 5 a"]
    assert (second["score_chosen"], second["score_rejected"]) == (8, 5)
    raw = found.cast_column("images", datasets.List(datasets.Image(decode=False)))[1]["images"][0]
    assert raw["bytes"] == shade(90, form="JPEG") and raw["path"] is None


def test_reasoning_of_a_comparison_is_one_text(tmp_path: Path) -> None:
    folder = annotated(tmp_path, [row(1, "5 a", "9 b")], Pairwise())
    (pair,) = datasets.load_dataset(str(folder), split="train")
    (text,) = pair["reasoning"]
    assert sorted(text.split("\n\n")) == ["because of 5 a and 9 b", "because of 9 b and 5 a"]


@pytest.mark.parametrize("form", ["rows", "conversations"])
def test_image_candidates_are_images(tmp_path: Path, form: str) -> None:
    for name, value in (("dark", 50), ("bright", 200)):
        (tmp_path / f"{name}.png").write_bytes(shade(value))
    question = (
        "a square" if form == "rows" else [{"role": "system", "content": "draw"}, {"role": "user", "content": "q"}]
    )
    folder = annotated(
        tmp_path, [row("x", {"image": "dark.png"}, {"image": "bright.png"}, question=question)], Pairwise()
    )
    (pair,) = datasets.load_dataset(str(folder), split="train")
    assert pair["prompt"] == question and pair["id"] == "x"
    assert pair["chosen"].getpixel((0, 0)) == (200,) * 3 and pair["rejected"].getpixel((0, 0)) == (50,) * 3


BLOCK = [{"text": "0 look"}, {"type": "image", "image": "a.png"}, {"text": "0 here"}]
PLACE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "0 q"}]}]


@pytest.mark.parametrize(
    ("question", "images", "blocks", "sizes"),
    [
        pytest.param(BLOCK, None, ["text", "image", "text"], [16], id="inside"),
        pytest.param(PLACE, ["a.png"], ["image", "text"], [16], id="place"),
        pytest.param(PLACE, ["b.png"], ["image", "text"], [8], id="other_place"),
        pytest.param(BLOCK, ["b.png"], ["image", "text", "image", "text"], [8, 16], id="before_and_inside"),
    ],
)
def test_every_image_of_a_prompt_has_its_place(
    tmp_path: Path, question: Any, images: Any, blocks: list[str], sizes: list[int]
) -> None:
    (tmp_path / "a.png").write_bytes(shade(50, (16, 8)))
    (tmp_path / "b.png").write_bytes(shade(50, (8, 8)))
    more = {} if images is None else {"images": images}
    rows = [row(1, "5 a", "9 b", question=question, **more), row(2, "5 a", "9 b")]  # the second has a text
    first, second = datasets.load_dataset(str(annotated(tmp_path, rows)), split="train")
    assert [block["type"] for block in first["prompt"][0]["content"]] == blocks
    assert [image.size[0] for image in first["images"]] == sizes
    assert first["prompt"][0]["content"][-1]["text"].startswith("0 ")
    assert second["prompt"][0]["content"] == [{"type": "text", "text": "0 q"}] and second["images"] == []


def test_conversations_tools_odd_texts_and_images_of_answers_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(shade(50))
    call = [{"name": "look", "arguments": {"at": [1, "a"]}}]
    question = [
        {"role": "user", "content": "0 q"},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": [{"animal": "cat"}], "name": "look"},
    ]
    answers = ["5 a \ud83d", [{"text": "9 世界"}]]
    pictured = [[{"text": "9 this"}, {"image": "a.png"}], [{"text": "1 none"}, {"image": "a.png"}]]
    rows = [row({"a": 1}, *answers, question=question), row(2, *pictured)]
    first, second = datasets.load_dataset(str(annotated(tmp_path, rows)), split="train")
    assert first["prompt"][1]["tool_calls"] == call and first["prompt"][2]["name"] == "look"
    assert json.loads(first["prompt"][2]["content"][0]["text"]) == [{"animal": "cat"}]
    assert first["id"] == '{"a": 1}' and second["id"] == "2"
    assert first["chosen"][0]["content"][0]["text"] == "9 世界" and "?" in first["rejected"][0]["content"][0]["text"]
    assert [block["type"] for block in second["chosen"][0]["content"]] == ["text", "image"]
    assert len(second["chosen_images"]) == len(second["rejected_images"]) == 1 and "images" not in second


def test_a_large_data_set_has_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [f"{number}.png" for number in range(5)]
    for number, name in enumerate(images):
        (tmp_path / name).write_bytes(shade(number * 20))
    monkeypatch.setattr(dataset, "SHARD_BYTES", 2 * len(shade(20)))
    rows = [row(n, "5 a", "9 b", images=[name]) for n, name in enumerate(images)]
    folder = annotated(tmp_path, rows)
    assert len(list((folder / "data").iterdir())) == 3
    assert sorted(datasets.load_dataset(str(folder), split="train")["id"]) == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- interrupted, repeated, refused


class Killed(BaseException):
    """As sudden as a signal: nothing handles it."""


def test_a_kill_while_the_data_set_is_written_costs_no_judgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(n, f"{n % 4 + 1} a", "9 b") for n in range(70)]
    replace = Path.replace
    for name in ("data", "README.md", "pairs.jsonl"):

        def killed(self: Path, target: Path, name: str = name) -> Path:
            if Path(target).name == name:
                raise Killed
            return replace(self, target)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Path, "replace", killed)
            annotated(tmp_path, rows)
    engine = ScriptedEngine(lambda request: pytest.fail("judged again"))
    monkeypatch.setattr("flexjudge_reward.offline.annotate._fingerprint", lambda *_: read_run(tmp_path / "pairs"))
    annotate_file(tmp_path / "in.jsonl", Judge(Pointwise(), engine), tmp_path / "pairs", media_root=tmp_path)
    assert len(datasets.load_dataset(str(tmp_path / "pairs"), split="train")) == 70
    assert {path.name for path in (tmp_path / "pairs").iterdir()} == {
        "README.md", "data", "pairs.jsonl", "pairs.skipped.jsonl"
    }  # fmt: skip


def read_run(folder: Path) -> str:
    return str(json.loads((folder / "pairs.jsonl.progress").read_text())["run"])


def test_what_is_read_is_that_folder_as_it_is_now(tmp_path: Path) -> None:
    """`load_dataset` keeps what it read; it must not give the pairs of an earlier run, or of a folder of that name."""
    (tmp_path / "other").mkdir()
    first = annotated(tmp_path, [row(n, "5 a", "9 b") for n in range(3)])
    other = annotated(tmp_path / "other", [row(5, "5 a", "9 b")])
    assert [datasets.load_dataset(str(folder), split="train")["id"] for folder in (first, other)] == [[0, 1, 2], [5]]
    assert datasets.load_dataset(str(annotated(tmp_path, [row(7, "5 a", "9 b")])), split="train")["id"] == [7]


VIDEOS = [row(1, [{"video": "a.mp4"}], [{"video": "b.mp4"}])]
REFUSED = {
    "foreign_files": ([], "pairs/thesis.tex", None, "has other files in it"),
    "a_file": ([], "pairs", None, "is a file"),
    "videos": (VIDEOS, None, None, "texts and images only: give a .jsonl file"),
    "hub_name": ([], None, "a/b/c", "the data set 'a/b/c' of the Hub cannot be written"),
    "no_network": ([], None, "me/pairs", r"cannot be written: .*log in with `hf auth login`"),
}


@pytest.mark.parametrize(("rows", "there", "push_to_hub", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_an_error_before_anything_is_judged(
    tmp_path: Path, rows: list[Any], there: str | None, push_to_hub: str | None, message: str
) -> None:
    if there is not None:
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        annotated(tmp_path, rows or [row(1, "5 a", "9 b")], push_to_hub=push_to_hub)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "in.jsonl"])


DRAWN = [{"image": "dark.png"}, {"image": "bright.png"}]
EDIT = [{"text": "0 edit"}, {"image": "dark.png"}]
FORMS = {
    "images_after_texts": ([row(1, "5 a", "9 b"), row(2, *DRAWN)], "images of a prompt, .* first row messages"),
    "texts_after_images": ([row(1, *DRAWN), row(2, "5 a", "9 b")], "messages, .* first row images of a prompt"),
    "conversation_after_prompt": ([row(1, *DRAWN), row(2, *DRAWN, question=EDIT)], "images of a conversation"),
}


@pytest.mark.parametrize("strict", [False, True], ids=["skipped", "strict"])
@pytest.mark.parametrize(("rows", "message"), FORMS.values(), ids=FORMS)
def test_rows_that_one_table_cannot_hold_are_found_before_they_are_judged(
    tmp_path: Path, rows: list[Any], message: str, strict: bool
) -> None:
    for name, value in (("dark", 50), ("bright", 200)):
        (tmp_path / f"{name}.png").write_bytes(shade(value))
    if strict:
        with pytest.raises(ConfigError, match=f"line 2: its pairs are {message}"):
            annotated(tmp_path, rows, Pairwise(), strict=True)
        assert not (tmp_path / "pairs").exists()
        return
    folder = annotated(tmp_path, rows, Pairwise())
    assert datasets.load_dataset(str(folder), split="train")["id"] == [1]
    (skipped,) = map(json.loads, (folder / "pairs.skipped.jsonl").read_text().splitlines())
    assert (skipped["id"], skipped["why"]) == (2, "row") and re.search(message, skipped["detail"])


ODD = [{"role": "user", "content": "0 q", "name": "\ud83d", "\ud83d": 1}]


@pytest.mark.parametrize(
    ("rows", "ids"),
    [
        pytest.param([row(2**63 - 1, "5 a", "9 b")], [2**63 - 1], id="largest_whole_number"),
        pytest.param([row(2**70, "5 a", "9 b"), row(1, "5 a", "9 b")], [str(2**70), "1"], id="larger_number"),
        pytest.param([row(1, *DRAWN, question=EDIT)], [1], id="image_in_the_prompt_of_images"),
        pytest.param([row(1, "5 a", "9 b", question=ODD)], [1], id="half_a_character_beside_a_content"),
    ],
)
def test_no_usable_row_fails_when_the_data_set_is_written(tmp_path: Path, rows: list[Any], ids: list[Any]) -> None:
    for name, value in (("dark", 50), ("bright", 200)):
        (tmp_path / f"{name}.png").write_bytes(shade(value))
    assert datasets.load_dataset(str(annotated(tmp_path, rows, Pairwise())), split="train")["id"] == ids


def test_without_pairs_the_data_set_is_empty_and_is_not_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = fake_hub(monkeypatch)
    with pytest.raises(EngineError, match="nothing was pushed to me/pairs: no pair was kept"):
        annotated(tmp_path, [row(1, "5 a", "5 b")], push_to_hub="me/pairs")
    assert not pushed.get("me/pairs")
    with pytest.raises(ValueError, match="corresponds to no data"):  # and no skipped pair as a row
        datasets.load_dataset(str(tmp_path / "pairs"), split="train")
    found = read_table(tmp_path / "pairs" / "data" / "train-00000-of-00001.parquet")
    assert len(found) == 0 and {"prompt", "chosen", "rejected"} <= set(found.column_names)


def test_without_datasets_a_folder_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'flexjudge-reward\[datasets\]'"):
        annotated(tmp_path, [row(1, "5 a", "9 b")])


# ---------------------------------------------------------------- the card


CARD_PARTS = [
    "license: apache-2.0",
    "size_categories:\n- n<1K",
    "# Preference pairs of in.jsonl",
    "3 pairs from 4 rows; the best of each row",
    "with a margin of at least 1.",
    "* format: pairwise, both orders, the pairs of a row",
    "* rubric: ",
    "* licence: apache-2.0",
    "flexjudge annotate in.jsonl -o pairs --pairs best --margin 1 --format pairwise",
    "flexjudge_reward 0.",
    "| tie | 1 | equal scores |",
    "because of",
    "### Row 1: 9 against 5",
]


def test_the_card_says_how_the_pairs_were_made_and_shows_three(tmp_path: Path) -> None:
    rows = [row(1, "5 a", "9 b"), row(2, "6 a", "8 b"), row(3, "5 a", "5 b"), row(4, "1 a", "9 b")]
    folder = annotated(tmp_path, rows, Pairwise(), margin=1.0, license="apache-2.0")
    text = (folder / "README.md").read_text()
    assert [part for part in CARD_PARTS if part not in text] == []
    bars = [line.split() for line in text.splitlines() if " to " in line and "#" in line]
    assert [(float(bar[0]), bar[-1]) for bar in bars] == [(2.0, "1"), (3.8, "1"), (7.4, "1")]
    assert text.count("\n### Row ") == 3
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and {"dpo", "flexjudge-reward"} <= set(card.data.tags)


SETTINGS = {
    "defaults": "",
    "sampling": "--temperature 0.7 --max-tokens 77 --seed 5",
    "rubric": "--rubric image-quality",
    "texts": "--prompt-set flex",
    "pairs": "--format pairwise",
    "schedule": "--format pairwise --schedule swiss --budget 3",
    "lists": "--format listwise --prompt-set flex",
    "votes_then_swap": "--format pairwise --votes 3 --temperature 1",
    "swap_then_votes": "--format pairwise --votes 3 --temperature 1 --position-swap --min-confidence 0.6",
    "swap_margin": "--format pairwise --position-swap --swap-margin 2.0",
    "expected_score": "--expected-score --min-confidence 0.5",
    "thought_is_not_cut": "--answer-tokens 0",
    "own_answer_first": "--commit-first --prompt-set flex",
    "checklist": "--format checklist --criteria-per-call 2 --prompt-set flex",
    "unseen_columns": "--ignored-columns depth,mask --completion all",
}


@pytest.mark.parametrize("flags", SETTINGS.values(), ids=SETTINGS)
def test_the_command_of_the_card_makes_the_same_judge(tmp_path: Path, flags: str) -> None:
    (source := tmp_path / "rows@2 (final).jsonl").write_text("")

    def made(words: list[str]) -> tuple[Making, object]:
        assert words[0] == "flexjudge"
        given = _parser().parse_args(words[1:])
        with judge_config(given).build() as judge:
            judge = judge.with_format(pair_format(judge.format))
        options = row_options(given)
        settings = [layer_settings(layer) for layer in judge.format.layers()], judge.sampling, options
        return Making(Rows(source, **options), judge, given.pairs, given.margin, options, None), settings

    making, settings = made(f"flexjudge annotate x --model nano {flags}".split())
    words = shlex.split(making.command())
    assert words[2] == source.name and made(words)[1] == settings


def test_the_command_of_the_card_names_no_place_of_the_user_and_no_model_without_one(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('criteria = "Is it short?"')
    (source := tmp_path / "in.jsonl").write_text("")
    judge = Judge(Pointwise(tmp_path / "own.toml"), ScriptedEngine([]))
    making = Making(Rows(source), judge, "all", 0.0, {"media_root": tmp_path}, None)
    assert "--rubric RUBRIC" in making.command() and "--media-root FOLDER" in making.command()
    assert "--model" not in making.command() and "None" not in making.card([], Counter()).split("## Margins")[0]


HOSTILE = "9 b\n```\n# Heading\n<script>alert(1)</script> ![x](http://evil.example/x.png)\n~~~~\n---"


@pytest.mark.parametrize("output", ["pairs", "pairs.jsonl"])
def test_no_host_no_local_path_and_no_markup_of_a_row_reaches_the_card(
    tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(shade(50))
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row(1, "5 a", HOSTILE, images=[str(tmp_path / "a.png")])) + "\n")

    class Served(ScriptedEngine):
        """As a server says it: its model is a folder there."""

        def identity(self) -> dict[str, object]:
            return {
                "engine": "server",
                "base_url": "http://10.0.0.7:8001/v1",
                "model": "m",
                "root": "/data/models/judge",
            }

    judge = Judge(Pointwise(), Served(thoughtful))
    annotate_file(source, judge, tmp_path / output, media_root=tmp_path)
    card = (tmp_path / output / "README.md" if output == "pairs" else tmp_path / "pairs.md").read_text()
    assert "* judge: judge" in card and "--model judge --base-url ADDRESS" in card and "[image]" in card
    for secret in (str(tmp_path), socket.gethostname(), "10.0.0.7", "/data/models", "8001"):
        assert secret not in card
    inside, fences = False, []
    for line in card.splitlines():
        if line.startswith("```") and (not inside or line == fences[-1]):
            inside, fences = not inside, [*fences, line.removesuffix("text")]
        elif "Heading" in line or "script" in line or "evil" in line:
            assert inside, line
    assert not inside


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("org/name", "org/name"),
        ("nano", "nano"),
        ("/data/x/judge", "judge"),
        ("./judge", "judge"),
        ("C:\\models\\judge", "judge"),
        ("~/judge", "judge"),
        ("file:///data/judge", "judge"),
    ],
)
def test_a_model_in_a_folder_is_named_by_its_folder(model: str, shown: str) -> None:
    assert _named(model) == shown


# ---------------------------------------------------------------- the Hub


def test_only_the_card_and_the_pairs_are_pushed_to_a_private_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed, made = fake_hub(monkeypatch), []
    create = HfApi.create_repo
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **how: made.append((name, how)) or create(self, name))
    (tmp_path / "a.png").write_bytes(shade(50))
    annotated(tmp_path, [row(1, "5 a", "9 b", images=["a.png"]), row(2, "5 a", "5 b")], push_to_hub="me/pairs")
    assert made == [("me/pairs", {"repo_type": "dataset", "private": True, "exist_ok": True})]
    assert pushed == {"me/pairs": {"README.md", "data/train-00000-of-00001.parquet"}}


def test_a_push_that_fails_leaves_the_data_set_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub(monkeypatch)
    monkeypatch.setattr(HfApi, "upload_folder", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(
        EngineError, match=r"push to me/pairs failed \(no route\); .* `hf upload me/pairs .*pairs --repo-type"
    ):
        annotated(tmp_path, [row(1, "5 a", "9 b")], push_to_hub="me/pairs")
    assert len(datasets.load_dataset(str(tmp_path / "pairs"), split="train")) == 1
    with pytest.raises(ConfigError, match="what is pushed is a folder"):
        annotate_file(
            tmp_path / "in.jsonl", Judge(Pointwise(), ScriptedEngine([])), tmp_path / "p.jsonl", push_to_hub="a/b"
        )


def test_the_report_of_a_folder_shows_why_a_pair_was_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(shade(50))
    folder = annotated(tmp_path, [row(1, "5 a", "9 b", images=["a.png"])])
    html = report(folder).html
    assert "because of 9 b" in html and "because of 5 a" in html
