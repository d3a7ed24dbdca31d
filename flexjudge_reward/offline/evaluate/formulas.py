"""Formulas of the metrics: correlations, edit distance, majorities, the Ties score of RewardBench 2, how many labels.

Arrays are of numpy; NaN is "not known" and left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any


def ties_score(units: Any) -> float:
    """RewardBench 2's Ties: .3 tied and .3 ref accuracy, .2 and .2 margins above the spread, .01 of a tanh."""
    import numpy as np

    ref, tied, spread, margin, other = units.T
    both = np.isfinite(ref) & np.isfinite(tied)
    least = np.minimum(margin, other)[both]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(np.tanh(least / spread[both] - 1), nan=0.0)
    terms = [_mean(tied), _mean(ref), _mean(margin[both] > spread[both]), _mean(least > spread[both]), _mean(ratio)]
    return float(np.dot([0.3, 0.3, 0.2, 0.2, 0.01], terms))


def _mean(values: Any) -> float:
    import numpy as np

    values = np.asarray(values, float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def pearson(x: Any, y: Any) -> float:
    """The linear correlation of the pairs without NaN; NaN where one of both does not vary."""
    import numpy as np

    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept] - x[kept].mean() if kept.any() else x[kept], y[kept] - y[kept].mean() if kept.any() else y[kept]
    scale = math.sqrt(float((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else math.nan


def spearman(x: Any, y: Any) -> float:
    """The correlation of the ranks; equal values share the mean of their ranks."""
    import numpy as np

    kept = np.isfinite(x) & np.isfinite(y)
    return pearson(_ranks(x[kept]), _ranks(y[kept]))


def _ranks(values: Any) -> Any:
    import numpy as np

    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def order_of(scores: Sequence[float]) -> str:
    """Letters, best first; equal ones with the later letter first, as the code of Flex-Judge sorts them."""
    return "".join(chr(65 + i) for i in sorted(range(len(scores)), key=lambda i: (-scores[i], -i)))


def edit_distance(one: str, other: str) -> int:
    """Levenshtein."""
    before = list(range(len(other) + 1))
    for row, a in enumerate(one, 1):
        now = [row]
        for column, b in enumerate(other, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (a != b)))
        before = now
    return before[-1]


def majority(votes: Sequence[int | None]) -> int | None:
    """The most common outcome of those that could be read; a draw is a tie."""
    counts = Counter(vote for vote in votes if vote is not None).most_common(2)
    if not counts:
        return None
    return 0 if len(counts) == 2 and counts[0][1] == counts[1][1] else counts[0][0]


def wilson(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share; unlike a bootstrap it has a width where all rows are alike."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, (middle - spread) / (1 + z * z / count)), min(1.0, (middle + spread) / (1 + z * z / count))


def labels_needed(share: float, margin: float, level: float = 0.95) -> int:
    """How many labels give an interval of plus or minus `margin` about a share (normal approximation), at least 30."""
    z, p = NormalDist().inv_cdf((1 + level) / 2), min(max(share, 0.05), 0.95)
    return max(30, math.ceil(p * (1 - p) * (z / margin) ** 2)) if margin > 0 else 10_000
