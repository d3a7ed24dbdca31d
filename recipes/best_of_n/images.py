"""Best of N on questions about images: a policy answers N times, a judge picks one answer.

    python recipes/best_of_n/images.py
    python recipes/best_of_n/images.py --n 4 --questions 100 --judge '{"format": "multiple_choice"}'

Two CPU cores, nothing to download, under a minute: the embedded base model answers questions about held-out images of
coloured shapes; the embedded judge, which never sees a right answer, picks. Expect 48 % right for the first answer,
90 % for the judge's choice, and 90 % where any of the eight is right. The second command is the setting of MR. Judge.

    python recipes/best_of_n/images.py --policy Qwen/Qwen2.5-VL-7B-Instruct --data mm-vet.jsonl --media_root images/ \\
        --judge '{"base_url": "http://localhost:8001/v1"}'

A row of the data is {"question", "images", "answer"}; a reply is right if it contains the answer.

`--output_dir` gets ranked.jsonl, the answers of each question with their order, scores and whether they are right, and
judgements.jsonl, what the judge said of each: `flexjudge report runs/best_of_n` shows it with the images.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexjudge_recipes.common import mapping
from flexjudge_recipes.dpo_vlm.sampling import sample
from flexjudge_recipes.nano import shapes, vlm_task
from flexjudge_recipes.program import run

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Example,
    Failure,
    Judge,
    Media,
    Ranking,
    Sampling,
    TransformersEngine,
    rerank,
    unscored,
)

# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Question:
    """A question with its images, and whether a reply to it is right."""

    content: tuple[str | Media, ...]
    is_right: Callable[[str], bool]


def nano_questions(count: int, seed: int) -> list[Question]:
    """Questions about held-out images of the embedded world."""
    rng = random.Random(f"best of n {seed}")
    drawn = [shapes.question(rng, shapes.scene(rng, held_out=True), ("what", "count", "exists")) for _ in range(count)]
    return [
        Question((Media.image(shapes.draw(q.scene, rng)), q.text), lambda reply, q=q: shapes.is_correct(q, reply))
        for q in drawn
    ]


def file_questions(file: Path, media_root: Path, count: int) -> list[Question]:
    """The first questions of a JSONL file. Raises ConfigError for a row that is wrong, by its line."""
    try:
        lines = file.read_bytes().splitlines()[:count]
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    questions = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            text, images, answer = row["question"], row["images"], str(row["answer"])
            content = (*(Media.image(name, roots=[media_root]) for name in images), text)
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{file}, line {number}: expected 'question', 'images' and 'answer'") from None
        questions.append(Question(content, lambda reply, answer=answer: answer in reply))
    return questions


# ---------------------------------------------------------------------------------------------------------- report


def keep(
    file: Path, questions: Sequence[Question], answers: Sequence[Sequence[str]], rankings: Sequence[Ranking]
) -> None:
    """Writes a row per question, in the form of `flexjudge rerank`, and which answers are right."""
    with file.open("w", encoding="utf-8") as lines:
        for number, (question, texts, ranking) in enumerate(zip(questions, answers, rankings, strict=True)):
            row = {
                "id": number,
                "question": [part for part in question.content if isinstance(part, str)],
                "candidates": [[text] for text in texts],
                "order": ranking.order,
                "best": ranking.best,
                "scores": [None if isinstance(one, Failure) else one for one in ranking.outcomes],
                "failures": [{"kind": one.kind} if isinstance(one, Failure) else None for one in ranking.outcomes],
                "scale": [0, 1],
                "right": [question.is_right(text) for text in texts],
            }
            lines.write(json.dumps(row) + "\n")


def accuracies(
    questions: Sequence[Question], answers: Sequence[Sequence[str]], rankings: Sequence[Ranking]
) -> dict[str, float]:
    """The share of right answers: of the first one, of the judge's choice, and of the best one there is.

    Over the questions with an answer that the judge scored.

    Raises:
        EngineError: it scored nothing.
    """
    right = [
        (ranking.best, [question.is_right(text) for text in texts])
        for question, texts, ranking in zip(questions, answers, rankings, strict=True)
        if ranking.best is not None
    ]
    if not right:
        raise EngineError(f"the judge scored no answer at all: {dict(unscored(rankings))}")
    return {
        "first": sum(row[0] for _, row in right) / len(right),
        "judge": sum(row[best] for best, row in right) / len(right),
        "oracle": sum(any(row) for _, row in right) / len(right),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8, help="answers to each question")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", default="nano", help="nano, a folder, or a Hub id")
    parser.add_argument("--data", type=Path, help="a JSONL file; by default the embedded world")
    parser.add_argument("--media_root", type=Path, default=Path(), help="the folder with the images of --data")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/best_of_n"), help="a new or empty folder")
    parser.add_argument("--judge", type=mapping, default={}, help="settings of the judge, as JSON")
    options = parser.parse_args()
    if options.n < 2 or options.questions < 1:
        raise ConfigError(f"--n must be at least 2 and --questions at least 1, found {options.n}, {options.questions}")
    if options.output_dir.is_dir() and any(options.output_dir.iterdir()):
        raise ConfigError(f"{options.output_dir} holds an earlier run: remove it, or give another --output_dir")
    return options


def main() -> None:
    """Samples, judges, prints the three shares, and keeps what was judged."""
    options = arguments()
    nano, folder = options.data is None, options.output_dir
    settings = ({"model": "nano"} if nano else {}) | {"record": str(folder / "judgements.jsonl")} | options.judge
    judge = Judge.load(**settings)
    count, seed = options.questions, options.seed
    questions = nano_questions(count, seed) if nano else file_questions(options.data, options.media_root, count)
    folder.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(temperature=1.0, max_tokens=64, seed=seed)
    print(f"sampling       {options.n} answers to {len(questions)} questions", flush=True)
    with TransformersEngine(vlm_task.policy() if options.policy == "nano" else options.policy) as policy:
        sampled = sample(policy, [question.content for question in questions], options.n, sampling)
    pairs = [(question, texts) for question, texts in zip(questions, sampled, strict=True) if len(texts) > 1]
    questions, answers = [question for question, _ in pairs], [texts for _, texts in pairs]
    print(f"judging        {sum(map(len, answers))} answers", flush=True)
    with judge:
        rankings = rerank([Example(question.content, texts) for question, texts in pairs], judge, seed)
    keep(folder / "ranked.jsonl", questions, answers, rankings)
    found = accuracies(questions, answers, rankings)
    gap = found["oracle"] - found["first"]
    closed = (found["judge"] - found["first"]) / gap if gap else 0.0
    print(f"first answer {found['first']:.1%}   judge's choice {found['judge']:.1%}   oracle {found['oracle']:.1%}")
    left_out = len(sampled) - sum(ranking.best is not None for ranking in rankings)
    if left_out or unscored(rankings):
        print(f"answers without a score: {dict(unscored(rankings))}; questions left out: {left_out}")
    print(f"best of {options.n} closes {closed:.0%} of the gap between the first answer and the oracle")
    print(f"answers        {folder / 'ranked.jsonl'}; `flexjudge report {folder}` shows them with their images")


if __name__ == "__main__":
    run("best_of_n", main)
