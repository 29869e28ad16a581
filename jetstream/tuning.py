"""Where the results of ``jetstream tune`` lie, and what a job makes of them.

Rank 0 alone looks for a file; what it finds travels to all ranks, so that all choose alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jetstream.bench.machine import cpu_model
from jetstream.collectives.select import Selection, is_crowded
from jetstream.collectives.tuning import (
    HostName,
    Rules,
    parse,
    read_rules,
    text_from_selection,
)
from jetstream.config import Config
from jetstream.errors import ConfigurationError, TuningError

__all__ = [
    "Tuning",
    "default_path",
    "find_tuning",
    "read_file",
    "select",
    "this_host",
    "write_file",
]

_log = logging.getLogger("jetstream.tuning")
_FILE_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a host has in the way of results. ``problem``: why a file that is there is not used."""

    path: Path | None = None
    rules: dict[bool, Rules] = field(default_factory=lambda: {False: {}, True: {}})
    problem: str = ""

    @property
    def is_used(self) -> bool:
        """Whether there are rules to choose by."""
        return any(self.rules.values())


def this_host() -> HostName:
    """What this host is called in files."""
    return HostName(cpu_model(), os.cpu_count() or 1)


def default_path(host: HostName) -> Path | None:
    """Where the results of ``host`` lie: in XDG_CACHE_HOME, or in .cache of the home directory.

    The name holds a digest of the host, since home directories are shared by hosts that differ.
    None where there is no home.
    """
    digest = hashlib.sha256(str(host).encode()).hexdigest()[:12]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not cache.startswith("/"):  # as the XDG base directory specification wants it
        home = os.environ.get("HOME", "")
        if not home.startswith("/"):
            return None
        cache = f"{home}/.cache"
    return Path(cache) / "jetstream" / f"tune-{digest}.json"


def read_file(path: Path) -> Any:
    """The JSON document in a file.

    Raises OSError, or TuningError where the file is no such document.
    """
    with path.open("rb") as file:
        content = file.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise TuningError(f"it is larger than {_FILE_BYTES_MAX} bytes")
    try:
        return parse(content.decode())
    except UnicodeDecodeError as error:
        raise TuningError(f"it is no UTF-8 text: {error}") from None


def write_file(path: Path, document: dict[str, Any]) -> None:
    """Write a document, so that no reader ever sees half of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def find_tuning(setting: str) -> Tuning:
    """What ``setting``, the value of JETSTREAM_TUNE, leads to on this host.

    Raises ConfigurationError for a file that was named and cannot be read. Any other problem is
    in the result: a job does not fail because of results that were only to make it faster.
    """
    if setting == "off":
        return Tuning()
    host = this_host()
    path = Path(setting).expanduser() if setting else default_path(host)
    if path is None:
        return Tuning()
    try:
        return Tuning(path, read_rules(read_file(path), host))
    except TuningError as error:
        return Tuning(path, problem=str(error))
    except OSError as error:
        if setting:
            raise ConfigurationError(
                f"JETSTREAM_TUNE is {setting!r}, which cannot be read: {error.strerror}; allowed: "
                "off, or a file that 'jetstream tune' has written"
            ) from None
        is_absent = isinstance(error, FileNotFoundError)
        return Tuning(problem="" if is_absent else f"{path}: {error.strerror}")


def select(config: Config, cpus: tuple[frozenset[int], ...]) -> str:
    """The text of what a job chooses by; ``cpus[r]`` are the cores that rank r may use.

    Called on rank 0. Raises ConfigurationError as ``find_tuning`` does.
    """
    tuning = find_tuning(config.tune)
    crowded = is_crowded(cpus)
    if tuning.problem:
        where = f"{tuning.path}: " if tuning.path else ""
        _log.warning("tuning results are not used: %s%s", where, tuning.problem)
    rules = tuning.rules[crowded]
    try:
        return text_from_selection(Selection(crowded, rules, str(tuning.path) if rules else ""))
    except TuningError as error:
        _log.warning("tuning results are not used: %s: %s", tuning.path, error)
        return text_from_selection(Selection(crowded))
