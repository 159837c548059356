"""A small convolutional conditional VAE: the label goes into encoder and decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _down(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(8, outside), nn.SiLU()
    )


def _up(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(inside, outside, 3, padding=1),
        nn.GroupNorm(8, outside),
        nn.SiLU(),
    )


class CVAE(nn.Module):
    """Pictures (N, 1, size, size) and labels (N,) to a reconstruction, mu and logvar."""

    def __init__(self, size: int, classes: int, latent: int, width: int = 16) -> None:
        super().__init__()
        if size % 8:
            raise ValueError(f"size must be a multiple of 8, got {size}")
        self.classes, self.latent, self.side, self.depth = classes, latent, size // 8, 4 * width
        self.encoder = nn.Sequential(
            _down(1 + classes, width), _down(width, 2 * width), _down(2 * width, self.depth)
        )
        flat = self.depth * self.side**2
        self.to_latent = nn.Linear(flat, 2 * latent)
        self.from_latent = nn.Linear(latent + classes, flat)
        self.decoder = nn.Sequential(
            _up(self.depth, 2 * width),
            _up(2 * width, width),
            _up(width, width),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def one_hot(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.classes).to(self.to_latent.weight.dtype)

    def encode(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        planes = self.one_hot(labels)[:, :, None, None].expand(-1, -1, *x.shape[-2:])
        features = self.encoder(torch.cat((x, planes), dim=1))
        mu, logvar = self.to_latent(features.flatten(1)).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        features = F.silu(self.from_latent(torch.cat((z, self.one_hot(labels)), dim=1)))
        return self.decoder(features.view(-1, self.depth, self.side, self.side)).sigmoid()

    def forward(self, x: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (N, latent) is standard normal."""
        mu, logvar = self.encode(x, labels)
        return self.decode(mu + noise.to(mu) * (logvar / 2).exp(), labels), mu, logvar
