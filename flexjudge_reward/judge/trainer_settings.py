"""Settings of single trainers and of the reward server: FLEXJUDGE_SERVE_PORT, FLEXJUDGE_VERL_IDLE, ...

What all trainers share is in `config.py: RewardConfig`. `config.py: trainer_config` reads these.
"""

from __future__ import annotations

from dataclasses import dataclass

from flexjudge_reward.judge.settings import setting


@dataclass(frozen=True)
class TrainerConfig:
    """The settings that only one trainer, or only the server, has. Their names begin with its name."""

    serve_host: str = setting("127.0.0.1", "the address that the server listens on; another needs a token")
    serve_port: int = setting(8900, "its port", 0, 65535)
    serve_workers: int = setting(1, "processes on this port, which share the cache; several take whole groups only", 1)
    serve_rows: int = setting(4096, "the most rows that wait or are judged at once; above, callers wait", low=1)
    serve_deadline: float = setting(300.0, "seconds within which all rows of a group must arrive", low=0.001)
    verl_idle: float = setting(60.0, "seconds without a further row after which a group counts as whole", low=0.001)
    verl_abstain: bool = setting(True, "leave a sample without a reward out, as the v1 trainer can; else it gets 0.5")
