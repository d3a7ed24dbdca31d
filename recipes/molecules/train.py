"""DPO or GRPO of a SMILES generator, with a judge's preferences or scores. RDKit measures what the policy learns.

    python recipes/molecules/train.py dpo --config recipes/molecules/dpo.yaml      # validity 0.29 to 0.47 (seed 1)
    python recipes/molecules/train.py grpo --config recipes/molecules/grpo.yaml    # validity 0.29 to 0.92 (seed 1)

Two CPU cores, nothing to download, under four minutes each: pip install 'flexjudge-reward[trl,molecules]'. The first
run trains a tiny policy and a tiny judge, three to four minutes each, and leaves them in `prepared`. The judge sees
canonical SMILES and descriptors, never QED or the SA score, by which the policy is measured.

    CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001
    CUDA_VISIBLE_DEVICES=1 accelerate launch --num_processes 1 \\
        recipes/molecules/train.py grpo --config recipes/molecules/grpo_zinc.yaml

A generator continues its BOS token. A language model that writes SMILES on request, as in grpo_smileyllama.yaml,
continues `policy_prompt`; all that it writes must then be one SMILES. Every flag of TRL's DPOConfig or GRPOConfig and
of ModelConfig works, in the file or on the command line. A run that was cut off continues with --resume true.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import begin, loading, mapping, parsed, plot, publish, say
from flexjudge_recipes.molecules import measure
from flexjudge_recipes.molecules.pairs import preference_pairs
from flexjudge_recipes.molecules.reward import MoleculeReward
from flexjudge_recipes.molecules.sampling import Sampler, load_tokenizer, policy_prompt
from flexjudge_recipes.nano import molecule_judge, molecule_policy
from flexjudge_recipes.program import run

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from flexjudge_reward import ConfigError, FlexJudgeReward

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class RecipeArguments:
    """The question, the judge, and how much is sampled and measured."""

    prepared: str = field(default="runs/molecules", metadata={"help": "The folder of the tiny policy and judge."})
    question: str = field(default=molecule_judge.QUESTION, metadata={"help": "The task, as the judge sees it."})
    judge: dict[str, Any] | str | None = field(default=None, metadata={"help": "The reward's settings, as JSON."})
    policy_prompt: str | None = field(default=None, metadata={"help": "The text the policy continues; by default BOS."})
    policy_tokens: int = field(default=80, metadata={"help": "dpo: longest sample; grpo has max_completion_length."})
    rows: int = field(default=256, metadata={"help": "dpo: how many rows of samples there are."})
    answers: int = field(default=8, metadata={"help": "dpo: samples of a row."})
    margin: float = field(default=1.0, metadata={"help": "dpo: least difference of the scores of a pair."})
    min_pairs: int = field(default=50, metadata={"help": "dpo: fewer judged pairs are an error."})
    diversity: float = field(default=0.0, metadata={"help": "grpo: weight of the penalty for similar molecules."})
    measure_every: int = field(default=0, metadata={"help": "Steps between two measurements; 0 for none between."})
    samples: int = field(default=500, metadata={"help": "Samples of a measurement."})
    judged: int = field(default=100, metadata={"help": "Molecules among them that the judge scores."})
    resume: bool = field(default=False, metadata={"help": "Continue the run in output_dir."})


# ------------------------------------------------------------------------------------------------- data and trainer


@dataclass(frozen=True)
class Task:
    """What both methods train with."""

    options: RecipeArguments
    policy: str
    tokenizer: Any
    sampler: Sampler
    reward: FlexJudgeReward


def dpo(task: Task, args: DPOConfig, peft: Any) -> DPOTrainer:
    """The policy's samples become pairs, by the judge and by the fact of what is no molecule."""

    def load() -> Any:
        how = {**args.model_init_kwargs, "device_map": args.device}
        return AutoModelForCausalLM.from_pretrained(task.policy, **how)

    work, judge = Path(args.output_dir, "_work"), task.reward.session.judge
    with PartialState().main_process_first():  # one process samples and judges, the others find its files
        pairs = preference_pairs(work, load, task.tokenizer, task.sampler, judge, task.options)
    rows = Dataset.from_list([{"prompt": task.sampler.prompt, **pair} for pair in pairs])
    return DPOTrainer(task.policy, args=args, train_dataset=rows, processing_class=task.tokenizer, peft_config=peft)


