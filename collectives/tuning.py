"""The file that ``jetstream tune`` writes, and the text in which rank 0 hands it to all ranks.

``docs/tuning.md`` describes the format. What is read was written by anyone: it is checked whole,
and either all of it is used or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jetstream.collectives.calls import CHUNK_ALIGN, CHUNK_BYTES_MAX, RANKS_MAX
from jetstream.collectives.select import Rule, Selection, Where, algorithms_of
from jetstream.dtypes import Kind
from jetstream.errors import TuningError

__all__ = [
    "SCHEMA",
    "TEXT_MAX",
    "HostName",
    "Rules",
    "merge_rules",
    "name_where",
    "parse",
    "read_rules",
    "selection_from_text",
    "text_from_selection",
    "write_rules",
]

SCHEMA = "jetstream.tune/1"
#: Longest text of a selection, characters.
TEXT_MAX = 1 << 17
_RULES_MAX = 64
_LISTS_MAX = 1024
_BYTES_MAX = 1 << 48
_KINDS = {kind.label: kind for kind in Kind if kind is not Kind.NONE}

Rules = Mapping[tuple[Where, Kind], tuple[Rule, ...]]


@dataclass(frozen=True, slots=True)
class HostName:
    """What a host has to be for a file to speak about it: its processor, the ranks' cores."""

    cpu: str
    cores: int

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores"


def read_rules(document: Any, host: HostName) -> dict[bool, Rules]:
    """The rules of a file's JSON ``document``, apart for ranks that share cores (True) or do not.

    Raises TuningError that names the place of what is wrong, or the host it was measured on.
    """
    if type(document) is not dict or document.get("schema") != SCHEMA:
        found = document.get("schema") if type(document) is dict else type(document).__name__
        raise TuningError(f"schema is {found!r:.60}, not {SCHEMA!r}")
    named = document.get("host")
    if type(named) is not dict or {"cpu", "cores"} - named.keys():
        raise TuningError("host lacks cpu or cores")
    measured = HostName(str(named["cpu"])[:200], named["cores"])
    if measured != host:
        raise TuningError(f"it was measured on {measured}; this is {host}")
    return _read_all(document.get("rules"))


def write_rules(rules: Rules, *, is_crowded: bool) -> list[dict[str, Any]]:
    """What goes under ``rules`` in the document."""
    return [
        {
            **name_where(where),
            "crowded": is_crowded,
            "kind": kind.label,
            "sizes": [
                {
                    "up_to_bytes": rule.bytes_max,
                    "algorithm": rule.algorithm.label,
                    "chunk_bytes": rule.chunk_bytes,
                }
                for rule in listed
            ],
        }
        for (where, kind), listed in sorted(rules.items(), key=_order)
    ]


def _order(item: tuple[tuple[Where, Kind], tuple[Rule, ...]]) -> tuple[bool, tuple[int, ...], Kind]:
    where, kind = item[0]
    return (False, (where,), kind) if isinstance(where, int) else (True, where, kind)


def name_where(where: Where) -> dict[str, Any]:
    """Fields that tell whom rules are for."""
    if isinstance(where, int):
        return {"world": where}
    return {"world": sum(where), "hosts": list(where)}


def merge_rules(points: Iterable[tuple[int, Rule]]) -> tuple[Rule, ...]:
    """Rules from choices at single sizes: (bytes, choice), sizes ascending.

    Between two sizes with different choices the limit is their geometric mean; beyond the last
    size its choice holds. ``bytes_max`` of the choices does not matter.
    """
    merged: list[tuple[int, Rule]] = []
    for size, rule in points:
        if merged:
            last_size, last = merged[-1]
            if (last.algorithm, last.chunk_bytes) == (rule.algorithm, rule.chunk_bytes):
                merged[-1] = (size, last)
                continue
            limit = int((last_size * size) ** 0.5)
            merged[-1] = (last_size, Rule(limit, last.algorithm, last.chunk_bytes))
        merged.append((size, Rule(None, rule.algorithm, rule.chunk_bytes)))
    return tuple(rule for _, rule in merged)


def text_from_selection(selection: Selection) -> str:
    """The selection as a text that all ranks turn into the same selection.

    Raises TuningError when it is too long to be handed out.
    """
    document = {
        "crowded": selection.crowded,
        "source": selection.source,
        "rules": write_rules(selection.rules, is_crowded=selection.crowded),
    }
    text = json.dumps(document, separators=(",", ":"))
    if len(text) > TEXT_MAX:
        raise TuningError(f"its rules take {len(text)} characters, at most {TEXT_MAX} are allowed")
    return text


