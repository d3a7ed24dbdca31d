"""Molecules: a judge picks, prefers and rewards what a SMILES generator writes. RDKit measures what became of it.

    python recipes/molecules.py best_of_n --config recipes/configs/molecules_best_of_n.yaml
    python recipes/molecules.py dpo       --config recipes/configs/molecules_dpo.yaml
    python recipes/molecules.py grpo      --config recipes/configs/molecules_grpo.yaml

Two CPU cores, nothing to download, pip install 'flexjudge-reward[trl,molecules]'. Two steps come first and can be run
alone, `pretrain` (a small SMILES policy) and `judge` (a small judge); each is left in `prepared` and made only if it is
not there. The judge sees canonical SMILES and descriptors, never QED or the SA score, by which the recipe is measured.

With real models, on GPUs (see that file): a public generator and a judge on a server.

    CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001
    CUDA_VISIBLE_DEVICES=1 accelerate launch --num_processes 1 \\
        recipes/molecules.py grpo --config recipes/configs/molecules_grpo_zinc.yaml

A generator is given the token that begins a text. A language model that writes SMILES when it is asked to, such as that
of configs/molecules_grpo_smileyllama.yaml, is given `policy_prompt`; all it writes then must be one SMILES.

Every flag of TRL's GRPOConfig, DPOConfig and ModelConfig works, in the file or on the command line.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import molecule_policy
import molecule_stages as stages
from accelerate import PartialState
from common import Noted, Restored, check_trackers, checkpoint, digest, judged_by, loading, publish, training
from datasets import Dataset
from molecule_reward import MoleculeReward
from transformers import PrinterCallback, TrainingArguments
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    ModelConfig,
    TrlParser,
    get_peft_config,
)

from flexjudge_reward import FlexJudgeError, FlexJudgeReward, JudgeConfig


@dataclass
class RecipeArguments(stages.Options):
    """What only training needs, beside `molecule_stages.Options`."""

    rows: int = field(default=256, metadata={"help": "dpo: how often the policy is asked."})
    answers: int = field(default=8, metadata={"help": "dpo: how many molecules are sampled each time."})
    margin: float = field(default=1.0, metadata={"help": "dpo: least difference of the scores of a pair."})
    fewest_pairs: int = field(default=50, metadata={"help": "dpo: with fewer pairs nothing is trained."})
    diversity: float = field(default=0.0, metadata={"help": "grpo: the price of similarity, see molecule_reward.py."})
    measure_every: int = field(default=0, metadata={"help": "grpo: steps between measurements; 0 for none."})


# ------------------------------------------------------------------------------------------------------------ stages


def pretrain(options: RecipeArguments, args: Any, model_args: ModelConfig) -> None:
    """The policy."""
    print(f"policy         {policy_of(options, args.seed, model_args)}")


def judge(options: RecipeArguments, args: Any, model_args: ModelConfig) -> None:
    """The judge."""
    print(f"judge          {stages.prepared_judge(options)}")


def best_of_n(options: RecipeArguments, args: Any, model_args: ModelConfig) -> None:
    """Samples, and what the judge picks of them."""
    policy = policy_of(options, args.seed, model_args)
    model, tokenizer = molecule_policy.load(policy, model_args, args.device)
    stages.best_of_n(options, model, tokenizer, args.seed, Path(args.output_dir))


def dpo(options: RecipeArguments, args: DPOConfig, model_args: ModelConfig) -> None:
    """Samples become pairs, and pairs a better policy."""
    policy, folder = policy_of(options, args.seed, model_args), Path(args.output_dir)
    with PartialState().main_process_first():  # one process samples and judges, the others find its files
        rows = stages.preference_pairs(options, policy, model_args, args, folder)
    settings = training(args, model_args) | {"pairs": digest(folder / "pairs.jsonl", folder / "facts.jsonl")}
    args.model_init_kwargs = loading(model_args, args.model_init_kwargs)
    tokenizer = molecule_policy.load_tokenizer(policy, model_args)
    prompt = molecule_policy.beginning(options.policy_prompt, tokenizer)
    trainer = DPOTrainer(
        model=policy,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt, **row} for row in rows]),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    _train(trainer, options, settings, policy, {"pairs": len(rows), "policy": model_args.model_name_or_path})


def grpo(options: RecipeArguments, args: GRPOConfig, model_args: ModelConfig) -> None:
    """The judge as the reward."""
    options = dataclasses.replace(options, policy_tokens=args.max_completion_length)  # what is trained is measured
    policy = policy_of(options, args.seed, model_args)
    with PartialState().main_process_first():
        given = stages.judge_options(options)
    judge = FlexJudgeReward(**given, name="judge")  # type: ignore[arg-type]
    reward = MoleculeReward(judge, options.question, options.diversity)
    settings = training(args, model_args) | judged_by(JudgeConfig.resolve(given))
    settings |= {name: getattr(options, name) for name in ("question", "diversity", "policy_prompt")}
    args.model_init_kwargs = loading(model_args, args.model_init_kwargs)
    tokenizer = molecule_policy.load_tokenizer(policy, model_args)
    prompt = molecule_policy.beginning(options.policy_prompt, tokenizer)
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[reward],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt}] * 1024),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    about = {"beta": args.beta, "diversity_price": options.diversity, "policy": model_args.model_name_or_path}
    _train(trainer, options, settings, policy, about)
    print(f"judge          {judge.summary}")
    judge.close()


def _train(
    trainer: Any, options: RecipeArguments, settings: dict[str, Any], policy: str, about: dict[str, Any]
) -> None:
    """Trains, and measures the truth before, in between and after.

    Args:
        settings: what a run that is resumed must have as it had; see `common.checkpoint`.
    """
    args = trainer.args
    begun = checkpoint(args, settings)
    measure = stages.Measure(options, args.seed, policy, begun)
    trainer.remove_callback(PrinterCallback)  # thirty numbers a line
    trainer.add_callback(measure)
    trainer.add_callback(Noted(settings))
    trainer.add_callback(Restored(begun))
    trainer.train(resume_from_checkpoint=begun)
    trainer.save_model(args.output_dir)
    if trainer.accelerator.is_main_process:
        molecule_policy.carry(policy, Path(args.output_dir))
        about |= dataclasses.asdict(options)
        measure.report(Path(args.output_dir), trainer.state.log_history, about)
    measure.close()


def policy_of(options: RecipeArguments, seed: int, model_args: ModelConfig) -> str:
    """The policy's folder or Hub id; "nano" is pretrained here if need be, one for each seed."""
    name = str(model_args.model_name_or_path)
    if name != "nano":
        return name
    with PartialState().main_process_first():
        folder = Path(options.prepared, f"policy-{seed}")
        return str(molecule_policy.pretrain(folder, seed, options.pretrain_steps))


Stage = Callable[[RecipeArguments, Any, ModelConfig], None]
STAGES: dict[str, tuple[Stage, type]] = {
    "pretrain": (pretrain, TrainingArguments),
    "judge": (judge, TrainingArguments),
    "best_of_n": (best_of_n, TrainingArguments),
    "dpo": (dpo, DPOConfig),
    "grpo": (grpo, GRPOConfig),
}


def main(words: list[str]) -> None:
    """Runs the stage that the first word names, with the rest as its arguments."""
    if not words or words[0] not in STAGES:
        raise SystemExit(f"molecules: the first word is one of {', '.join(STAGES)}")
    stage, arguments = STAGES[words[0]]
    parser = TrlParser((RecipeArguments, arguments, ModelConfig))
    options, args, model_args = parser.parse_args_and_config(words[1:], fail_with_unknown_args=True)
    check_trackers(args)
    push, args.push_to_hub = args.push_to_hub, False
    stage(options, args, model_args)
    if push and stage in (dpo, grpo) and PartialState().is_main_process:
        publish(args, Path(args.output_dir))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FlexJudgeError as error:
        raise SystemExit(f"molecules: {error}") from None
