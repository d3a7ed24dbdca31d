"""`flexjudge annotate` on data sets with pictures in them, and on data sets of the Hub."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets import Dataset, List, load_dataset
from PIL import Image

from flexjudge_reward import ConfigError, EngineError, Generation, Judge, Media, Pair, Prompt, Quoted, Score
from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.engines.transformers import TransformersEngine
from flexjudge_reward.nano import path as nano_path
from flexjudge_reward.offline.annotate import BATCH, annotate_file


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


def jpeg(shade: int, size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(out, "JPEG", quality=95)
    return out.getvalue()


def bright(prompt: Prompt) -> str:
    """Scores a picture by its brightness, a text by the number it begins with."""
    parts = [part for part in prompt.messages[1].parts if isinstance(part, Media | Quoted)]
    kept = parts[-2:] if len(parts) > 2 else parts[-1:]
    scores = [
        round(part.images()[0].getpixel((0, 0))[0] / 25)  # type: ignore[index]
        if isinstance(part, Media)
        else int(part.text.split()[0])
        for part in kept
    ]
    return "<think></think>" + "".join(f"<answer>{max(1, score)}</answer>" for score in scores)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def drawn(path: Path, shades: list[tuple[int | bytes, int | bytes]]) -> Path:
    """A set of two pictures for a prompt, as text-to-image preferences are kept."""
    rows = [
        {"caption": f"a grey square {n}"}
        | {f"jpg_{i}": one if isinstance(one, bytes) else jpeg(one) for i, one in enumerate(two)}
        for n, two in enumerate(shades)
    ]
    found = Dataset.from_list(rows)
    for column in ("jpg_0", "jpg_1"):
        found = found.cast_column(column, datasets.Image())
    found.to_parquet(path)
    return path


COLUMNS = {"question": ["caption"], "candidates": ["jpg_0", "jpg_1"]}


def test_picture_candidates_become_what_a_diffusion_trainer_reads(tmp_path: Path) -> None:
    same = jpeg(90)
    source = drawn(tmp_path / "in.parquet", [(50, 200), (225, 75), (same, same), (b"broken", 90), (b"broken", same)])
    output = tmp_path / "out" / "pairs.jsonl"
    output.parent.mkdir()
    counts = annotate_file(source, Judge(Pair(), ScriptedEngine(bright)), output, columns=COLUMNS)
    assert counts == {"rows": 5, "pairs": 2, "same": 1, "media": 2}
    first, second = read(output)
    assert (first["id"], first["prompt"], first["pair"]) == (0, "a grey square 0", [1, 0])
    for pair, shades in ((first, (200, 50)), (second, (225, 75))):
        for side, shade in zip(("chosen", "rejected"), shades, strict=True):
            assert pair[side].startswith("pairs.media/") and pair[side].endswith(".png")
            with Image.open(output.parent / pair[side]) as picture:
                assert abs(picture.getpixel((0, 0))[0] - shade) < 3  # type: ignore[index, operator]
    assert len(list((output.parent / "pairs.media").iterdir())) == 4, "only what a pair needs is written"
    assert "Preference pairs of in.parquet (question=caption, candidates=jpg_0" in output.with_suffix(".md").read_text()


def test_the_pairs_load_as_a_data_set_with_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = drawn(tmp_path / "in.parquet", [(50, 200), (225, 75)])
    annotate_file(source, Judge(Pair(), ScriptedEngine(bright)), tmp_path / "pairs.jsonl", columns=COLUMNS)
    monkeypatch.chdir(tmp_path)
    found = load_dataset("json", data_files="pairs.jsonl", split="train")
    found = found.cast_column("chosen", datasets.Image()).cast_column("rejected", datasets.Image())
    assert [row["chosen"].size for row in found] == [(8, 8), (8, 8)]
    assert found[0]["rejected"].getpixel((0, 0))[0] < 60


def test_pictures_of_a_question_are_read_as_the_dpo_recipe_reads_them(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "image": jpeg(50, (16, 8)), "responses": ["5 a", "9 b"]} for _ in range(2)]
    Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "in.parquet")
    columns = {"question": ["prompt"], "candidates": ["responses"], "images": ["image"]}
    annotate_file(tmp_path / "in.parquet", Judge(Pair(), ScriptedEngine(bright)), tmp_path / "p.jsonl", columns=columns)
    lines = read(tmp_path / "p.jsonl")
    assert lines[0]["chosen"] == [{"role": "assistant", "content": "9 b"}]
    assert len(list((tmp_path / "p.media").iterdir())) == 1, "equal pictures are one file"
    kept = [
        {name: row[name] for name in ("prompt", "chosen", "rejected")}
        | {"images": [str(tmp_path / picture) for picture in row["images"]]}
        for row in lines
    ]
    loaded = Dataset.from_list(kept).cast_column("images", List(datasets.Image()))
    assert loaded[1]["images"][0].size == (16, 8)


def test_pictures_inside_an_answer_are_content_blocks(tmp_path: Path) -> None:
    parts = [
        [{"type": "text", "text": "9 this "}, {"type": "image", "image": jpeg(9)}],
        [{"text": "1 "}, {"image": jpeg(3)}],
    ]
    rows = [{"question": [{"text": "q"}], "candidates": parts}]
    Dataset.from_list(rows).to_parquet(tmp_path / "in.parquet")
    judge = Judge(Score(), ScriptedEngine(lambda p: f"<think></think><answer>{str(p).count('this') * 5 + 3}</answer>"))
    annotate_file(tmp_path / "in.parquet", judge, tmp_path / "out.jsonl")
    (pair,) = read(tmp_path / "out.jsonl")
    text, picture = pair["chosen"][0]["content"]
    assert text == {"type": "text", "text": "9 this "} and pair["prompt"][0]["content"] == "q"
    assert picture["type"] == "image" and (tmp_path / picture["image"]).is_file()


# ------------------------------------------------------------------------------------------------------ interrupted


class Killed(BaseException):
    """As sudden as a signal: nothing handles it."""


class Stopping:
    """A judge that is killed after so many replies."""

    def __init__(self, after: float = float("inf")) -> None:
        self.left = after

    def __call__(self, prompt: Prompt) -> str:
        if self.left < 1:
            raise Killed
        self.left -= 1
        return bright(prompt)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("killed_at", [0, 200, 300, "picture", "before_picture"])
def test_a_killed_run_leaves_the_pictures_of_an_unbroken_one(
    tmp_path: Path, killed_at: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shades = [(n % 11 * 20 + n % 3, n % 7 * 30 + n % 5) for n in range(BATCH * 2 + 30)]
    source = drawn(tmp_path / "in.parquet", shades)
    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()

    def run(folder: str, after: float = float("inf")) -> None:
        judge = Judge(Pair(), ScriptedEngine(Stopping(after)))
        annotate_file(source, judge, tmp_path / folder / "pairs.jsonl", columns=COLUMNS)

    run("whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if isinstance(killed_at, str):
            replace, left = Path.replace, iter(range(40))

            def killed(self: Path, target: Path) -> Path:
                if next(left, None) is None:
                    if killed_at == "picture" and target.suffix == ".png":
                        replace(self, target)
                    raise Killed
                return replace(self, target)

            patch.setattr(Path, "replace", killed)
        run("broken", killed_at if isinstance(killed_at, int) else float("inf"))
    run("broken")
    whole, broken = files(tmp_path / "whole"), files(tmp_path / "broken")
    assert {name for name in broken if not name.endswith(".new")} == set(whole) == set(broken)
    assert whole == broken and sum(name.endswith(".png") for name in whole) > 40


# --------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`org/pairs` on a Hub that is a folder here, with its commit and the sizes of its splits."""
    folder = tmp_path / "served"
    folder.mkdir()
    found = SimpleNamespace(folder=folder, commit="c0ffee", sizes={})
    build = datasets.load_dataset_builder

    def builder(name: str, *arguments: Any, **options: Any) -> Any:
        made = build(str(folder) if name == "org/pairs" else name, *arguments, **options)
        made.hash = found.commit
        sizes = {name: datasets.SplitInfo(name, num_examples=n) for name, n in found.sizes.items()}
        made.info.splits = datasets.SplitDict(sizes)
        return made

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    return found


