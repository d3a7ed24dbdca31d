"""flexjudge_reward: a generative judge that thinks before it scores, as the reward of any RLHF trainer.

    from flexjudge_reward import FlexJudgeReward
    trainer = GRPOTrainer(..., reward_funcs=[FlexJudgeReward()])

The names below are the public ones. Importing this package loads neither torch, transformers nor vllm.
"""

from flexjudge_reward.engines.base import Engine, EngineWrapper
from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.engines.server import ServerEngine
from flexjudge_reward.engines.transformers import TransformersEngine
from flexjudge_reward.engines.vllm import VLLMEngine
from flexjudge_reward.errors import (
    ConfigError,
    CostLimitReached,
    EngineError,
    FlexJudgeError,
    JudgementFailed,
    MediaError,
    MissingExtra,
)
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.budget import BudgetForcing
from flexjudge_reward.formats.builtin import Listwise, MultipleChoice, Pairwise, PairwiseVerdict, Pointwise
from flexjudge_reward.formats.checklist import Checklist
from flexjudge_reward.formats.commit import CommitFirst
from flexjudge_reward.formats.confident import MinConfidence
from flexjudge_reward.formats.expected import ExpectedScore
from flexjudge_reward.formats.groups import AnchoredChunks, Knockout, Tournament, for_group_size
from flexjudge_reward.formats.onecall import OneCall
from flexjudge_reward.formats.rounds import Ask, gather
from flexjudge_reward.formats.swap import PositionSwap
from flexjudge_reward.formats.votes import MajorityVote
from flexjudge_reward.judge.cascade import Cascade
from flexjudge_reward.judge.config import JudgeConfig, RewardConfig
from flexjudge_reward.judge.groups import GroupResult, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.record import Record, read_record
from flexjudge_reward.media.base import Media, register
from flexjudge_reward.media.modality import Loaded, Modality
from flexjudge_reward.offline.annotate import annotate_file
from flexjudge_reward.offline.evaluate.job import Evaluation, evaluate
from flexjudge_reward.offline.on_ray import RayPool, annotate_on_ray, rerank_on_ray, score_on_ray
from flexjudge_reward.offline.rerank import Ranking, best_of_n, rerank, unscored
from flexjudge_reward.offline.score import rejudge_file, rerank_file, score_file
from flexjudge_reward.rubric import Criterion, Rubric, Scale
from flexjudge_reward.trainers.rendezvous import Rendezvous
from flexjudge_reward.trainers.session import RewardSession
from flexjudge_reward.trainers.tasks import Scored
from flexjudge_reward.trainers.trl import FlexJudgeReward
from flexjudge_reward.types import (
    CriterionAnswer,
    Example,
    Failure,
    Generation,
    Message,
    Prompt,
    Request,
    Sampling,
    TokenLogprob,
    Untrusted,
    Verdict,
)

__version__ = "0.2.0"

__all__ = [
    "AnchoredChunks", "Ask", "BudgetForcing", "CachedEngine", "Cascade", "Checklist", "CommitFirst", "ConfigError",
    "CostLimitReached", "Criterion", "CriterionAnswer", "Engine", "EngineError", "EngineWrapper", "Evaluation",
    "Example", "ExpectedScore", "Failure", "FlexJudgeError", "FlexJudgeReward", "Format", "Generation", "GroupResult",
    "Judge", "JudgeConfig", "JudgementFailed", "Knockout", "Listwise", "Loaded", "MajorityVote", "Media", "MediaError",
    "Message", "MinConfidence", "MissingExtra", "Modality", "MultipleChoice", "OneCall", "Pairwise", "PairwiseVerdict",
    "Pointwise", "PositionSwap", "Prompt", "Ranking", "RayPool", "Record", "Rendezvous", "Request", "RewardConfig",
    "RewardSession", "Rubric", "Sampling", "Scale", "Scored", "ScriptedEngine", "ServerEngine", "TokenLogprob",
    "Tournament", "TransformersEngine", "Untrusted", "VLLMEngine", "Verdict", "annotate_file", "annotate_on_ray",
    "best_of_n", "evaluate", "for_group_size", "gather", "judge_groups", "read_record", "register", "rejudge_file",
    "rerank", "rerank_file", "rerank_on_ray", "score_file", "score_on_ray", "unscored",
]  # fmt: skip


def __getattr__(name: str) -> FlexJudgeReward:
    """A judge that file or environment name, as `trl grpo --reward_funcs flexjudge_reward.NAME` takes it.

    Raises AttributeError: there is no such judge and no such name of the package, or the settings are wrong.
    """
    from pathlib import Path

    from flexjudge_reward.trainers.trl import named

    own = name.startswith("_") or Path(__file__).with_name(name).exists()  # of the import system, or a folder
    try:
        found = None if own else named(name)
    except ConfigError as error:  # hasattr, pickle and imports take no other error
        raise AttributeError(str(error)) from error
    if found is None:
        declare = f"to name a judge, set FLEXJUDGE_{name.upper()}__RUBRIC or others, or [{name}] in FLEXJUDGE_CONFIG"
        raise AttributeError(f"module 'flexjudge_reward' has no attribute {name!r}; {declare}")
    return found
