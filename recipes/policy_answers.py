"""What a policy answered when it was asked several times: which of its replies are answers. Knows no trainer."""

from __future__ import annotations

from collections.abc import Sequence

from flexjudge_reward import EngineError, Generation


def written(replies: Sequence[Generation], each: int) -> list[list[str]]:
    """The texts of `each` replies per question; those that failed are left out, with a line that counts them.

    Raises:
        EngineError: all failed.
    """
    failed = [reply.failure for reply in replies if reply.failure]
    if failed:
        print(f"samples        {len(failed)} of {len(replies)} failed, the first: {failed[0].detail}", flush=True)
    if failed and len(failed) == len(replies):
        raise EngineError(f"the policy gave no answer at all: {failed[0].detail}")
    rows = [replies[start : start + each] for start in range(0, len(replies), each)]
    return [[reply.text.strip() for reply in row if not reply.failure] for row in rows]
