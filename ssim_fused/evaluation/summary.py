"""What many results come to: means, quantiles, the worst ones."""

from __future__ import annotations

import heapq
import math
from array import array

import numpy as np

from .compare import Result

_MEANS = ("ssim", "ms_ssim", "mse", "l1")
_MOST_ERRORS = 20  # that are kept to be named


class Summary:
    """Adds results up in little memory: eight bytes a pair, and the ``worst`` ones whole.

    Attributes:
        compared, failed: how many pairs have values, and how many have an error.
        without_ms_ssim: how many of those compared have no MS-SSIM.
        similarities: the SSIM of each pair that was compared.
        worst: (-SSIM, -number, result) of those with the least SSIM, a heap.
        errors: the first of the errors.
    """

    def __init__(self, keep_worst: int = 10) -> None:
        self.compared = 0
        self.failed = 0
        self.without_ms_ssim = 0
        self.similarities = array("d")
        self.worst: list[tuple[float, int, Result]] = []
        self.errors: list[str] = []
        self._keep_worst = keep_worst
        self._kept = 0
        self._sums = dict.fromkeys((*_MEANS, "psnr"), (0.0, 0))

    def add(self, result: Result) -> None:
        """One more result."""
        if result["error"] is not None:
            self.failed += 1
            if len(self.errors) < _MOST_ERRORS:
                self.errors.append(result["error"])
            return
        self.compared += 1
        self.without_ms_ssim += result["ms_ssim"] is None
        self.similarities.append(result["ssim"])
        for name, (total, count) in self._sums.items():
            value = result[name]
            if value is not None and math.isfinite(value):
                self._sums[name] = (total + value, count + 1)
        self._keep(result)

    def _keep(self, result: Result) -> None:
        self._kept += 1  # earlier before later where they are the same
        entry = (-result["ssim"], -self._kept, result)
        if len(self.worst) < self._keep_worst:
            heapq.heappush(self.worst, entry)
        elif self.worst and entry[:2] > self.worst[0][:2]:
            heapq.heapreplace(self.worst, entry)

    def merge(self, other: Summary) -> None:
        """The results of another, too."""
        self.compared += other.compared
        self.failed += other.failed
        self.without_ms_ssim += other.without_ms_ssim
        self.similarities.extend(other.similarities)
        self.errors = (self.errors + other.errors)[:_MOST_ERRORS]
        for name, (total, count) in other._sums.items():
            mine = self._sums[name]
            self._sums[name] = (mine[0] + total, mine[1] + count)
        for *_, result in other.worst:
            self._keep(result)

    def worst_first(self) -> list[Result]:
        """The results with the least SSIM that were kept, the least first."""
        return [result for *_, result in sorted(self.worst, key=lambda entry: entry[:2])][::-1]

    def means(self) -> dict[str, float]:
        """Means by name; infinite PSNRs, of equal pictures, are left out."""
        return {name: total / count for name, (total, count) in self._sums.items() if count}

    def quantiles(self, *shares: float) -> list[float]:
        """SSIMs below which these shares of the pairs lie, interpolated."""
        if not self.similarities:
            return [math.nan for _ in shares]
        return np.quantile(self.similarities, shares).tolist()

    def least(self) -> float:
        """The least SSIM; NaN where nothing was compared."""
        return min(self.similarities, default=math.nan)
