"""How the learning rate changes in a training."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

RISE = 0.1  # of the steps


def one_cycle(optimizer: Optimizer, lr: float, steps: int) -> OneCycleLR:
    """A short rise to `lr`, then a cosine down."""
    # torch's rise takes RISE * steps - 1 steps, and it divides by that, be it 0
    rise = RISE if RISE * steps > 1 else 0.0
    return OneCycleLR(optimizer, lr, total_steps=steps, pct_start=rise, final_div_factor=2)
