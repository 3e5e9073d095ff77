"""How far a share may be from the truth: Wilson's score interval, 95 %.

Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), without
continuity correction.
"""

from __future__ import annotations

import math

Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The ends of the interval of a share of n trials, in which halves may be counted."""
    z2 = Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # at 0 and at n the interval reaches the share exactly; rounding would leave it a little outside
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))
