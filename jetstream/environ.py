"""Typed access to environment variables: errors name variable, value and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NoReturn

from jetstream.errors import ConfigurationError

__all__ = ["Reader", "bad", "parse_size"]

_SECONDS_MAX = 1e6


def bad(name: str, value: str, allowed: str) -> NoReturn:
    """Raises ConfigurationError."""
    raise ConfigurationError(f"{name} is {value!r}; allowed: {allowed}")


class Reader:
    """Typed access to environment variables; an empty variable counts as not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str:
        """Returns the value, or ""."""
        return self._environ.get(name, "").strip()

    def first(self, *names: str) -> str:
        """Returns the name of the first variable that is set, or ""."""
        return next((name for name in names if self.text(name)), "")

    def integer(self, name: str, low: int, high: int, *, default: int | None = None) -> int:
        """Returns the value as a number, or the default if there is one and it is not set."""
        value = self.text(name)
        if not value and default is not None:
            return default
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            bad(name, value, f"an integer from {low} to {high}")
        return int(value)

    def seconds(self, name: str, default: float) -> float:
        """Returns the value as a time above 0, or the default."""
        value = self.text(name)
        if not value:
            return default
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0.0 < number <= _SECONDS_MAX:
            bad(name, value, f"a number of seconds above 0, at most {_SECONDS_MAX:.0f}")
        return number

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """Returns the value, which is one of `allowed`, or ""."""
        value = self.text(name)
        if value and value not in allowed:
            bad(name, value, ", ".join(allowed))
        return value


def parse_size(value: str) -> int:
    """Parses a number of bytes with an optional suffix K, M or G; -1 for anything else."""
    match = re.fullmatch(r"([0-9]{1,10})([KkMmGg]?)", value)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()] if match else -1
