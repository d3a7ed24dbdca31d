"""What a judge is trained on by RL: rows with true scores, as prompts of the format that it will be asked in.

A row is what `flexjudge score` reads (question, candidates, images) with two more columns:

    scores        the true score of each candidate, higher is better
    description   optional: the images in words, for the stage `caption`
    task          optional: a name; rewards are logged by it, such as those of an old task that is replayed

Stages, as in MSRL (arXiv 2603.25108): `text` keeps the rows without media, `caption` writes the description where the
media are, `media` takes rows as they are. A run is one stage; the next one starts from its output.

Options come in an order of the item's own, and each letter is the best one equally often: a judge prefers the letters
that win often, and drops the others (judge_training/rl/README.md).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flexjudge_recipes.judge_training.rl.rewards import earned, picked

from flexjudge_reward import ConfigError, Example, Judge, Media, OneCall
from flexjudge_reward.data.cells import is_number
from flexjudge_reward.data.rows import BadRow, Row, Rows
from flexjudge_reward.engines.model import Chat
from flexjudge_reward.offline.annotate import layer_settings

Stage = Literal["text", "caption", "media"]


@dataclass(frozen=True)
class Item:
    """One example with the true score of each candidate."""

    example: Example
    scores: tuple[float, ...]
    task: str = "items"

    def reordered(self, order: Sequence[int]) -> Item:
        """The same item with its candidates in another order."""
        candidates = [self.example.candidates[index] for index in order]
        return Item(self.example.with_candidates(candidates), tuple(self.scores[index] for index in order), self.task)


def read_items(rows: Rows, format: OneCall, stage: Stage, reward: str) -> tuple[list[Item], Counter[str]]:
    """The items of a data set, and the reasons for which rows were left out, with their numbers.

    Raises ConfigError: no row can be used; the message has the most frequent reason.
    """
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    for row in rows.read(lambda row: format.check(row.example)):
        try:
            items.append(_item(row, format, stage, reward))
        except ConfigError as error:
            left_out[str(error)] += 1
    if not items:
        reason = left_out.most_common(1)[0][0] if left_out else "it is empty"
        raise ConfigError(f"{rows}: no row can be used; {reason}")
    return items, left_out


def _item(row: Row | BadRow, format: OneCall, stage: Stage, reward: str) -> Item:
    if isinstance(row, BadRow):
        raise ConfigError(row.why)
    scores = row.entry.get("scores")
    if not isinstance(scores, list) or not all(map(is_number, scores)):
        raise ConfigError("a row needs 'scores', a list of numbers")
    if len(scores) != len(row.example.candidates):
        raise ConfigError("a row needs as many 'scores' as candidates")
    if reward in ("choice", "both_orders") and picked(scores) is None:
        raise ConfigError("two candidates share the highest score")
    if reward == "ranking" and len(set(scores)) < len(scores):
        raise ConfigError("candidates with equal scores have no order")
    if reward == "both_orders" and len(scores) != 2:
        raise ConfigError("both orders are those of two candidates")
    scale = format.scale(row.example)
    if reward == "teacher" and not all(scale.low <= one <= scale.high for one in scores):
        raise ConfigError(f"the teacher's scores are off the scale {scale.low:g} to {scale.high:g}")
    example = _staged(row.example, stage, row.entry.get("description"))
    if any(media.kind != "image" for media in example.media):
        raise ConfigError("the trainer can show images only")
    return Item(example, tuple(map(float, scores)), str(row.entry.get("task") or "items"))


def _staged(example: Example, stage: Stage, description: object) -> Example:
    """The example as its stage shows it. Raises ConfigError if this stage has none."""
    if stage == "media" or (stage == "text" and not example.media):
        return example
    if stage == "text":
        raise ConfigError("a row with media is not for the stage 'text'")
    if len(example.media) != 1 or not isinstance(description, str) or not description.strip():
        raise ConfigError("the stage 'caption' needs one image and its 'description'")

    def described(content: Sequence[str | Media]) -> tuple[str | Media, ...]:
        return tuple(f"{description.strip()}\n" if isinstance(part, Media) else part for part in content)

    return Example(described(example.question), [described(one) for one in example.candidates], None, example.rubric)


def balanced(items: Iterable[Item], seed: int) -> list[Item]:
    """The items in random order, each with its candidates in random order, the best at each letter equally often."""
    rng = random.Random(seed)
    shuffled = sorted(items, key=lambda _: rng.random())
    turns: Counter[int] = Counter(dict.fromkeys(range(2, 9), rng.randrange(8)))  # of each number of candidates
    result = []
    for item in shuffled:
        count, best = len(item.scores), max(range(len(item.scores)), key=item.scores.__getitem__)
        rest = [index for index in range(count) if index != best]
        rng.shuffle(rest)
        place = turns[count] % count
        turns[count] += 1
        result.append(item.reordered([*rest[:place], best, *rest[place:]]))
    return result


def pass_rates(items: Sequence[Item], judge: Judge, draws: int, reward: str, file: Path) -> list[float | None]:
    """How often the judge earns everything on each item, over `draws` sampled replies. Resumes from `file`.

    Draws that failed through no fault of the judge do not count; an item without any other has no rate, and is asked
    again by the next run. Items are worked off in parts, so that a run that is cut off loses one part at most. A rate
    of another judge, wording, sampling, reward or other true scores is not used.

    Args:
        reward: one of `rewards.REWARDS`.
    """
    text = file.read_text("utf-8") if file.exists() else ""
    known = dict(entry for line in text.splitlines() for entry in _entries(line))
    layers = [layer_settings(layer) for layer in judge.format.layers()]
    how = (draws, reward, judge.sampling, layers, sorted(judge.engine.identity().items()))
    names = [item.example.digest((how, item.scores)) for item in items]
    missing = [index for index, name in enumerate(names) if name not in known]
    file.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(missing), 256):
        part = missing[start : start + 256]
        found: dict[str, list[bool]] = {names[index]: [] for index in part}
        for draw in range(draws):
            verdicts = _redrawn(judge, draw)([items[index].example for index in part])
            for index, verdict in zip(part, verdicts, strict=True):
                worth = earned(reward, verdict, items[index].scores)
                found[names[index]] += [] if worth is None else [worth > 0.999]
        fresh = {name: sum(each) / len(each) for name, each in found.items() if each}
        with file.open("a", encoding="utf-8") as out:
            out.write("\n" if text and not text.endswith("\n") else "")  # after a line that a kill cut
            out.writelines(json.dumps([name, rate]) + "\n" for name, rate in fresh.items())
        text, known = "", known | fresh
    return [known.get(name) for name in names]


def _entries(line: str) -> list[tuple[str, float]]:
    try:
        name, rate = json.loads(line)
    except (ValueError, TypeError):  # the line that a kill cut
        return []
    return [(name, rate)]


def _redrawn(judge: Judge, draw: int) -> Judge:
    return Judge(judge.format, judge.engine, replace(judge.sampling, seed=judge.sampling.seed + draw))


def trainer_rows(items: Iterable[Item], format: OneCall, chat: Chat, twins: bool) -> Iterator[dict[str, Any]]:
    """Rows of a TRL data set: `prompt`, `images`, `scores`, `scale`, `task`, and `twin` of a pair in both orders.

    Args:
        chat: of the judge; the turns are those that its template gets at use, with control tokens neutralised.
        twins: every item once more, its two candidates the other way round, right after it.
    """
    for number, item in enumerate(items):
        for order in (None, (1, 0)) if twins else (None,):
            shown = item if order is None else item.reordered(order)
            (prompt,) = format.render(shown.example)
            scale = format.scale(shown.example)
            yield {
                "prompt": _turns(chat.messages(prompt)),
                "images": [media.images()[0] for media in prompt.shown],
                "scores": list(shown.scores),
                "scale": [scale.low, scale.high, float(scale.decimals)],
                "task": shown.task,
                "twin": number if twins else -1,
            }


def _turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL fills the places of images in their order; all contents are alike and all parts have the same keys."""
    if all(isinstance(message["content"], str) for message in messages):
        return messages
    contents = [
        [{"type": "text", "text": given}] if isinstance(given := message["content"], str) else given
        for message in messages
    ]
    parts = [[{"type": part["type"], "text": part.get("text")} for part in content] for content in contents]
    return [{"role": one["role"], "content": content} for one, content in zip(messages, parts, strict=True)]
