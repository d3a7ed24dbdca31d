"""flexjudge_reward: a generative judge that thinks before it scores, as the reward of any RLHF trainer.

    from flexjudge_reward import FlexJudgeReward
    trainer = GRPOTrainer(..., reward_funcs=[FlexJudgeReward()])

The names below are the public ones. Importing this package loads neither torch, transformers nor vllm.
"""

from flexjudge_reward.engines.base import Engine
from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.engines.server import ServerEngine
from flexjudge_reward.engines.transformers import TransformersEngine
from flexjudge_reward.engines.vllm import VLLMEngine
from flexjudge_reward.errors import ConfigError, EngineError, FlexJudgeError, JudgementFailed, MediaError, MissingExtra
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.budget import BudgetForcing
from flexjudge_reward.formats.builtin import Listwise, MultipleChoice, OneCall, Pairwise, PairwiseVerdict, Pointwise
from flexjudge_reward.formats.expected import ExpectedScore
from flexjudge_reward.formats.groups import AnchoredChunks, Knockout, Tournament, for_group_size
from flexjudge_reward.formats.rounds import Ask, gather
from flexjudge_reward.formats.swap import PositionSwap
from flexjudge_reward.formats.votes import MajorityVote
from flexjudge_reward.judge.config import JudgeConfig, RewardConfig
from flexjudge_reward.judge.groups import GroupResult, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.record import Record, read_record
from flexjudge_reward.media.base import Media, register
from flexjudge_reward.media.modality import Loaded, Modality
from flexjudge_reward.offline.annotate import annotate_file
from flexjudge_reward.offline.rerank import Ranking, best_of_n, rerank, unscored
from flexjudge_reward.offline.score import rerank_file, score_file
from flexjudge_reward.rubric import Rubric, Scale
from flexjudge_reward.trainers.rendezvous import Rendezvous
from flexjudge_reward.trainers.session import RewardSession, Scored
from flexjudge_reward.trainers.trl import FlexJudgeReward
from flexjudge_reward.types import (
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

__version__ = "0.1.0"

__all__ = [
    "AnchoredChunks", "Ask", "BudgetForcing", "CachedEngine", "ConfigError", "Engine", "EngineError", "Example",
    "ExpectedScore", "Failure", "FlexJudgeError", "FlexJudgeReward", "Format", "Generation", "GroupResult", "Judge",
    "JudgeConfig", "JudgementFailed", "Knockout", "Listwise", "Loaded", "MajorityVote", "Media", "MediaError",
    "Message", "MissingExtra", "Modality", "MultipleChoice", "OneCall", "Pairwise", "PairwiseVerdict", "Pointwise",
    "PositionSwap", "Prompt", "Ranking", "Record", "Rendezvous", "Request", "RewardConfig", "RewardSession", "Rubric",
    "Sampling", "Scale", "Scored", "ScriptedEngine", "ServerEngine", "TokenLogprob", "Tournament", "TransformersEngine",
    "Untrusted", "VLLMEngine", "Verdict", "annotate_file", "best_of_n", "for_group_size", "gather", "judge_groups",
    "read_record", "register", "rerank", "rerank_file", "score_file", "unscored",
]  # fmt: skip
