"""`annotate_file` on data sets with images in them, and on data sets of the Hub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Generation,
    Judge,
    Media,
    Pairwise,
    Pointwise,
    Request,
    ScriptedEngine,
    Untrusted,
    annotate_file,
)
from support.images import saved
from support.jsonl import read
from support.judging import tags
from support.late import late

datasets = late("datasets")

BATCH = 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr("flexjudge_reward.offline.annotate.BATCH", BATCH)
    datasets.disable_progress_bars()


def jpeg(shade: int, size: tuple[int, int] = (8, 8)) -> bytes:
    return saved(Image.new("RGB", size, (shade, shade, shade)), "JPEG", quality=95)


def bright(request: Request) -> str:
    """Scores an image by its brightness, a text by the number it begins with."""
    parts = [part for part in request.prompt.messages[1].parts if isinstance(part, Media | Untrusted)]
    kept = parts[-2:] if len(parts) > 2 else parts[-1:]
    scores = [
        round(part.images()[0].getpixel((0, 0))[0] / 25)  # type: ignore[index]
        if isinstance(part, Media)
        else int(part.text.split()[0])
        for part in kept
    ]
    return tags(*(max(1, score) for score in scores))


COLUMNS = {"question": ["caption"], "candidates": ["jpg_0", "jpg_1"]}


def drawn(path: Path, shades: list[tuple[int | bytes, int | bytes]]) -> Path:
    """A set of two images for a prompt, as text-to-image preferences are kept."""
    rows = [
        {"caption": f"a grey square {n}"}
        | {f"jpg_{i}": one if isinstance(one, bytes) else jpeg(one) for i, one in enumerate(two)}
        for n, two in enumerate(shades)
    ]
    found = datasets.Dataset.from_list(rows)
    for column in ("jpg_0", "jpg_1"):
        found = found.cast_column(column, datasets.Image())
    found.to_parquet(path)
    return path


# ---------------------------------------------------------------- images


def test_image_candidates_become_what_a_diffusion_trainer_reads(tmp_path: Path) -> None:
    same = jpeg(90)
    source = drawn(tmp_path / "in.parquet", [(50, 200), (225, 75), (same, same), (b"broken", 90), (b"broken", same)])
    output = tmp_path / "out" / "pairs.jsonl"
    output.parent.mkdir()
    counts = annotate_file(source, Judge(Pairwise(), ScriptedEngine(bright)), output, columns=COLUMNS)
    assert counts == {"rows": 5, "pairs": 2, "identical": 1, "media": 2}
    first, second = read(output)
    assert (first["id"], first["prompt"], first["pair"]) == (0, "a grey square 0", [1, 0])
    for pair, shades in ((first, (200, 50)), (second, (225, 75))):
        for side, shade in zip(("chosen", "rejected"), shades, strict=True):
            assert pair[side].startswith("pairs.media/") and pair[side].endswith(".jpg")
            with Image.open(output.parent / pair[side]) as image:
                assert abs(image.getpixel((0, 0))[0] - shade) < 3  # type: ignore[index, operator]
    assert len(list((output.parent / "pairs.media").iterdir())) == 4, "only what a pair needs is written"
    assert "Preference pairs of in.parquet (question=caption, candidates=jpg_0" in output.with_suffix(".md").read_text()


def test_the_pairs_load_as_a_data_set_with_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = drawn(tmp_path / "in.parquet", [(50, 200), (225, 75)])
    annotate_file(source, Judge(Pairwise(), ScriptedEngine(bright)), tmp_path / "pairs.jsonl", columns=COLUMNS)
    monkeypatch.chdir(tmp_path)
    found = datasets.load_dataset("json", data_files="pairs.jsonl", split="train")
    found = found.cast_column("chosen", datasets.Image()).cast_column("rejected", datasets.Image())
    assert [row["chosen"].size for row in found] == [(8, 8), (8, 8)]
    assert found[0]["rejected"].getpixel((0, 0))[0] < 60


def test_images_of_a_question_are_read_as_the_dpo_recipe_reads_them(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "image": jpeg(50, (16, 8)), "responses": ["5 a", "9 b"]} for _ in range(2)]
    source = tmp_path / "in.parquet"
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(source)
    columns = {"question": ["prompt"], "candidates": ["responses"], "images": ["image"]}
    annotate_file(source, Judge(Pairwise(), ScriptedEngine(bright)), tmp_path / "p.jsonl", columns=columns)
    lines = read(tmp_path / "p.jsonl")
    assert lines[0]["chosen"] == [{"role": "assistant", "content": "9 b"}]
    assert len(list((tmp_path / "p.media").iterdir())) == 1, "equal images are one file"
    kept = [
        {name: row[name] for name in ("prompt", "chosen", "rejected")}
        | {"images": [str(tmp_path / image) for image in row["images"]]}
        for row in lines
    ]
    loaded = datasets.Dataset.from_list(kept).cast_column("images", datasets.List(datasets.Image()))
    assert loaded[1]["images"][0].size == (16, 8)


def test_images_inside_an_answer_and_a_conversation_are_content_blocks(tmp_path: Path) -> None:
    answers = [
        [{"type": "text", "text": "9 this "}, {"type": "image", "image": jpeg(9)}],
        [{"text": "1 "}, {"image": jpeg(3)}],
    ]
    question = [
        {"role": "system", "content": [{"text": "s", "image": None}]},
        {"role": "user", "content": [{"text": None, "image": jpeg(5)}, {"text": "q", "image": None}]},
    ]
    rows = [{"question": question, "candidates": answers}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "in.parquet")
    judge = Judge(Pointwise(), ScriptedEngine(lambda request: tags(str(request.prompt).count("this") * 5 + 3)))
    annotate_file(tmp_path / "in.parquet", judge, tmp_path / "out.jsonl")
    (pair,) = read(tmp_path / "out.jsonl")
    text, image = pair["chosen"][0]["content"]
    assert text == {"type": "text", "text": "9 this "} and image["type"] == "image"
    system, user = pair["prompt"]
    assert system == {"role": "system", "content": "s"} and user["content"][1] == {"type": "text", "text": "q"}
    for block, shade in ((image, 9), (user["content"][0], 5)):
        with Image.open(tmp_path / block["image"]) as stored:
            assert stored.getpixel((0, 0)) == (shade,) * 3


# ---------------------------------------------------------------- interrupted


class Killed(BaseException):
    """As sudden as a signal: nothing handles it."""


class Stopping:
    """A judge that is killed after so many replies."""

    def __init__(self, after: float = float("inf")) -> None:
        self.left = after

    def __call__(self, request: Request) -> str:
        if self.left < 1:
            raise Killed
        self.left -= 1
        return bright(request)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("killed_at", [0, 50, 75, "image", "before_image"])
def test_a_killed_run_leaves_the_images_of_an_unbroken_one(
    tmp_path: Path, killed_at: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shades = [(n % 11 * 20 + n % 3, n % 7 * 30 + n % 5) for n in range(BATCH * 2 + 8)]
    source = drawn(tmp_path / "in.parquet", shades)
    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()

    def run(folder: str, after: float = float("inf")) -> None:
        judge = Judge(Pairwise(), ScriptedEngine(Stopping(after)))
        annotate_file(source, judge, tmp_path / folder / "pairs.jsonl", columns=COLUMNS)

    run("whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if isinstance(killed_at, str):
            replace, left = Path.replace, iter(range(20))

            def killed(self: Path, target: Path) -> Path:
                if next(left, None) is None:
                    if killed_at == "image" and target.suffix == ".jpg":
                        replace(self, target)
                    raise Killed
                return replace(self, target)

            patch.setattr(Path, "replace", killed)
        run("broken", killed_at if isinstance(killed_at, int) else float("inf"))
    run("broken")
    whole, broken = files(tmp_path / "whole"), files(tmp_path / "broken")
    assert set(whole) == set(broken)
    assert whole == broken and sum(name.endswith(".jpg") for name in whole) > 30


# ---------------------------------------------------------------- the Hub


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
    datasets.Dataset.from_list(rows).to_parquet(hub.folder / "train.parquet")


def row(number: int, *candidates: str) -> dict[str, Any]:
    return {"question": "0 q", "candidates": list(candidates) or [f"{number % 9 + 1} a", f"{number % 5 + 1} b"]}


def test_a_hub_data_set_is_streamed_and_named_by_its_commit(tmp_path: Path, hub: SimpleNamespace) -> None:
    served(hub, [row(n) for n in range(BATCH * 3)])
    output = tmp_path / "pairs.jsonl"
    with pytest.raises(Killed):
        annotate_file("org/pairs", Judge(Pairwise(), ScriptedEngine(Stopping(BATCH * 2 + 5))), output)
    commit, hub.commit = hub.commit, "bad"
    with pytest.raises(ConfigError, match="other rows or settings"):
        annotate_file("org/pairs", Judge(Pairwise(), ScriptedEngine(Stopping())), output)
    hub.commit = commit
    engine = ScriptedEngine(Stopping())
    counts = annotate_file("org/pairs", Judge(Pairwise(), engine), output)
    assert counts["rows"] == BATCH * 3 and len(engine.requests) <= BATCH * 2 * 2
    assert "Preference pairs of org/pairs@c0ffee" in output.with_suffix(".md").read_text()


def test_a_wrong_row_of_a_hub_data_set_is_named_when_it_comes(tmp_path: Path, hub: SimpleNamespace) -> None:
    served(hub, [row(n) for n in range(BATCH + 9)] + [row(0, "5 a")] + [row(n) for n in range(BATCH)])
    output, requests = tmp_path / "pairs.jsonl", []
    for _ in range(2):
        engine = ScriptedEngine(bright)
        with pytest.raises(ConfigError, match=f"org/pairs, row {BATCH + 9}: a pair needs at least two candidates"):
            annotate_file("org/pairs", Judge(Pairwise(), engine), output, strict=True)
        requests.append(len(engine.requests))
    assert requests[0] > 0 and requests[1] == 0, "what was finished is kept"


@pytest.mark.parametrize(("sizes", "total"), [({}, None), ({"train": 20}, 20)], ids=["unknown", "known"])
def test_the_progress_bar_shows_the_total_that_the_hub_gives(
    tmp_path: Path, hub: SimpleNamespace, sizes: dict[str, int], total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tqdm

    bar, totals = tqdm.tqdm, []

    def noted(*arguments: Any, **options: Any) -> Any:
        totals.append(options["total"])
        return bar(*arguments, **options)

    monkeypatch.setattr(tqdm, "tqdm", noted)
    served(hub, [row(n) for n in range(20)])
    hub.sizes = sizes
    annotate_file("org/pairs", Judge(Pairwise(), ScriptedEngine(bright)), tmp_path / "pairs.jsonl")
    assert totals == [total]


@pytest.mark.parametrize("where", ["parquet", "org/pairs"])
def test_candidates_of_unequal_kind(tmp_path: Path, hub: SimpleNamespace, where: str) -> None:
    mixed = {"question": "q", "a": [{"text": "5 a", "image": None}], "b": [{"text": None, "image": jpeg(3)}]}
    served(hub, [mixed])
    source, columns = str(hub.folder / "train.parquet") if where == "parquet" else where, {"candidates": ["a", "b"]}
    with pytest.raises(ConfigError, match="row 0: the candidates are of unequal kind: image and text"):
        annotate_file(source, Judge(Pairwise(), ScriptedEngine([])), tmp_path / "o.jsonl", columns=columns)


# ---------------------------------------------------------------- judges that cannot see


class Blind(ScriptedEngine):
    """An engine whose model reads text only."""

    def supports(self, modality: str) -> bool:
        return False


def test_a_judge_that_cannot_see_is_found_before_anything_is_judged(tmp_path: Path) -> None:
    source, engine = drawn(tmp_path / "in.parquet", [(50, 200)]), Blind(bright)
    with pytest.raises(ConfigError, match=r"row 0: the judge .* reads text only and cannot be shown images"):
        annotate_file(source, Judge(Pairwise(), engine), tmp_path / "out.jsonl", columns=COLUMNS)
    assert not engine.requests


def test_a_judge_that_answers_nothing_stops_the_run(tmp_path: Path) -> None:
    source, output = drawn(tmp_path / "in.parquet", [(50, 200)] * 3), tmp_path / "out.jsonl"
    for kind, detail in (("engine", "400: this is no multimodal model"), ("timeout", "late")):
        engine = ScriptedEngine(lambda request, failed=(kind, detail): Generation.failed(*failed))  # type: ignore[misc]
        with pytest.raises(EngineError, match=f"answered nothing of 3 rows: {detail}"):
            annotate_file(source, Judge(Pairwise(), engine), output, columns=COLUMNS)
        assert not output.exists()
