"""The engine thread: which core it is to have, and starting it."""

from __future__ import annotations

import os

from jetstream._core.endpoint import Engine
from jetstream.config import Config
from jetstream.errors import ArgumentError, ConfigurationError

__all__ = ["choose_core", "start_thread"]


def choose_core(config: Config, core: int | None) -> int:
    """The core of the engine thread, -1 for any: ``core``, or what the environment asks for.

    Raises ArgumentError, ConfigurationError for one that this process may not use.
    """
    chosen = config.progress_core if core is None else core
    if chosen is None:
        return -1
    allowed = os.sched_getaffinity(0)
    if isinstance(chosen, bool) or not isinstance(chosen, int) or chosen not in allowed:
        listed = ", ".join(str(one) for one in sorted(allowed))
        text = (
            f"is {chosen!r}, but this process may use cores {listed}: take one of them, or start "
            "the process with others (taskset)"
        )
        if core is None:
            raise ConfigurationError(f"JETSTREAM_PROGRESS_CORE {text}")
        raise ArgumentError(f"core {text}")
    return chosen


def start_thread(engine: Engine, config: Config, core: int | None) -> None:
    """Start the engine thread of this process, unless it is running.

    Raises ArgumentError, ConfigurationError, SystemCallError.
    """
    engine.start_thread(choose_core(config, core))
