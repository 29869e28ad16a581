"""Tuning results in real jobs: what rank 0 finds is what all ranks choose by."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
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


def test_algorithms_by_size() -> None:
    variables = {"JETSTREAM_ALGO": "allreduce<=16:two_shot;allreduce<=4K:lend;allreduce:one_shot"}
    expected = ["two_shot", "direct", "lend", "direct", "one_shot", "direct"]
    assert run_ranks(algorithms_by_size, 2, [variables] * 2) == [expected] * 2


def test_algorithm_that_the_kind_does_not_have() -> None:
    variables = [{"JETSTREAM_ALGO": "broadcast:lend"}] * 2
    for kind, text in run_ranks(init_error, 2, variables):
        assert kind == "ConfigurationError"
        known = "direct, hierarchical"
        assert text == f"JETSTREAM_ALGO asks for lend of broadcast, which has only {known}"


# --- the command ---------------------------------------------------------------------------------


def tune_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jetstream", "tune", *arguments],
        cwd=cwd,
        env={**os.environ, "XDG_CACHE_HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_command_writes_what_jobs_use(tmp_path: Path) -> None:
    kinds = ("all_reduce", "gather")
    done = tune_command(*kinds, "-n", "3", "--sizes", "64,8K", "--budget", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (path,) = (tmp_path / "jetstream").iterdir()
    assert f"# written: {path}" in done.stdout
    document = json.loads(path.read_text())
    listed = {(rule["world"], rule["kind"]) for rule in document["rules"]}
    assert listed == {(3, kind) for kind in kinds}
    assert [(cell["kind"], cell["bytes"]) for cell in document["measurements"]] == [
        (kind, size) for kind in kinds for size in (64, 8192)
    ]
    for cell in document["measurements"]:
        rows = cell["algorithm_chunk_p50_p90"]
        assert all(0 < p50 <= p90 for _, _, p50, p90 in rows)
        expected = {"one_shot", "two_shot", "lend"} if cell["kind"] == "all_reduce" else {"direct"}
        assert {row[0] for row in rows} == expected
    chosen = [{"JETSTREAM_TUNE": str(path)}] * 3
    assert len(run_ranks(algorithms_by_size, 3, chosen)) == 3


def algorithms_over_hosts(comm: Communicator) -> list[str]:
    seen = []
    for size in (16, 4096):
        comm.all_reduce(np.full(size // 4, comm.rank, np.float32))
        assert comm.last_op is not None
        seen.append(comm.last_op.algorithm)
    return seen


def test_over_hosts(tmp_path: Path) -> None:
    """What was measured over hosts is for ranks that are spread like that."""
    kinds = ("all_reduce", "broadcast")
    words = [*kinds, "--hosts", "2", "--sizes", "4K", "--budget", "0.2", "--output", "t.json"]
    done = tune_command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "t.json").read_text())
    assert {(rule["world"], tuple(rule["hosts"])) for rule in document["rules"]} == {(2, (1, 1))}
    (rule, *_) = document["rules"]
    small = {"up_to_bytes": 64, "algorithm": "two_shot", "chunk_bytes": 64}
    last = {"up_to_bytes": None, "algorithm": "one_shot", "chunk_bytes": 64}
    changed = document | {"rules": [rule | {"kind": "all_reduce", "sizes": [small, last]}]}
    (tmp_path / "t.json").write_text(json.dumps(changed))
    spread: dict[str, Any] = {"env": {"JETSTREAM_TUNE": str(tmp_path / "t.json")}, "link": "udp"}
    assert run_ranks(algorithms_over_hosts, 2, hosts=2, **spread) == [["two_shot", "one_shot"]] * 2


def test_command_ends_when_its_time_is_up(tmp_path: Path) -> None:
    begin_s = time.monotonic()
    done = tune_command("--budget", "0.01", "--sizes", "1M", "--output", "t.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the time was up" in done.stdout
    assert 0 < len(json.loads((tmp_path / "t.json").read_text())["measurements"]) < 10
    assert time.monotonic() - begin_s < 60


def test_interrupted_command_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jetstream", "tune", "--output", "t.json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout as lines:
        while "all_reduce" not in lines.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []
