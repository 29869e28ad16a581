"""Tuning results in real jobs: what rank 0 finds is what all ranks choose by."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jetstream._native", reason="the data plane is not built")

import jetstream
from jetstream.collectives.select import Rule, is_crowded
from jetstream.collectives.tuning import SCHEMA, write_rules
from jetstream.communicator import Communicator
from jetstream.dtypes import Algorithm, Kind
from jetstream.errors import ConfigurationError, RendezvousError
from jetstream.testing import run_ranks
from jetstream.tuning import this_host

SIZES = (16, 4096, 4 << 20)


def algorithms_by_size(comm: Communicator, variables: list[dict[str, str]]) -> list[str]:
    """Joins again with variables by rank; the algorithms of all_reduce and reduce."""
    comm.barrier()
    os.environ.update(variables[comm.rank])
    os.environ["JETSTREAM_RENDEZVOUS"] += "-again"
    seen = []
    with jetstream.init() as again:
        for nbytes in SIZES:
            x = np.full(nbytes // 4, again.rank + 1, np.float32)
            for call in (again.all_reduce, again.reduce):
                call(x)
                assert again.last_op is not None
                seen.append(again.last_op.algorithm)
            again.barrier()
        with pytest.raises(ValueError):
            again.all_reduce(x, algo="direct")
        again.all_reduce(x, algo="one_shot")  # comes before any file
        assert again.last_op is not None and again.last_op.algorithm == "one_shot"
    return seen


def write_tuning(path: Path, world: int, **changes: Any) -> str:
    cpus = (frozenset(os.sched_getaffinity(0)),) * world
    host = this_host()
    rules = {
        (world, Kind.ALL_REDUCE): (
            Rule(1024, Algorithm.LEND, 64),
            Rule(8192, Algorithm.TWO_SHOT, 128),
            Rule(None, Algorithm.ONE_SHOT, 32768),
        ),
        (world, Kind.REDUCE): (Rule(None, Algorithm.TWO_SHOT, 4096),),
    }
    document = {
        "schema": SCHEMA,
        "host": {"cpu": host.cpu, "cores": host.cores},
        "rules": write_rules(rules, is_crowded=is_crowded(cpus)),
    }
    path.write_text(json.dumps(document | changes))
    return str(path)


TUNED = ["lend", "two_shot", "two_shot", "two_shot", "one_shot", "two_shot"]
BUILT_IN = ["one_shot", "direct", "lend", "direct", "lend", "direct"]


def test_all_ranks_use_the_file_of_rank_0(tmp_path: Path) -> None:
    path = write_tuning(tmp_path / "tune.json", 2)
    zero, one = {"JETSTREAM_TUNE": path}, {"JETSTREAM_TUNE": "off"}
    assert run_ranks(algorithms_by_size, 2, [zero, one]) == [TUNED, TUNED]
    assert run_ranks(algorithms_by_size, 2, [one, zero]) == [BUILT_IN, BUILT_IN]


def test_the_file_of_the_host_is_found(tmp_path: Path) -> None:
    from jetstream.tuning import default_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        path = default_path(this_host())
        assert path is not None
        path.parent.mkdir()
        write_tuning(path, 2)
        variables = {"XDG_CACHE_HOME": str(tmp_path), "JETSTREAM_TUNE": ""}
        assert run_ranks(algorithms_by_size, 2, [variables] * 2) == [TUNED, TUNED]


@pytest.mark.parametrize(
    "changes", [{"schema": "x"}, {"host": {"cpu": "another", "cores": 1}}, {"rules": [1]}]
)
def test_what_is_damaged_is_not_used(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_tuning(tmp_path / "tune.json", 2, **changes)
    variables = {"JETSTREAM_TUNE": path}
    assert run_ranks(algorithms_by_size, 2, [variables] * 2) == [BUILT_IN, BUILT_IN]


def init_error(comm: Communicator, variables: list[dict[str, str]]) -> tuple[str, str]:
    comm.barrier()
    os.environ.update(variables[comm.rank])
    os.environ["JETSTREAM_RENDEZVOUS"] += "-again"
    logging.disable()
    with pytest.raises((ConfigurationError, RendezvousError)) as caught:
        jetstream.init()
    return caught.type.__name__, str(caught.value)


def test_named_file_that_is_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "none.json")
    errors = run_ranks(init_error, 2, [{"JETSTREAM_TUNE": path}] * 2)
    for kind, text in errors:
        assert kind == "ConfigurationError"
        assert f"JETSTREAM_TUNE is '{path}'" in text and "No such file" in text


def test_ranks_that_ask_for_different_algorithms() -> None:
    variables = [{"JETSTREAM_ALGO": "all_reduce:lend"}, {"JETSTREAM_ALGO": "two_shot"}]
    for kind, text in run_ranks(init_error, 2, variables):
        assert kind == "RendezvousError"
        assert "JETSTREAM_ALGO='all_reduce:lend'" in text and "':two_shot'" in text


def test_algorithm_that_the_kind_does_not_have() -> None:
    variables = [{"JETSTREAM_ALGO": "broadcast:lend"}] * 2
    for kind, text in run_ranks(init_error, 2, variables):
        assert kind == "ConfigurationError"
        assert text == "JETSTREAM_ALGO asks for lend of broadcast, which has only direct"
