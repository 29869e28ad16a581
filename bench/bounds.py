"""Arguments of the benchmarks that argparse shall refuse: numbers out of bounds, bad file names."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def whole(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """A type for argparse: an integer from ``least`` to ``most``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: a number from {least} to {most} is needed")
        return value

    return parse


def positive(text: str) -> float:
    """A type for argparse: a number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0 is needed")
    return value


def share(text: str) -> float:
    """A type for argparse: a share from 0 to below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a share from 0 to below 1 is needed")
    return value


def output(text: str) -> Path:
    """A type for argparse: a file that can be written, found out before anything is measured."""
    try:
        with Path(text).open("a"):
            return Path(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None


def _number(text: str) -> float:
    """That number, or one that no bounds admit."""
    try:
        return float(text)
    except ValueError:
        return math.nan