def served(hub: SimpleNamespace, rows: list[dict[str, Any]]) -> None:
    Dataset.from_list(rows).to_parquet(hub.folder / "train.parquet")


def row(number: int, *candidates: str) -> dict[str, Any]:
    return {"question": "0 q", "candidates": list(candidates) or [f"{number % 9 + 1} a", f"{number % 5 + 1} b"]}


def test_a_hub_data_set_is_streamed_and_named_by_its_commit(tmp_path: Path, hub: SimpleNamespace) -> None:
    served(hub, [row(n) for n in range(BATCH * 3)])
    output = tmp_path / "pairs.jsonl"
    with pytest.raises(Killed):
        annotate_file("org/pairs", Judge(Pair(), ScriptedEngine(Stopping(BATCH * 2 + 20))), output)
    commit, hub.commit = hub.commit, "bad"
    with pytest.raises(ConfigError, match="other rows or settings"):
        annotate_file("org/pairs", Judge(Pair(), ScriptedEngine(Stopping())), output)
    hub.commit = commit
    engine = ScriptedEngine(Stopping())
    counts = annotate_file("org/pairs", Judge(Pair(), engine), output)
    assert counts["rows"] == BATCH * 3 and len(engine.prompts) <= BATCH * 2 * 2
    assert "Preference pairs of org/pairs@c0ffee" in output.with_suffix(".md").read_text()


