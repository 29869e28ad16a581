"""Files of tuning results: what is written is read, what is damaged is refused and named."""

from __future__ import annotations

import copy
import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream import tuning
from jetstream.collectives.select import Rule, Selection, algorithms_of, choose
from jetstream.collectives.tuning import (
    SCHEMA,
    HostName,
    merge_rules,
    read_rules,
    selection_from_text,
    text_from_selection,
    write_rules,
)
from jetstream.config import Config
from jetstream.dtypes import Algorithm, Kind
from jetstream.errors import ConfigurationError, TuningError

HOST = HostName("A processor", 8)
KINDS = st.sampled_from([kind for kind in Kind if kind is not Kind.NONE])
CHUNKS = st.integers(1, 512).map(lambda lines: 64 * lines)
RULES = {
    (2, Kind.ALL_REDUCE): (
        Rule(4096, Algorithm.TWO_SHOT, 8192),
        Rule(None, Algorithm.LEND, 32768),
    ),
    (3, Kind.REDUCE): (Rule(None, Algorithm.DIRECT, 64),),
    ((2, 1), Kind.ALL_REDUCE): (Rule(None, Algorithm.ONE_SHOT, 64),),
}


def document_of(**changes: Any) -> dict[str, Any]:
    document = {
        "schema": SCHEMA,
        "host": {"cpu": HOST.cpu, "cores": HOST.cores},
        "rules": write_rules(RULES, is_crowded=False),
    }
    return document | changes


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    rules: dict[Any, tuple[Rule, ...]] = {}
    spread = st.lists(st.integers(1, 8), min_size=2, max_size=8).map(tuple)
    for world, kind in draw(st.sets(st.tuples(st.integers(1, 256) | spread, KINDS), max_size=4)):
        limits = sorted(draw(st.sets(st.integers(0, 1 << 40), max_size=4)))
        rules[world, kind] = tuple(
            Rule(limit, draw(st.sampled_from(algorithms_of(kind))), draw(CHUNKS))
            for limit in [*limits, None]
        )
    return Selection(draw(st.booleans()), rules, draw(st.text(max_size=9)))


@given(selections())
def test_selection_travels(selection: Selection) -> None:
    assert selection_from_text(text_from_selection(selection)) == selection


def test_no_text_is_the_built_in_choice() -> None:
    assert selection_from_text("") == Selection()


def test_too_long_to_travel() -> None:
    rules = {(world, Kind.BARRIER): (Rule(None, Algorithm.DIRECT, 64),) for world in range(1, 257)}
    wide = tuple(Rule(size, Algorithm.DIRECT, 64) for size in range(20)) + rules[1, Kind.BARRIER]
    with pytest.raises(TuningError, match="its rules take"):
        text_from_selection(Selection(rules=dict.fromkeys(rules, wide)))


def test_rules_are_read_by_crowding() -> None:
    both = write_rules(RULES, is_crowded=False) + write_rules(RULES, is_crowded=True)
    assert read_rules(document_of(), HOST) == {False: RULES, True: {}}
    assert read_rules(document_of(rules=both), HOST) == {False: RULES, True: RULES}


CHOICES = st.tuples(st.sampled_from(algorithms_of(Kind.ALL_REDUCE)), CHUNKS)


@given(st.lists(CHOICES, min_size=1, max_size=20))  # of up to 4**19 bytes
def test_merged_rules_keep_every_choice(choices: list[tuple[Algorithm, int]]) -> None:
    points = [(4**i, Rule(None, *choice)) for i, choice in enumerate(choices)]
    rules = merge_rules(points)
    selection = Selection(rules={(2, Kind.ALL_REDUCE): rules})
    for size, rule in points:
        chosen = choose(Kind.ALL_REDUCE, size, 2, selection=selection)
        assert chosen == (rule.algorithm, rule.chunk_bytes)
    assert len(rules) == 1 + sum(a != b for a, b in pairwise(choices))
    assert selection_from_text(text_from_selection(selection)) == selection


def damaged(path: list[Any], value: Any) -> dict[str, Any]:
    document: Any = copy.deepcopy(document_of())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return dict(document)


