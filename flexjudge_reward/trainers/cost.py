"""What a reward's judge costs, and the ceilings that stop a run: `max_cost` and `max_judge_tokens`.

    judge_prompt_tokens         tokens that the judge read in this call, for probes, too, over all ranks
    judge_completion_tokens     tokens that it wrote
    judge_cost                  their cost by `prompt_price` and `completion_price`; only with a price
    judge_cost_total            the cost of all calls so far; only with a price

A reply from the cache costs nothing and is not counted. Judging that passed its deadline is not counted either, since
its replies are dropped. The totals begin anew with every process, so a resumed run has its ceiling again. Every rank
computes the same numbers from the same results, so all ranks stop together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flexjudge_reward.errors import CostLimitReached, EngineError
from flexjudge_reward.judge.config import RewardConfig
from flexjudge_reward.types import Verdict

_MILLION = 1_000_000


def usage(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The tokens of the replies that did not come from the cache, and how many these are."""
    new = [one for verdict in verdicts for one in verdict.generations if not one.cached and one.failure is None]
    return {
        "new_replies": len(new),
        "new_prompt_tokens": sum(one.prompt_tokens for one in new),
        "new_completion_tokens": sum(one.completion_tokens for one in new),
    }


class CostWatch:
    """Adds up what judging costs."""

    def __init__(self, config: RewardConfig) -> None:
        """With the prices and ceilings of `config`."""
        self.config, self.cost, self.tokens = config, 0.0, 0.0

    def add(self, counters: Mapping[str, float]) -> dict[str, float]:
        """The metrics of one call, by the sums of `usage` over all ranks.

        Raises CostLimitReached past a ceiling; EngineError: there is a ceiling, and the server reports no tokens.
        """
        config = self.config
        read, written = (float(counters.get(f"new_{kind}_tokens", 0)) for kind in ("prompt", "completion"))
        cost = (read * config.prompt_price + written * config.completion_price) / _MILLION
        self.cost, self.tokens = self.cost + cost, self.tokens + read + written
        limited = config.max_cost is not None or config.max_judge_tokens is not None
        if limited and counters.get("new_replies") and not read + written:
            raise EngineError(
                "the judge reports no tokens, so max_cost and max_judge_tokens cannot be kept: unset them"
            )
        if config.max_cost is not None and self.cost > config.max_cost:
            self._stop(f"judging has cost {self.cost:.4g}", f"max_cost={config.max_cost:g}")
        if config.max_judge_tokens is not None and self.tokens > config.max_judge_tokens:
            self._stop(f"judging took {self.tokens:,.0f} tokens", f"max_judge_tokens={config.max_judge_tokens}")
        values = {"judge_prompt_tokens": read, "judge_completion_tokens": written}
        if config.prompt_price or config.completion_price:
            values |= {"judge_cost": cost, "judge_cost_total": self.cost}
        return values

    def _stop(self, spent: str, limit: str) -> None:
        raise CostLimitReached(
            f"{spent}, more than {limit}: resume from the last checkpoint with a higher limit. Replies are in the cache"
        )
