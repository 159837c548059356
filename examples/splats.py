"""A picture as a sum of coloured 2-D Gaussians, drawn differentiably, in plain PyTorch.

Each Gaussian has a centre, two standard deviations, an angle and a colour. A pixel is the sum of
the colours, each times its Gaussian there: no order, so nothing has to be sorted. Tiles of the
picture are drawn one by one from the Gaussians that reach them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TILE = 32
REACH = 3.5  # standard deviations; beyond, a Gaussian is below 0.0022 and left out


def places_of_detail(picture: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, 2) places (x, y) in pixels, more of them where the picture (3, H, W) changes."""
    grey = picture.mean(dim=0)
    change = torch.stack(torch.gradient(grey)).square().sum(dim=0).sqrt()
    # plain parts get some, too, even where nothing changes
    density = change + 0.5 * change.mean() + 1e-12
    chosen = torch.multinomial(density.flatten(), count, generator=generator)
    y, x = chosen // grey.shape[1], chosen % grey.shape[1]
    return torch.stack((x, y), dim=1).float()


class Gaussians(nn.Module):
    """`count` Gaussians, which start at detail of a picture (3, H, W) and with its colours."""

    def __init__(self, picture: Tensor, count: int, seed: int) -> None:
        super().__init__()
        self.height, self.width = h, w = picture.shape[-2:]
        generator = torch.Generator().manual_seed(seed)
        centres = places_of_detail(picture, count, generator)
        x, y = centres.long().unbind(dim=1)
        spacing = (h * w / count) ** 0.5
        self.centres = nn.Parameter(centres)  # (N, 2), pixels
        self.log_scales = nn.Parameter(torch.full((count, 2), spacing / 2).log())  # of pixels
        self.angles = nn.Parameter(torch.rand(count, generator=generator) * torch.pi)
        self.colours = nn.Parameter(picture[:, y, x].T / 2)  # (N, 3); neighbours add up

    def parameter_groups(self, rate: float) -> list[dict]:
        """For an optimizer: each parameter moves by steps of its own unit."""
        steps = {"centres": 10.0, "log_scales": 2.0, "angles": 2.0, "colours": 1.0}
        return [{"params": [getattr(self, name)], "lr": rate * s} for name, s in steps.items()]

    def forward(self) -> Tensor:
        """The picture, (3, H, W)."""
        xx, xy, yy = self._covariances()
        determinant = xx * yy - xy * xy
        inverse = yy / determinant, -xy / determinant, xx / determinant
        reach = REACH * torch.stack((xx, yy), dim=1).detach().sqrt()
        low, high = self.centres.detach() - reach, self.centres.detach() + reach
        rows = []
        for top in range(0, self.height, TILE):
            tiles = []
            for left in range(0, self.width, TILE):
                corner = low.new_tensor((left, top))
                near = ((high > corner) & (low < corner + TILE)).all(dim=1).nonzero()[:, 0]
                x = torch.arange(left, min(left + TILE, self.width), device=near.device)
                y = torch.arange(top, min(top + TILE, self.height), device=near.device)
                tiles.append(self._tile(near, inverse, x, y))
            rows.append(torch.cat(tiles, dim=2))
        return torch.cat(rows, dim=1)

    def _covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries xx, xy, yy of each Gaussian's covariance matrix, (N,), square pixels."""
        along, across = (2 * self.log_scales).exp().unbind(dim=1)
        # a tenth of a pixel, so that a Gaussian cannot vanish between pixels
        along, across = along + 0.1, across + 0.1
        cos, sin = self.angles.cos(), self.angles.sin()
        xx = along * cos**2 + across * sin**2
        yy = along * sin**2 + across * cos**2
        return xx, (along - across) * cos * sin, yy

    def _tile(self, near: Tensor, inverse: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        """(3, len(y), len(x)), from the Gaussians whose indices are `near`."""
        a, b, c = (entry[near] for entry in inverse)
        centre_x, centre_y = self.centres[near].unbind(dim=1)
        dx, dy = x - centre_x[:, None], y - centre_y[:, None]  # (n, width), (n, height)
        crossed = (2 * b[:, None] * dy)[:, :, None] * dx[:, None, :]
        squares = (c[:, None] * dy**2)[:, :, None] + (a[:, None] * dx**2)[:, None, :]
        weights = torch.exp(-0.5 * (squares + crossed))  # (n, height, width)
        return torch.einsum("nc,nhw->chw", self.colours[near], weights)
