"""flexjudge_reward: a generative judge that thinks before it scores, as the reward of any RLHF trainer.

    from flexjudge_reward import FlexJudgeReward
    trainer = GRPOTrainer(..., reward_funcs=[FlexJudgeReward()])

The names below are the public ones. Importing this package loads neither torch, transformers nor vllm.
"""

from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.engines.server import ServerEngine
from flexjudge_reward.engines.transformers import TransformersEngine
from flexjudge_reward.engines.vllm import VLLMEngine
from flexjudge_reward.errors import (
    ConfigError,
    EngineError,
    FlexJudgeError,
    JudgementFailed,
    MediaError,
    MissingExtra,
)
from flexjudge_reward.formats.builtin import Choice, Listwise, Pair, Relation, Score
from flexjudge_reward.judge.config import JudgeConfig
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.media.base import Media
from flexjudge_reward.rubric import Rubric, Scale
from flexjudge_reward.trainers.trl import FlexJudgeReward
from flexjudge_reward.types import (
    Engine,
    Example,
    Failure,
    Format,
    Generation,
    Message,
    Prompt,
    Quoted,
    Sampling,
    Verdict,
)

__version__ = "0.1.0"

__all__ = [
    "CachedEngine",
    "Choice",
    "ConfigError",
    "Engine",
    "EngineError",
    "Example",
    "Failure",
    "FlexJudgeError",
    "FlexJudgeReward",
    "Format",
    "Generation",
    "Judge",
    "JudgeConfig",
    "JudgementFailed",
    "Listwise",
    "Media",
    "MediaError",
    "Message",
    "MissingExtra",
    "Pair",
    "Prompt",
    "Quoted",
    "Relation",
    "Rubric",
    "Sampling",
    "Scale",
    "Score",
    "ScriptedEngine",
    "ServerEngine",
    "TransformersEngine",
    "VLLMEngine",
    "Verdict",
]
