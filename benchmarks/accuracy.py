"""Relative error of value and gradient against float64, where the usual form loses digits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from release import tables

from .engine import Workload, images, true_loss
from .providers import BY_NAME

SHAPE = (2, 3, 256, 320)


def _noisy(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return x, x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _black_and_white() -> tuple[Tensor, Tensor]:
    """Black on the left, and at the centre; of the white pixels half are a step of 255 darker."""
    generator = torch.Generator().manual_seed(2)
    x = torch.zeros(SHAPE, dtype=torch.float64)
    x[..., 9 * SHAPE[3] // 16 :] = 1
    return x, x * (1 - torch.randint(2, SHAPE, generator=generator) / 255)


def families() -> dict[str, tuple[Tensor, Tensor]]:
    """Name to two float64 pictures with a data range of 1."""
    natural = images(Workload("value", SHAPE, "float64"))[0]
    return {
        "natural, noise 0.05": _noisy(natural, 0.05),
        "noise 1e-3": _noisy(natural, 1e-3),
        "noise 1e-4": _noisy(natural, 1e-4),
        "bright and flat": _noisy(0.98 + 0.01 * natural, 1e-3),
        "flat, noise 1e-4": _noisy(0.60 + 0.01 * natural, 1e-4),
        "black and white": _black_and_white(),
        "offset 1000": _noisy(1000 + natural, 0.05),
    }


def measure(names: Iterable[str]) -> list[dict]:
    """One row for each provider and family, float32."""
    rows = []
    for family, pictures in families().items():
        x, y = (t.float() for t in pictures)
        for name in names:
            provider = BY_NAME[name]
            if provider.missing():
                continue
            loss = provider.make()
            true_x = x.double().requires_grad_()
            true = true_loss(true_x, y, provider.padding)
            row = dict.fromkeys(["provider", "family", "value_error", "gradient_error", "problem"])
            row |= {"provider": name, "family": family}
            rows.append(row)
            try:
                if not provider.gradient:
                    row["value_error"] = abs(float(loss(x, y)) - true.item()) / true.item()
                    continue
                ours = x.clone().requires_grad_()
                value = loss(ours, y)
                (grad,) = torch.autograd.grad(value, ours)
            except Exception as error:  # a library may refuse a picture in any way
                row["problem"] = f"{type(error).__name__}: {error}"
                continue
            (true_grad,) = torch.autograd.grad(true, true_x)
            row["value_error"] = abs(value.item() - true.item()) / true.item()
            row["gradient_error"] = ((grad - true_grad).norm() / true_grad.norm()).item()
    return rows


def markdown(rows: list[dict], column: str) -> str:
    """Providers down, families across."""
    names = list(dict.fromkeys(row["family"] for row in rows))
    lines = [["", *names]]
    for provider in dict.fromkeys(row["provider"] for row in rows):
        found = {row["family"]: row[column] for row in rows if row["provider"] == provider}
        cells = [
            f"{float(v):.0e}" if (v := found.get(name)) not in (None, "") else "" for name in names
        ]
        lines.append([provider, *cells])
    return tables.markdown(lines)