def grpo(task: Task, args: GRPOConfig, peft: Any) -> GRPOTrainer:
    """The judge scores what the policy writes; every row is the same prompt."""
    reward = MoleculeReward(task.reward, task.options.question, task.options.diversity)
    rows = Dataset.from_list([{"prompt": task.sampler.prompt}] * 1024)
    return GRPOTrainer(task.policy, [reward], args, rows, processing_class=task.tokenizer, peft_config=peft)


METHODS: dict[str, tuple[Callable[[Task, Any, Any], Any], type]] = {"dpo": (dpo, DPOConfig), "grpo": (grpo, GRPOConfig)}


def main(words: Sequence[str]) -> None:
    """Reads the arguments, trains, reports."""
    if not words or words[0] not in METHODS:
        raise ConfigError(f"the first argument is {' or '.join(METHODS)}; flags such as --config follow")
    make_trainer, config = METHODS[words[0]]
    options, args, model_args = parsed((RecipeArguments, config, ModelConfig), words[1:])
    checkpoint = begin(args, options.resume)
    args.model_init_kwargs = loading(model_args, args.model_init_kwargs)
    settings = molecule_judge.settings(mapping(options.judge), Path(options.prepared))
    with closing(FlexJudgeReward(name="judge", **settings)) as reward:
        judge = reward.session.judge  # built now: wrong settings are an error before any sampling
        policy = molecule_policy.folder_of(model_args.model_name_or_path, Path(options.prepared), args.seed)
        tokenizer = load_tokenizer(policy, model_args.model_revision)
        tokens = getattr(args, "max_completion_length", options.policy_tokens)
        sampler = Sampler(policy_prompt(options.policy_prompt, tokenizer), tokens, args.seed)
        trainer = make_trainer(Task(options, policy, tokenizer, sampler, reward), args, get_peft_config(model_args))
        measured = measure.Measure(sampler, judge, options, molecule_policy.pretrained_on(policy))
        measured.attach(trainer)
        say("training", f"measured on {options.samples} samples at a time")
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        if trainer.accelerator.is_main_process:
            molecule_policy.keep_list(policy, Path(args.output_dir))  # for the novelty of a further round
            report(trainer, reward)
            keep(Path(args.output_dir), measured.samples)


# ---------------------------------------------------------------------------------------------------------- report


def report(trainer: Any, reward: FlexJudgeReward) -> None:
    """Prints what was measured before and after; writes report.json, curve.png and the model card."""
    folder, curve = Path(trainer.args.output_dir), measure.curve(trainer.state)
    rows = measure.table(curve)
    print("\n" + "\n".join(f"{name:12} {was:>8} {now:>8}" for name, was, now in (("", "before", "after"), *rows)))
    results = {"before": curve[min(curve)], "after": curve[max(curve)], "curve": curve}
    if reward.summary.judged:
        print(f"judge          {reward.summary}")
        results["judge"] = reward.summary.as_dict()
    (folder / "report.json").write_text(json.dumps(results | {"log": trainer.state.log_history}, indent=2) + "\n")
    plot(folder / "curve.png", "Molecules", {"share or mean": measure.lines(curve)})
    judge, pairs = reward.session.judge.described(), folder / "_work" / "pairs"
    pairs = pairs if pairs.is_dir() else None
    rubric = str(judge["rubric"]).rstrip(".")
    publish(trainer, rows, f"the model {judge['model']}, with the rubric: {rubric}. {measure.CAUTION}", pairs)
    print(f"curve          {folder / 'curve.png'}")


def keep(folder: Path, samples: Mapping[int, Sequence[str]]) -> None:
    """Writes the measured samples to molecules.jsonl; draws the different molecules among the last."""
    with (folder / "molecules.jsonl").open("w", encoding="utf-8") as lines:
        for step, texts in samples.items():
            rows = [{"step": step, "smiles": text, "qed": measure.qed(text)} for text in texts]
            lines.writelines(json.dumps(row) + "\n" for row in rows)
    last = samples.get(max(samples, default=0), ())
    measure.draw(folder / "molecules.png", list(dict.fromkeys(filter(None, map(measure.canonical, last)))))
    print(f"molecules      {folder / 'molecules.jsonl'}, {folder / 'molecules.png'}")


if __name__ == "__main__":
    run("molecules", lambda: main(sys.argv[1:]))
