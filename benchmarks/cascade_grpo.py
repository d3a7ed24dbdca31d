"""One training of the demo, judged by a cascade: a cell of `uncertainty.py grpo`, which runs it.

    python benchmarks/cascade_grpo.py --seed 1 --output_dir runs/cascade

A recipe takes settings and these name one judge; a cascade is two, so it goes to the trainer as a user's own judge
does: `FlexJudgeReward(Cascade(small, large, unsure))`. All else is the recipe's: arguments, questions, policy, report.
The small judge is the demo's by four votes. The large one is the truth of the nano world with a wrong score in one case
of 50, the same one each time that the case comes.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import begin, loading, parsed
from flexjudge_recipes.grpo_vlm.train import RecipeArguments, report, training_data
from flexjudge_recipes.nano import shapes, vlm_task

from trl import GRPOConfig, GRPOTrainer, ModelConfig

from flexjudge_reward import (
    Cascade,
    FlexJudgeReward,
    Generation,
    Judge,
    Media,
    Pointwise,
    Request,
    ScriptedEngine,
    Untrusted,
)

CONFIG = Path(__file__).resolve().parent.parent / "recipes" / "grpo_vlm" / "nano.yaml"
UNSURE = 0.95


def main() -> None:
    """Trains one seed; writes report.json as the recipe does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--unsure", type=float, default=UNSURE, help="0 asks the large judge never")
    given = parser.parse_args()
    words = ["--config", str(CONFIG), "--seed", str(given.seed), "--output_dir", str(given.output_dir)]
    options, args, model_args = parsed((RecipeArguments, GRPOConfig, ModelConfig), words)
    begin(args, False)
    args.model_init_kwargs = loading(model_args, args.model_init_kwargs)
    rows = training_data(options, args.seed)
    cache = str(given.output_dir.with_suffix(".sqlite"))
    small = Judge.load(model="nano", votes=4, temperature=1.0, cache=cache)
    large = Judge(Pointwise(prompt_set="nano"), ScriptedEngine(strong(rows, args.seed)))
    reward = FlexJudgeReward(Cascade(small, large, given.unsure), name="judge", num_generations=args.num_generations)
    trainer = GRPOTrainer(
        model=vlm_task.policy(),
        processing_class=vlm_task.processor(),
        reward_funcs=[reward],
        args=args,
        train_dataset=rows,
    )
    measure = vlm_task.Measure(options.measure_every, {f"rewards/{reward.__name__}/mean": "judge reward"})
    measure.attach(trainer)
    trainer.train()
    report(trainer, reward, measure, "a cascade")
    reward.close()


def strong(rows: Any, seed: int) -> Callable[[Request], Generation]:
    """A judge of the training's rows that says the truth but for one case of 50."""
    rng = random.Random(f"grpo {seed}")  # as `vlm_task.training_rows` draws them
    questions = [shapes.question(rng, shapes.scene(rng), vlm_task.KINDS) for _ in range(len(rows))]
    asked = {(Media.image(row["image"]).digest, one.text): one for row, one in zip(rows, questions, strict=True)}

    def reply(request: Request) -> Generation:
        question, answer = [part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted)]
        digest = request.prompt.media[0].digest
        chance = random.Random(f"strong {seed} {digest} {question} {answer}")
        said = shapes.score(asked[digest, question], answer)
        if chance.random() < 0.02:
            said = chance.choice([one for one in (1, 5, 10) if one != said])
        return Generation(f"<think></think><answer>{said}</answer>", completion_tokens=30)

    return reply


if __name__ == "__main__":
    main()
