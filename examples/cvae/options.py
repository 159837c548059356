"""Options of the scripts that train the CVAE."""

from __future__ import annotations

import argparse

from common.options import at_least, multiple_of


def add_training(parser: argparse.ArgumentParser, epochs: int) -> None:
    """What is trained, and how; epochs: the default."""
    add = parser.add_argument
    add("--size", type=multiple_of(8, low=8), default=32, help="of a picture; a multiple of 8")
    add("--epochs", type=at_least(1), default=epochs, help="passes over the pictures")
    add("--batch-size", type=at_least(1), default=64, help="pictures a step, of all processes")
    add("--lr", type=at_least(0, float), default=4e-3, help="highest learning rate")
    add("--latent", type=at_least(1), default=10, help="numbers that a picture is encoded in")
    add("--alpha", type=at_least(0, float), default=0.5, help="weight of the SSIM loss")
    add("--beta", type=at_least(0, float), default=6e-3, help="weight of the KL divergence")
    add("--seed", type=at_least(0), default=0, help="of weights, order and noise")