def test_a_wrong_row_of_a_hub_data_set_is_named_when_it_comes(tmp_path: Path, hub: SimpleNamespace) -> None:
    served(hub, [row(n) for n in range(BATCH + 9)] + [row(0, "5 a")] + [row(n) for n in range(BATCH)])
    output, asked = tmp_path / "pairs.jsonl", []
    for _ in range(2):
        engine = ScriptedEngine(bright)
        with pytest.raises(ConfigError, match=f"org/pairs, row {BATCH + 9}: a pair needs at least two candidates"):
            annotate_file("org/pairs", Judge(Pair(), engine), output)
        asked.append(len(engine.prompts))
    assert asked[0] > 0 and asked[1] == 0, "what was finished is kept"


@pytest.mark.parametrize(("sizes", "total"), [({}, None), ({"train": 70}, 70)])
def test_the_progress_bar_knows_what_the_hub_knows(
    tmp_path: Path, hub: SimpleNamespace, sizes: dict[str, int], total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tqdm

    bar, totals = tqdm.tqdm, []

    def noted(*arguments: Any, **options: Any) -> Any:
        totals.append(options["total"])
        return bar(*arguments, **options)

    monkeypatch.setattr(tqdm, "tqdm", noted)
    served(hub, [row(n) for n in range(70)])
    hub.sizes = sizes
    annotate_file("org/pairs", Judge(Pair(), ScriptedEngine(bright)), tmp_path / "pairs.jsonl")
    assert totals == [total]


@pytest.mark.parametrize("where", ["parquet", "org/pairs"])
def test_candidates_of_unequal_kind(tmp_path: Path, hub: SimpleNamespace, where: str) -> None:
    mixed = {"question": "q", "a": [{"text": "5 a", "image": None}], "b": [{"text": None, "image": jpeg(3)}]}
    served(hub, [mixed])
    source = str(hub.folder / "train.parquet") if where == "parquet" else where
    with pytest.raises(ConfigError, match="row 0: the candidates are of unequal kind: image and text"):
        annotate_file(
            source, Judge(Pair(), ScriptedEngine([])), tmp_path / "o.jsonl", columns={"candidates": ["a", "b"]}
        )


# ---------------------------------------------------------------------------------------------- judges that are blind


def without_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def text_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def whole(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "sees"),
    [
        pytest.param(whole, True, id="nano"),
        pytest.param(without_processor, False, id="no_processor"),
        pytest.param(text_template, False, id="text_template"),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_a_judge_that_cannot_see_is_found_before_it_loads(
    tmp_path: Path, change: Callable[[Path], None], sees: bool, cached: bool
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in nano_path("judge").iterdir():
        (folder / file.name).symlink_to(file)
    for name in ("chat_template.jinja", "preprocessor_config.json"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    change(folder)
    engine = TransformersEngine(str(folder))
    judge = Judge(Pair(), CachedEngine(engine, tmp_path / "c.sqlite") if cached else engine)
    source = drawn(tmp_path / "in.parquet", [(50, 200)])
    if sees:
        assert engine.takes("image") and engine.takes("video")
        return
    with pytest.raises(ConfigError, match="row 0: the judge model reads text only and cannot be shown images"):
        annotate_file(source, judge, tmp_path / "out.jsonl", columns=COLUMNS)
    assert engine._decoder is None
    judge.close()


def test_a_judge_that_answers_nothing_stops_the_run(tmp_path: Path) -> None:
    source, output = drawn(tmp_path / "in.parquet", [(50, 200)] * 3), tmp_path / "out.jsonl"
    engine = ScriptedEngine(lambda prompt: Generation.failed("engine", "400: this is no multimodal model"))
    with pytest.raises(EngineError, match="answered nothing of 3 rows: 400: this is no multimodal model"):
        annotate_file(source, Judge(Pair(), engine), output, columns=COLUMNS)
    assert not output.exists()
    engine = ScriptedEngine(lambda prompt: Generation.failed("timeout", "late"))
    with pytest.raises(EngineError, match="answered nothing of 3 rows: late"):
        annotate_file(source, Judge(Pair(), engine), output, columns=COLUMNS)
