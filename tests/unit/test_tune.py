"""What a tuning run compares, how a result travels, and what the command refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("jetstream._native", reason="the data plane is not built")

from jetstream import tuning
from jetstream.bench.tune import TUNABLE, Candidate, Request, Result, candidates, selected
from jetstream.cli import tune
from jetstream.cli.main import main
from jetstream.collectives.algorithms import ALGORITHMS
from jetstream.collectives.calls import CHUNK_BYTES_MAX
from jetstream.collectives.placement import place
from jetstream.collectives.select import REMOTE_CHUNK_BYTES_MAX, Rule
from jetstream.collectives.tuning import read_rules
from jetstream.dtypes import Algorithm, Kind

KINDS = [Kind[label.upper()] for label in TUNABLE]
FAST, SLOW = Candidate(Algorithm.LEND, 32768), Candidate(Algorithm.ONE_SHOT, 4096)


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_built_in_choice_is_among_the_candidates(kind: Kind, world: int) -> None:
    for nbytes in (1, 64, 4096, 4097, 8192, 10_000, 16384, 32768, 65536, 1 << 22):
        listed = candidates(kind, nbytes, world)
        assert len(set(listed)) == len(listed)
        assert {candidate.algorithm for candidate in listed} == {
            algorithm for known, algorithm in ALGORITHMS if known is kind
        }
        for is_crowded in (False, True):
            assert selected(kind, nbytes, world, is_crowded=is_crowded) in listed


def test_chunk_sizes_that_make_no_difference_are_not_compared() -> None:
    assert candidates(Kind.BROADCAST, 4096, 2) == [Candidate(Algorithm.DIRECT, CHUNK_BYTES_MAX)]
    sizes = [candidate.chunk_bytes for candidate in candidates(Kind.BROADCAST, 4097, 2)]
    assert sizes == [CHUNK_BYTES_MAX, 4096]
    sizes = [candidate.chunk_bytes for candidate in candidates(Kind.BROADCAST, 1 << 20, 2)]
    assert sizes == [CHUNK_BYTES_MAX, 4096, 8192, 16384, 32768]


@pytest.mark.parametrize("hosts", [(0, 1), (0, 0, 1, 1), (0, 1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_over_hosts(kind: Kind, hosts: tuple[int, ...]) -> None:
    """Nothing that lends, no chunk that is too long; the built-in choice is among them."""
    placement = place(hosts, len(hosts))
    for nbytes in (1, 4096, 65536, 1 << 22):
        listed = candidates(kind, nbytes, len(hosts), placement)
        found = selected(kind, nbytes, len(hosts), is_crowded=False, placement=placement)
        assert found in listed and len(set(listed)) == len(listed)
        assert all(candidate.chunk_bytes <= REMOTE_CHUNK_BYTES_MAX for candidate in listed)
        algorithms = {candidate.algorithm for candidate in listed}
        assert Algorithm.LEND not in algorithms
        assert (Algorithm.HIERARCHICAL in algorithms) <= (not placement.is_one_each)
        if kind is Kind.ALL_REDUCE:
            assert {Algorithm.ONE_SHOT, Algorithm.TWO_SHOT} <= algorithms
            assert (Algorithm.HIERARCHICAL in algorithms) == (not placement.is_one_each)


def result_of(kind: str, nbytes: int, best: Candidate) -> Result:
    return Result(kind, nbytes, {SLOW: (200.0, 300.0), FAST: (100.0, 150.0)}, SLOW, best)


def test_result_travels() -> None:
    result = result_of("all_reduce", 64, FAST)
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert result.loss == 1.0
    assert result_of("all_reduce", 64, SLOW).loss == 0.0


def test_request_travels() -> None:
    request = Request(("scan",), (1, 64), "float16", 2.5, True)
    assert Request.from_json(request.to_json()) == request


def test_too_much_memory_is_not_asked_for() -> None:
    request = Request(("all_reduce", "all_gather"), (1 << 20, 32 << 20))
    assert request.cells(4) == [
        ("all_reduce", 1 << 20), ("all_reduce", 32 << 20), ("all_gather", 1 << 20)
    ]  # fmt: skip


def test_a_second_run_adds_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    request = Request(("all_reduce",), (64, 256))
    both = [result_of("all_reduce", 64, SLOW), result_of("all_reduce", 256, FAST)]
    tune._store(path, 2, request, both)
    tune._store(path, 4, Request(("all_reduce",), (64,), is_crowded=True), both[:1])
    tune._store(path, 2, Request(("reduce",), (64,)), [])
    rules = read_rules(tuning.read_file(path), tuning.this_host())
    two, four = (2, Kind.ALL_REDUCE), (4, Kind.ALL_REDUCE)
    slow, fast = (SLOW.algorithm, SLOW.chunk_bytes), (FAST.algorithm, FAST.chunk_bytes)
    assert rules[False] == {two: (Rule(128, *slow), Rule(None, *fast))}
    assert rules[True] == {four: (Rule(None, *slow),)}
    assert len(tuning.read_file(path)["measurements"]) == 3
    tune._store(path, 2, request, both[1:])  # the same again replaces what it had
    assert read_rules(tuning.read_file(path), tuning.this_host())[False] == {
        two: (Rule(None, *fast),)
    }
    assert len(tuning.read_file(path)["measurements"]) == 2
    tune._store(path, (1, 1), request, both[:1])  # two hosts are something else than one
    found = read_rules(tuning.read_file(path), tuning.this_host())[False]
    assert found.keys() == {two, ((1, 1), Kind.ALL_REDUCE)}
    assert len(tuning.read_file(path)["measurements"]) == 3


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"schema": "jetstream.tune/1", "host": {"cpu": "x", "cores": 1}, "rules": []}'],
)
def test_what_cannot_be_added_to_is_replaced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "tune.json"
    path.write_text(content)
    tune._store(path, 2, Request(("all_reduce",), (64,)), [result_of("all_reduce", 64, FAST)])
    assert f"what {path} held is replaced" in capfd.readouterr().err
    assert read_rules(tuning.read_file(path), tuning.this_host())[False]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["ring"], "kind 'ring' is not one of all_reduce"),
        (["barrier"], "kind 'barrier' is not one of"),
        (["-n", "1"], "-n must be from 2 to 256, not 1"),
        (["-d", "text"], "-d: 'text' is not one of float64"),
        (["-n", "2", "--nnodes", "200"], "-n times --nnodes) must be from 2 to 256, not 400"),
        (["--nnodes", "-1"], "'-1' is not a number from 1 to 256"),
        (["-n", "1", "--nnodes", "2"], "tune: error: --node-rank is needed"),
        (["--hosts", "0"], "'0' is not a number from 1 to 256"),
        (["--hosts", "2"], "pass --output FILE"),
        (["--budget", "0"], "--budget must be from"),
        (["--budget", "nan"], "--budget must be from"),
        (["--sizes", "1K,many"], "'many' is no size"),
        (["--sizes", "0"], "--sizes must be from"),
        (["--sizes", "1G"], "--sizes must be from"),
        (["--output", "/proc/none/tune.json"], "--output /proc/none/tune.json"),
        (["--output", "/tmp"], "is a directory"),
    ],
)
def test_what_cannot_be_measured(
    capfd: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tune", *arguments])
    assert caught.value.code == 2
    out, err = capfd.readouterr()
    assert (out, text in err) == ("", True), err