RULE = ["rules", 0, "sizes", 0]


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "schema is 'list'"),
        (damaged(["schema"], "jetstream.tune/9"), r"schema is 'jetstream.tune/9', not"),
        (damaged(["host"], {"cpu": "x"}), "host lacks cpu or cores"),
        (damaged(["host"], "x"), "host lacks cpu or cores"),
        (damaged(["host", "cores"], 9), "measured on A processor, 9 cores; this is A processor, 8"),
        (damaged(["host", "cpu"], "Another"), "measured on Another, 8 cores"),
        (damaged(["rules"], None), "rules is no list"),
        (damaged(["rules"], {}), "rules is no list"),
        (damaged(["rules", 0], 7), r"rules\[0\] must have"),
        (damaged(["rules", 0, "extra"], 7), r"rules\[0\] must have .*nothing else"),
        (damaged(["rules", 0, "world"], 0), r"rules\[0\].world is 0"),
        (damaged(["rules", 0, "world"], 2.0), r"world is 2.0"),
        (damaged(["rules", 0, "world"], True), r"world is True"),
        (damaged(["rules", 0, "crowded"], 0), "crowded is 0"),
        (
            damaged(["rules", 0, "kind"], "ring"),
            r"rules\[0\].kind is 'ring', not one of all_reduce",
        ),
        (damaged(["rules", 0, "kind"], ["x"]), r"kind is \['x'\]"),
        (damaged(["rules", 1], document_of()["rules"][0]), r"rules\[1\] is there twice"),
        (damaged(["rules", 0, "hosts"], [1, 1, 1]), r"rules\[0\].hosts is \[1, 1, 1\], not the"),
        (damaged(["rules", 0, "hosts"], [2, 1]), "hosts have 3 ranks, world is 2"),
        (damaged(["rules", 2, "hosts"], [3]), r"hosts is \[3\]"),
        (damaged(["rules", 2, "hosts"], [3, 0]), r"hosts is \[3, 0\]"),
        (damaged(["rules", 2, "hosts"], [2, True]), r"hosts is \[2, True\]"),
        (damaged(["rules", 2, "hosts"], 3), "hosts is 3"),
        (damaged(["rules", 0, "sizes"], []), r"rules\[0\].sizes is no list"),
        (damaged(["rules", 0, "sizes"], [1] * 99), r"sizes is no list of 1 to 64"),
        (damaged([*RULE, "algorithm"], "direct"), r"sizes\[0\].algorithm is 'direct', not one of"),
        (damaged([*RULE, "algorithm"], None), "algorithm is None"),
        (damaged([*RULE, "chunk_bytes"], 100), "chunk_bytes is 100, not a multiple of 64"),
        (damaged([*RULE, "chunk_bytes"], 0), "chunk_bytes is 0"),
        (damaged([*RULE, "chunk_bytes"], 1 << 20), "chunk_bytes is 1048576"),
        (damaged([*RULE, "chunk_bytes"], "64"), "chunk_bytes is '64'"),
        (damaged([*RULE, "up_to_bytes"], None), "up_to_bytes must ascend"),
        (damaged([*RULE, "up_to_bytes"], -1), "up_to_bytes is -1"),
        (damaged([*RULE, "up_to_bytes"], float("nan")), "up_to_bytes is nan"),
        (damaged(["rules", 0, "sizes", 1, "up_to_bytes"], 8192), "null in the last"),
    ],
)
def test_damaged_documents_are_named(document: Any, text: str) -> None:
    with pytest.raises(TuningError, match=text):
        read_rules(document, HOST)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it is no JSON"),
        (b"{" * 5, "it is no JSON"),
        (b"[" * 200_000, "it is no JSON"),
        (b"\xff\xfe\x00", "no UTF-8"),
        (b" " * (5 << 20), "larger than"),
        (b"null", "schema is 'NoneType'"),
        (b'{"schema": "jetstream.tune/1"}', "host lacks"),
    ],
    ids=["empty", "cut", "deep", "binary", "large", "null", "bare"],
)
def test_damaged_files_are_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, text: str
) -> None:
    path = tmp_path / "tune.json"
    path.write_bytes(content)
    found = tuning.find_tuning(str(path))
    assert text in found.problem
    assert not found.is_used
    with caplog.at_level(logging.WARNING, "jetstream.tuning"):
        chosen = tuning.select(Config(tune=str(path)), (frozenset({0}), frozenset({1})))
    assert selection_from_text(chosen) == Selection()
    assert str(path) in caplog.text and text in caplog.text


def test_file_of_this_host_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "this_host", lambda: HOST)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tuning.default_path(HOST)
    assert path is not None
    assert not tuning.find_tuning("").is_used  # nothing there: no problem either
    assert tuning.find_tuning("").problem == ""
    tuning.write_file(path, document_of())
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert tuning.find_tuning("").rules[False] == RULES
    assert not tuning.find_tuning("off").is_used
    apart, together = (frozenset({0}), frozenset({1})), (frozenset({0}), frozenset({0}))
    chosen = selection_from_text(tuning.select(Config(), apart))
    assert chosen == Selection(False, RULES, str(path))
    assert selection_from_text(tuning.select(Config(), together)) == Selection(True)
    assert selection_from_text(tuning.select(Config(tune="off"), apart)) == Selection()


def test_named_file_must_be_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigurationError, match=f"JETSTREAM_TUNE is '{path}', which cannot"):
            tuning.find_tuning(str(path))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/jetstream"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/jetstream"),
        ({"HOME": "/h"}, "/h/.cache/jetstream"),
        ({}, None),
    ],
)
def test_default_place(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    path = tuning.default_path(HOST)
    assert (path and str(path.parent)) == expected
    assert path != tuning.default_path(HostName("Another", 8)) or path is None


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    tuning.write_file(path, {"old": 1})
    with pytest.raises(TypeError):
        tuning.write_file(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["tune.json"]
