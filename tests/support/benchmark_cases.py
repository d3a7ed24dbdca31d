"""For every benchmark a few rows as its files have them, what a judge said of them, and its metrics, counted by hand.

The rows are ours; only their columns are those of the data sets. What the judge said of a row is a list of draws, each
with the scores of the drawn and of the other order, in the order of the data set; None is a failure.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexjudge_reward.offline.evaluate.benchmark import Benchmark
from flexjudge_reward.offline.evaluate.metrics import Judged, Judgement, measure
from flexjudge_reward.offline.evaluate.rows import BenchmarkRows

Said = list[list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Case:
    """Files by their names, what was said of each row that counts, and the metrics."""

    files: dict[str, Any]
    said: list[Said]
    metrics: dict[str, float]


def once(first: Any, second: Any) -> Said:
    """One draw in both orders."""
    return [[first, second]]  # type: ignore[list-item]


def drawn(*scores: Any) -> Said:
    """Several draws that say the same in both orders."""
    return [[one, one] for one in scores]


def alone(*scores: float | None) -> Said:
    """Several draws of one candidate."""
    return [[None if one is None else (one,)] for one in scores]  # type: ignore[list-item]


def vl(name: str, ranks: list[int], category: str) -> dict[str, Any]:
    row = {"id": name, "query": "q", "response": ["a", "b"], "image": "x.png", "human_ranking": ranks}
    return {**row, "category": category}


def jb(name: str, source: str, label: str) -> dict[str, Any]:
    ids = {"pair_id": name, "original_id": None, "source": source, "response_model": "m", "label": label}
    return {**ids, "question": "q", "response_A": "a", "response_B": "b"}


def mm2(chosen: str) -> dict[str, Any]:
    texts = {"prompt_text": "p", "response_a_text": "a", "response_b_text": None, "chosen": chosen}
    return {
        "pair_id": 1,
        **texts,
        "prompt_images": ["x.png", "y.png"],
        "response_a_images": [],
        "response_b_images": ["z.png"],
    }


def mrb(name: str, category: str, better: str) -> dict[str, Any]:
    texts = {"Text": "t", "Image": "x.png", "Output1": "a", "Output2": "b"}
    return {"ID": name, "Category": category, "Better": better, **texts}


def image_votes(*votes: str) -> list[dict[str, Any]]:
    return [{"prompt": "p", "left_image": "l.png", "right_image": "r.png", "vote_type": vote} for vote in votes]


def edit_votes(*votes: str) -> list[dict[str, Any]]:
    images = {"source_image": "s.png", "left_output_image": "l.png", "right_output_image": "r.png"}
    texts = {"source_prompt": "s", "target_prompt": "t", "instruct_prompt": "i"}
    return [{**images, **texts, "vote_type": vote} for vote in votes]


def video_votes(*votes: str) -> list[dict[str, Any]]:
    return [{"prompt": "p", "left_video": "l.mp4", "right_video": "r.mp4", "vote_type": vote} for vote in votes]


def rb2(name: str, subset: str, right: int, wrong: int) -> dict[str, Any]:
    answers = {"chosen": ["c"] * right, "rejected": ["r"] * wrong}
    return {"id": name, "prompt": "p", "subset": subset, **answers, "num_correct": right, "models": []}


def mllm(dataset: str, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_path": "image/1.jpg", "original_dataset": dataset, "instruction": "i", **more}


def mllm_pair(dataset: str, key: str, label: str) -> dict[str, Any]:
    return mllm(dataset, answer1={"name": "m", "answer": "a"}, answer2={"name": "n", "answer": "b"}, **{key: label})


def mj(*labels: int) -> list[dict[str, Any]]:
    return [{"caption": "c", "image0": "0.png", "image1": "1.png", "label": label, "info": ""} for label in labels]


def omni(*labels: str, kind: str = "") -> list[dict[str, Any]]:
    row = {"id": 1, "prompt": "p", "criteria": "Is it short and to the point?", "image": "x.png"}
    return [{**row, "response1": f"a{kind}", "response2": f"b{kind}", "criteria_preference": label} for label in labels]


def nano(number: int, medium: str, kind: str, scores: list[int]) -> dict[str, Any]:
    shown = {"scene": "s", "image": None} if medium == "words" else {"scene": None, "image": "x.png"}
    return {
        "id": number,
        "medium": medium,
        "kind": kind,
        **shown,
        "question": "q",
        "answers": ["a", "b"],
        "scores": scores,
    }


def pampa(right: list[int]) -> dict[str, Any]:
    return {"smiles": "CCO", "label": 1, "analyses": [f"analysis {n}" for n in range(len(right))], "right": right}


CASES: dict[str, Case] = {
    "vl_rewardbench": Case(
        {
            "test.jsonl": [
                vl("RLAIF-1", [0, 1], "hallucination"),
                vl("hallucination_pair-2", [1, 0], "hallucination"),
                vl("mathverse_3", [1, 0], "reasoning"),
                vl("wildvision-4", [0, 1], "general"),
                vl("mmmu_5", [0, 1], "reasoning"),
            ]
        },
        [once((8, 3), (8, 3)), once((5, 5), (2, 7)), once((9, 2), (9, 2)), once(None, (6, 1)), once((7, 1), (7, 1))],
        {
            "overall": 2 / 5,
            "overall.parsed": 2 / 3,
            "overall.both_orders": 2 / 5,
            "macro": (0.5 + 0.5 + 0) / 3,
            "macro/hallucination": 0.5,
            "macro.unifiedreward": (1 + 0.5 + 0) / 3,
            "macro.unifiedreward/general": 0,
            "macro.category": (0.5 + 0.5 + 0) / 3,
        },
    ),
    "judgebench": Case(
        {
            "gpt.jsonl": [jb("1", "livebench", "A>B"), jb("2", "mmlu", "B>A"), jb("3", "mmlu", "A>B")],
            "claude.jsonl": [jb("4", "mmlu", "B>A")],
        },
        [once((9, 1), (9, 1)), once((5, 5), (2, 6)), once((7, 3), (3, 7)), once(None, (1, 2))],
        {
            "accuracy": (2 / 3 + 1) / 2,
            "accuracy/gpt": 2 / 3,
            "consistent": (1 / 3 + 0) / 2,
            "source": (1 + 2 / 3) / 2,
        },
    ),
    "mmrb2": Case(
        {
            "t2i.jsonl": [mm2("A")],
            "edit.jsonl": [mm2("B")],
            "interleaved.jsonl": [mm2("A")],
            "reasoning.jsonl": [mm2("b")],
        },
        [once((8, 2), None), once((8, 2), (1, 3)), once((4, 4), (5, 4)), once((1, 9), (2, 9))],
        {
            "accuracy": (1 + 0.5 + 0.5 + 1) / 4,
            "accuracy.all": (0.5 + 0.5 + 0.5 + 1) / 4,
            "accuracy.both_orders": 1 / 4,
        },
    ),
    "multimodal_rewardbench": Case(
        {
            "all_data.json": [
                mrb("math_1", "reasoning", "Output1"),
                mrb("code_2", "reasoning", "Output2"),
                mrb("pairs_3", "safety", "Output1"),
                mrb("toxic_4", "safety", "Output2"),
                mrb("know_5", "knowledge", "Output1"),
            ]
        },
        [drawn((6, 2)), drawn(None), drawn((3, 3)), drawn((1, 8)), drawn((2, 9))],
        {
            "overall": 2 / 5,
            "overall.coin": (1 + 0.5 + 0.5 + 1 + 0) / 5,
            "category": (1 + 0 + 0.5 + 0) / 4,
            "category/coding": 0,
            "detail": (1 + 0 + 0 + 1 + 0) / 5,
            "detail/toxicity": 1,
        },
    ),
    "genai_bench": Case(
        {
            "image_generation.jsonl": image_votes("leftvote", "bothbad_vote"),
            "image_edition.jsonl": edit_votes("tievote"),
            "video_generation.jsonl": video_votes("rightvote"),
        },
        [
            drawn((1, 0), (1, 0), (0, 1)),
            drawn((0, 0), None, (1, 1)),
            drawn(None, None, (1, 1)),
            drawn((1, 0), (0, 1), (0, 1)),
        ],
        {
            "overall": (3 / 6 + 1 / 3 + 2 / 3) / 3,
            "overall/image_generation": 3 / 6,
            "voting": (1 + 0 + 1) / 3,
            "voting.parsed": 1,
        },
    ),
    "genai_bench_two_way": Case(
        {
            "image_generation.jsonl": image_votes("leftvote", "tievote"),
            "image_edition.jsonl": edit_votes("bothbad_vote", "rightvote"),
            "video_generation.jsonl": video_votes("leftvote"),
        },
        [once((8, 3), (3, 8)), once((1, 2), (1, 2)), once((4, 4), (9, 1))],
        {"overall": (1 + 1 + 0) / 3, "overall.both_orders": 1 / 3},
    ),
    "rewardbench2": Case(
        {
            "test.jsonl": [
                rb2("1", "Factuality", 1, 3),
                rb2("2", "Math", 1, 3),
                rb2("3", "Safety", 1, 3),
                rb2("4", "Focus", 1, 3),
                rb2("5", "Precise IF", 1, 3),
                rb2("ref:1", "Ties", 1, 1),
                rb2("tied:1", "Ties", 2, 1),
                rb2("ref:2", "Ties", 1, 1),
                rb2("tied:2", "Ties", 2, 1),
            ]
        },
        [
            *[drawn((1, 0, 0, 0)), drawn((0, 1, 0, 0)), drawn((5, 5, 1, 1)), drawn(None), drawn((1, 0, 0, 0))],
            *[[[(9, 4)]], [[(8, 7, 3)]], [[(3, 6)]], [[(9, 5, 5)]]],
        ],
        {
            "accuracy": (1 + 0 + 0.5 + 0.25 + 1) / 5,
            "accuracy.all": (1 + 0 + 0.5 + 0 + 1) / 5,
            "ties": 0.3 / 2 + 0.3 / 2 + 0.2 / 2 + 0.2 / 2 + 0.01 * (math.tanh(4 / 1 - 1) + math.tanh(-3 / 4 - 1)) / 2,
            "overall": (5 * 0.55 + 0.5 + 0.01 * (math.tanh(3) - math.tanh(1.75)) / 2) / 6,
        },
    ),
    "mllm_judge_score": Case(
        {
            "score.jsonl": [
                *[mllm("COCO", answer="a", human=1), mllm("COCO", answer="a", human="3")],
                *[mllm("COCO", answer="a", human_answer=5)],
                *[mllm("WIT", answer="a", human=2), mllm("WIT", answer="a", human="4")],
            ]
        },
        [alone(1, 3), alone(3, 3), alone(5, 3), alone(4, None), alone(2, 2)],
        {
            "pearson": (1 - 1) / 2,
            "pearson.code": ((1 + 8 / math.sqrt(8 * 16)) / 2 + (-1 + 1 / math.sqrt(12.75 * 4)) / 2) / 2,
        },
    ),
    "mllm_judge_pair": Case(
        {
            "pair.jsonl": [
                *[mllm_pair("COCO", "human", "A"), mllm_pair("COCO", "human_answer", "C")],
                *[mllm_pair("COCO", "human", "B"), mllm_pair("WIT", "human", "A")],
            ]
        },
        [
            *[drawn((8, 2), (8, 2), (2, 8)), drawn((5, 5), None, (6, 6))],
            *[drawn((5, 5), (5, 5), (1, 3)), drawn(None, None, None)],
        ],
        {
            "with_tie": ((2 + 2 + 1) / 9 + 0) / 2,
            "with_tie.code": (3 / 3 + 0) / 2,
            "without_tie": ((2 + 1) / 6 + 0) / 2,
            "without_tie.code": (2 / 2 + 0) / 2,
        },
    ),
    "mllm_judge_batch": Case(
        {
            "batch.jsonl": [
                mllm("COCO", answers=[{"name": "m", "answer": one} for one in "abc"], human="CAB"),
                mllm("WIT", answers=[{"name": "m", "answer": one} for one in "ab"], human_answer="AB"),
            ]
        },
        [drawn((5, 2, 9), (5, 5, 9)), drawn(None, (3, 1))],
        {
            "distance": ((0 + 2 / 3) / 2 + (1 + 0) / 2) / 2,
            "distance.code": ((0 + 2 / 3) / 2 + 1) / 2,
            "pairs": (3 + 2 + 0 + 1) / 8,
        },
    ),
    "mj_bench": Case(
        {"alignment.jsonl": mj(0, 1), "safety.jsonl": mj(1), "quality.jsonl": mj(0)},
        [once((7, 2), (7, 2)), once((7, 2), (5, 5)), once(None, (1, 5)), once((6, 5), (5, 5))],
        {
            "with_tie": (2 / 4 + 1 / 2 + 1 / 2) / 3,
            "without_tie": (2 / 3 + 1 + 1) / 3,
            "without_tie/alignment": 2 / 3,
            "both_orders": (1 / 2 + 0 + 0) / 3,
        },
    ),
    "mj_bench_2025": Case(
        {"composition.jsonl": mj(0), "visualization.jsonl": mj(0), "quality.jsonl": mj(0)},
        [once((7, 2), (2, 7)), once((8, 1), (8, 1)), once((5, 5), (8, 1))],
        {"with_tie": (0.5 + 1 + 0.5) / 3, "without_tie": (0.5 + 1 + 1) / 3, "both_orders": (0 + 1 + 0) / 3},
    ),
    "omni_rewardbench": Case(
        {
            "text_to_text.jsonl": omni("response1", "tie"),
            "image_to_text.jsonl": omni("response2"),
            "text_to_image.jsonl": omni("response1", kind=".png"),
            "text_to_video.jsonl": omni("response2", kind=".mp4"),
        },
        [
            *[once((8, 3), (8, 3)), once((5, 5), (6, 2)), once((1, 5), None), once((2, 2), (3, 1))],
            once((1, 2), (1, 2)),
        ],
        {"without_tie": (1 + 0.5 + 0.5 + 1) / 4, "with_tie": (3 / 4 + 0.5 + 0.5 + 1) / 4},
    ),
    "nisqa": Case(
        {"nisqa.csv": "filepath_deg,mos\na.wav,1.04\nb.wav,3.26\nc.wav,4.0\n"},
        [alone(1), alone(2), alone(3)],
        {"lcc": 3 / math.sqrt(2 * (5.3**2 + 1.6**2 + 3.7**2) / 9), "srcc": 1},
    ),
    "bvcc": Case(
        {"test_mos_list.txt": "sys1-utt1.wav,2.0\nsys1-utt2.wav,4.0\nsys2-utt1.wav,5.0\nsys2-utt2.wav,3.0\n"},
        [alone(1), alone(3), alone(2), alone(4)],
        {"lcc": 1 / 5, "srcc": 1 / 5, "lcc.system": 1, "srcc.system": 1},
    ),
    "somos": Case(
        {"list.txt": "utteranceId,mean\na_1_001.wav,3.0\nb_1_001.wav,1.0\na_1_002.wav,4.0\nb_1_002.wav,4.0\n"},
        [alone(3), alone(1), alone(None), alone(5)],
        {"lcc": 6 / math.sqrt(8 * (1 + 25 + 16) / 9), "srcc": 1, "lcc.system": 1, "srcc.system": 1},
    ),
    "voxsim": Case(
        {"list.txt": "a.wav b.wav 1 x 5.0\na.wav c.wav 0 x 2.0\nb.wav c.wav 0 x 3.5\n"},
        [alone(4), alone(2), alone(1)],
        {"lcc": 3 / math.sqrt(42 / 9 * 4.5), "srcc": 1 / 2},
    ),
    "speechjudge_eval": Case(
        {
            "rows.jsonl": [
                {"target_text": "t", "audio_a": "a.wav", "audio_b": "b.wav", "preference": one} for one in "AB"
            ]
        },
        [once((8, 2), (8, 2)), once(None, (1, 9))],
        {"accuracy": 3 / 4, "accuracy.parsed": 3 / 3},
    ),
    "pampa": Case(
        {"answers.jsonl": [pampa([0, 1, 1]), pampa([1, 0]), pampa([0, 0]), pampa([1, 0]), pampa([1, 0, 0])]},
        [[[(5, 9, 9)]], [[(6, 6)]], [[(3, 1)]], [[None]], [[(9, None, 5)]]],
        {"best_of_n": (1 + 0.5 + 0 + 1) / 4, "first": 3 / 5, "pairs": (1 + 1 + 0.5 + 0 + 0 + 1) / 6},
    ),
    "nano_world": Case(
        {
            "rows.jsonl": [
                nano(0, "words", "exists", [1, 10]),
                nano(1, "words", "count", [10, 10]),
                nano(2, "image", "what", [10, 5]),
            ]
        },
        [once((1, 10), (1, 10)), once((10, 10), (9, 10)), once((10, 5), (5, 5))],
        {"agreement": (1 + 0.5) / 2, "both_orders": (1 + 0) / 2, "with_tie": (1 + 0.5 + 0.5) / 3},
    ),
}


def written(files: dict[str, Any], folder: Path) -> Path:
    """The files in a folder; the file itself where there is one."""
    for name, rows in files.items():
        lines = name.endswith(".jsonl")
        text = rows if isinstance(rows, str) else json.dumps(rows)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else text)
    return folder / next(iter(files)) if len(files) == 1 else folder


def measured(name: str) -> dict[str, float]:
    """The metrics of a case, from its rows as the package reads them."""
    case, benchmark = CASES[name], Benchmark.load(name)
    with tempfile.TemporaryDirectory() as folder:
        rows = BenchmarkRows(benchmark, written(case.files, Path(folder)), Path(folder))
        rows.check()
        places = {part.name: place for place, part in enumerate(benchmark.parts)}
        labelled = sorted(rows.read(), key=lambda row: (places[row.part.name], row.number))
    judged = []
    for row, said in zip(labelled, case.said, strict=True):
        draws = tuple(tuple(Judgement(one, None if one else "malformed") for one in draw) for draw in said)
        judged.append(Judged(row.id, row.part.name, row.merits, row.groups, draws))
    return {metric: one.value for metric, one in measure(benchmark.metrics, judged, resamples=2).items()}


def mismatches(name: str) -> list[str]:
    """The metrics that are not what was counted by hand."""
    found = measured(name)
    return [
        f"{metric}: {found.get(metric)} where {value} was counted"
        for metric, value in CASES[name].metrics.items()
        if not math.isclose(found.get(metric, math.nan), value, abs_tol=1e-9)
    ]