def selection_from_text(text: str) -> Selection:
    """The inverse of ``text_from_selection``; the empty text stands for the built-in choice."""
    if not text:
        return Selection()
    document = parse(text)
    if type(document) is not dict:
        raise TuningError("what rank 0 handed out is no object")
    is_crowded = document.get("crowded") is True
    rules = _read_all(document.get("rules"))[is_crowded]
    return Selection(is_crowded, rules, str(document.get("source", "")))


def parse(text: str) -> Any:
    """The JSON in ``text``; raises TuningError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TuningError(f"it is no JSON: {error}") from None


def _read_all(items: Any) -> dict[bool, Rules]:
    if type(items) is not list or len(items) > _LISTS_MAX:
        raise TuningError(f"rules is no list of up to {_LISTS_MAX}")
    found: dict[bool, dict[tuple[Where, Kind], tuple[Rule, ...]]] = {False: {}, True: {}}
    for i, item in enumerate(items):
        where = f"rules[{i}]"
        more = {"hosts"} if type(item) is dict and "hosts" in item else set()
        _expect_keys(item, {"world", "crowded", "kind", "sizes"} | more, where)
        world, is_crowded, label = item["world"], item["crowded"], item["kind"]
        if type(world) is not int or not 1 <= world <= RANKS_MAX:
            raise TuningError(f"{where}.world is {world!r:.40}, not 1 to {RANKS_MAX}")
        if type(is_crowded) is not bool:
            raise TuningError(f"{where}.crowded is {is_crowded!r:.40}, not true or false")
        if type(label) is not str or label not in _KINDS:
            raise TuningError(f"{where}.kind is {label!r:.40}, not one of {', '.join(_KINDS)}")
        key = (_read_hosts(item["hosts"], world, where) if more else world, _KINDS[label])
        if key in found[is_crowded]:
            raise TuningError(f"{where} is there twice")
        found[is_crowded][key] = _read_list(item["sizes"], key[1], f"{where}.sizes")
    return dict(found)


def _read_hosts(hosts: Any, world: int, where: str) -> tuple[int, ...]:
    is_list = type(hosts) is list and 2 <= len(hosts) <= world
    if not is_list or not all(type(ranks) is int and ranks >= 1 for ranks in hosts):
        raise TuningError(f"{where}.hosts is {hosts!r:.40}, not the ranks of 2 hosts or more")
    if sum(hosts) != world:
        raise TuningError(f"{where}.hosts have {sum(hosts)} ranks, world is {world}")
    return tuple(hosts)


def _expect_keys(item: Any, keys: set[str], where: str) -> None:
    if type(item) is not dict or item.keys() != keys:
        raise TuningError(f"{where} must have {', '.join(sorted(keys))}, and nothing else")


def _read_list(listed: Any, kind: Kind, where: str) -> tuple[Rule, ...]:
    if type(listed) is not list or not 0 < len(listed) <= _RULES_MAX:
        raise TuningError(f"{where} is no list of 1 to {_RULES_MAX} rules")
    rules = tuple(_read_rule(item, kind, f"{where}[{i}]") for i, item in enumerate(listed))
    limits = [rule.bytes_max for rule in rules]
    below = [limit for limit in limits[:-1] if limit is not None]
    if limits[-1] is not None or len(below) != len(rules) - 1 or below != sorted(set(below)):
        raise TuningError(f"{where}: up_to_bytes must ascend, and be null in the last rule alone")
    return rules


def _read_rule(item: Any, kind: Kind, where: str) -> Rule:
    _expect_keys(item, {"up_to_bytes", "algorithm", "chunk_bytes"}, where)
    limit, label, chunk_bytes = item["up_to_bytes"], item["algorithm"], item["chunk_bytes"]
    if limit is not None and (type(limit) is not int or not 0 <= limit <= _BYTES_MAX):
        raise TuningError(f"{where}.up_to_bytes is {limit!r:.40}, not null or a number of bytes")
    known = {algorithm.label: algorithm for algorithm in algorithms_of(kind)}
    if type(label) is not str or label not in known:
        raise TuningError(f"{where}.algorithm is {label!r:.40}, not one of {', '.join(known)}")
    is_size = type(chunk_bytes) is int and 0 < chunk_bytes <= CHUNK_BYTES_MAX
    if not is_size or chunk_bytes % CHUNK_ALIGN:
        raise TuningError(
            f"{where}.chunk_bytes is {chunk_bytes!r:.40}, "
            f"not a multiple of {CHUNK_ALIGN} up to {CHUNK_BYTES_MAX}"
        )
    return Rule(limit, known[label], chunk_bytes)
