"""Best of N: a policy answers N times, a judge picks one answer. Accuracy of the first, the picked and the best one.

    python recipes/best_of_n.py                                          # embedded policy and judge, two CPU cores
    python recipes/best_of_n.py --n 4 --format choice --questions 100    # MR. Judge's setting: the best of four

The embedded base model answers held-out questions about pictures of coloured shapes; the embedded judge, which never
sees the right answer, picks. Expect 48 % right at first, 90 % picked, and 90 % where the best of eight is right.

With real models: --policy Qwen/Qwen2.5-VL-7B-Instruct --data mm-vet.jsonl --media-root images/ and a judge by
FLEXJUDGE_MODEL or FLEXJUDGE_BASE_URL. A row of the data is {"question", "images", "answer"}; an answer counts as right
if it is in the reply (as MM-Vet's short answers are).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from policy_answers import written

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Example,
    FlexJudgeError,
    Judge,
    JudgeConfig,
    Media,
    Message,
    Prompt,
    Quoted,
    Sampling,
    TransformersEngine,
)
from flexjudge_reward.formats.groups import whole_groups
from flexjudge_reward.nano import path, world
from flexjudge_reward.offline.rerank import Ranking, rerank, unscored


@dataclass(frozen=True)
class Asked:
    """A question with its pictures, and how to tell whether a reply is right."""

    question: tuple[str | Media, ...]
    is_right: Callable[[str], bool]


def nano_questions(count: int, seed: int) -> list[Asked]:
    """Held-out pictures of the embedded world."""
    rng = random.Random(f"best of n {seed}")
    asked = [world.question(rng, world.scene(rng, held_out=True), ("what", "count", "exists")) for _ in range(count)]
    return [
        Asked((Media.image(world.draw(one.scene, rng)), one.text), lambda reply, one=one: world.is_correct(one, reply))
        for one in asked
    ]


def file_questions(source: Path, media_root: Path, count: int) -> list[Asked]:
    """Questions of a JSONL file. Raises ConfigError for a row that is wrong, by its line."""
    found = []
    for number, line in enumerate(source.read_text("utf-8").splitlines()[:count], start=1):
        row = json.loads(line)
        if not {"question", "images", "answer"} <= set(row):
            raise ConfigError(
                f"{source}, line {number}: a row has 'question', 'images' and 'answer', not {sorted(row)}"
            )
        pictures = [Media.image(Path(name), roots=[media_root]) for name in row["images"]]
        found.append(Asked((*pictures, row["question"]), lambda reply, row=row: str(row["answer"]) in reply))
    return found


def sample(policy: TransformersEngine, questions: Sequence[Asked], n: int, seed: int) -> list[list[str]]:
    """`n` answers of the policy to each question, at temperature 1."""
    prompts = []
    for one in questions:
        parts = tuple(Quoted(part) if isinstance(part, str) else part for part in one.question)
        prompts += [Prompt((Message("user", parts),), sample=number) for number in range(n)]
    replies = policy.generate(prompts, Sampling(temperature=1.0, max_tokens=64, seed=seed))
    return written(replies, n)


def shares(answered: Sequence[tuple[Asked, Sequence[str]]], rankings: Sequence[Ranking]) -> dict[str, float]:
    """The share of right answers: the first sample, the judge's choice, and the best there was.

    Over the questions of which the judge scored an answer: where it scored none it chose none.

    Raises:
        EngineError: it scored nothing.
    """
    right = [
        (ranking.best, [one.is_right(text) for text in texts])
        for (one, texts), ranking in zip(answered, rankings, strict=True)
        if ranking.best is not None
    ]
    if not right:
        raise EngineError(f"the judge scored no answer at all: {dict(unscored(rankings))}")
    return {
        "first": sum(row[0] for _, row in right) / len(right),
        "judge": sum(row[best] for best, row in right) / len(right),
        "oracle": sum(any(row) for _, row in right) / len(right),
    }


def main() -> None:
    """Samples, judges, and prints the three shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--format", choices=("score", "pair", "listwise", "choice"), default="score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", default="nano", help="nano, a folder, or a Hub id")
    parser.add_argument("--data", type=Path, help="a JSONL file; by default the embedded world")
    parser.add_argument("--media-root", type=Path, default=Path())
    options = parser.parse_args()
    if options.n < 2 or options.questions < 1:
        raise ConfigError(f"a choice needs --n of 2 or more and a question, found {options.n} and {options.questions}")
    nano = options.data is None
    count = options.questions
    asked = nano_questions(count, options.seed) if nano else file_questions(options.data, options.media_root, count)
    policy = TransformersEngine(str(path("base")) if options.policy == "nano" else options.policy)
    answers = sample(policy, asked, options.n, options.seed)
    policy.close()
    left = [(one, texts) for one, texts in zip(asked, answers, strict=True) if len(texts) > 1]
    config = JudgeConfig.resolve({"format": options.format, "model": "nano" if nano else None})
    judge = config.build()
    judge = Judge(
        whole_groups(judge.format, config.schedule, config.budget, config.chunk), judge.engine, judge.sampling
    )
    try:
        rankings = rerank([Example(one.question, texts) for one, texts in left], judge, options.seed)
    finally:
        judge.close()
    found = shares(left, rankings)
    gap = found["oracle"] - found["first"]
    closed = (found["judge"] - found["first"]) / gap if gap else 0.0
    print(f"first answer {found['first']:.1%}   judge's choice {found['judge']:.1%}   oracle {found['oracle']:.1%}")
    lost = len(asked) - sum(ranking.best is not None for ranking in rankings)
    if lost or unscored(rankings):
        print(f"answers without a score: {dict(unscored(rankings))}; questions left out: {lost}")
    print(f"best of {options.n} closes {closed:.0%} of the gap between the first answer and the oracle")


if __name__ == "__main__":
    try:
        main()
    except FlexJudgeError as error:
        raise SystemExit(f"best_of_n: {error}") from None
