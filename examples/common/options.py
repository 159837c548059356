"""Checks for argparse: each gives the value, or says what is wrong with it."""

from __future__ import annotations

import argparse

import torch


def at_least(low: float, kind: type = int, high: float = 2**63 - 1):
    """For argparse: numbers from `low` on, to `high`."""

    def convert(text: str):
        value = kind(text)
        if not low <= value:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {text}")
        if value > high:
            raise argparse.ArgumentTypeError(f"must be at most {high}, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse says "invalid int value"
    return convert


def multiple_of(step: int, low: int):
    """For argparse: multiples of `step` from `low` on."""

    def convert(text: str) -> int:
        value = at_least(low)(text)
        if value % step:
            raise argparse.ArgumentTypeError(f"must be a multiple of {step}, got {text}")
        return value

    convert.__name__ = "int"
    return convert


def usable_device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: {reason}") from None


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it stands, and the default of each option."""
    return argparse.ArgumentParser(description=doc, formatter_class=_Formatter)


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)
