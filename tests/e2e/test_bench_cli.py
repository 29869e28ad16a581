"""``jetstream bench`` as a user starts it: real ranks, real files, and arguments that are wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jetstream.bench.config import BenchConfig, parse_dtypes, parse_ops
from jetstream.bench.kinds import COLLECTIVES

pytest.importorskip("jetstream._native", reason="the data plane is not built")

_TIME_LIMIT_S = 240
_SMALL = ("-b", "8", "-e", "4K", "-f", "16", "--iters", "50", "--bind", "none")


def jetstream(
    *arguments: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a folder and returns what came of it."""
    return subprocess.run(
        [sys.executable, "-m", "jetstream", *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_S,
        check=False,
    )


def rows_of(text: str) -> list[list[str]]:
    """Returns the fields of the table's rows."""
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_table_json_and_page(tmp_path: Path) -> None:
    done = jetstream(
        "bench", *COLLECTIVES, "-n", "2", *_SMALL,
        "--json", "out.json", "--html", "out.html", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = rows_of(done.stdout)
    assert len(rows) == (len(COLLECTIVES) - 1) * 3 + 1
    assert {row[8] for row in rows} == {"0"}
    assert done.stdout.count("# Out of bounds values : 0 OK") == len(COLLECTIVES)
    assert "# In short" in done.stdout
    assert "\r" not in done.stdout
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["schema"] == "jetstream.bench/1"
    assert document["complete"] is True
    assert len(document["rows"]) == len(rows)
    assert all(row["iterations"] == 50 and row["checks"] == 5 for row in document["rows"])
    assert document["rows"][0]["algorithm"] in ("one_shot", "two_shot", "lend")
    assert len({rank["pid"] for rank in document["ranks"]}) == 2
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")


def test_messages_odd_world_types_and_reductions(tmp_path: Path) -> None:
    done = jetstream(
        "bench", "all_reduce", "reduce_scatter", "sendrecv", "pingpong", "-n", "3",
        "-b", "100", "-e", "100", "-d", "all", "-o", "all", "--iters", "4", "-w", "1",
        "--bind", "none", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    config = BenchConfig(
        kinds=("all_reduce", "reduce_scatter", "sendrecv", "pingpong"),
        ranks=3,
        sizes_bytes=(100,),
        dtypes=parse_dtypes(["all"]),
        ops=parse_ops(["all"]),
    )
    assert len(rows) == len(config.cases()) > 2 * 7 * 5 + 2 * 7
    assert {row[8] for row in rows} == {"0"}
    assert "oversubscribed" in done.stdout or len(os.sched_getaffinity(0)) >= 3


@pytest.mark.parametrize("algorithm", ["one_shot", "two_shot", "lend"])
def test_forced_algorithm(tmp_path: Path, algorithm: str) -> None:
    done = jetstream(
        "bench", "all_reduce", "-n", "2", *_SMALL, "--algo", f"all_reduce:{algorithm}",
        "--json", "out.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["algorithm"] for row in rows} == {algorithm}


def test_launched_from_c_with_samples(tmp_path: Path) -> None:
    done = jetstream(
        "bench", "all_reduce", "barrier", "-n", "2", *_SMALL, "--launch", "c",
        "--samples", "--json", "out.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert all(len(row["samples_ns"]) == 50 and min(row["samples_ns"]) > 0 for row in rows)
    assert all(row["wrong"] == 0 for row in rows)


def test_one_rank(tmp_path: Path) -> None:
    done = jetstream("bench", "all_reduce", "barrier", "-n", "1", *_SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {row[8] for row in rows_of(done.stdout)} == {"0"}


def test_number_of_iterations_is_found(tmp_path: Path) -> None:
    done = jetstream(
        "bench", "barrier", "-n", "2", "--quick", "--json", "out.json", "--bind", "none",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["iterations"] >= 20


def test_on_the_ranks_of_a_job(tmp_path: Path) -> None:
    """Started on ranks that exist already, it measures between them; -n does not count."""
    done = jetstream(
        "run", "-n", "2", "--no-label", "-m", "jetstream", "bench", "barrier", "-n", "7",
        "--iters", "30", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(rows_of(done.stdout)) == 1
    assert len(re.findall(r"#   rank +\d", done.stdout)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["all_redcue"], "'all_redcue' is not one of all_reduce, all_gather"),
        ([], "KIND"),
        (["all_reduce", "-d", "float8"], "-d: 'float8' is not one of float64"),
        (["all_reduce", "-o", "xor"], "-o: 'xor' is not one of sum"),
        (["all_reduce", "-n", "0"], "-n must be from 1 to 256"),
        (["all_reduce", "-n", "two"], "invalid int value"),
        (["all_reduce", "-b", "1M", "-e", "1K"], "-b 1 MiB is larger than -e 1 KiB"),
        (["all_reduce", "-f", "1"], "-f must be larger than 1"),
        (["all_reduce", "-b", "8Q"], "'8Q' is no size"),
        (["all_reduce", "-e", "1T"], "'1T' is no size"),
        (["all_reduce", "-b", "900G", "-e", "900G"], "choose a smaller -e"),
        (["broadcast", "-n", "2", "-r", "2"], "--root must be from 0 to 1"),
        (["all_reduce", "--iters", "0"], "--iters must be from 1"),
        (["all_reduce", "-c", "2"], "invalid choice"),
        (["all_reduce", "--algo", "ring"], "ring"),
        (["sendrecv", "-n", "1"], "sendrecv needs at least 2 ranks"),
        (["broadcast", "--launch", "c"], "--launch c: 'broadcast' is not one of all_reduce"),
        (
            ["all_reduce", "--json", "no/such/folder/x.json"],
            "--json no/such/folder/x.json: No such",
        ),
        (["all_reduce", "--html", "."], "--html .: is a directory"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = jetstream("bench", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupted_leaves_no_rank_behind(tmp_path: Path) -> None:
    """SIGTERM in the middle of a run: what was measured is written, and every process ends."""
    command = [sys.executable, "-m", "jetstream", "bench", "all_reduce", "-n", "2"]
    command += ["-b", "8", "-e", "1M", "--json", "out.json", "--bind", "none"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = []
        for line in process.stdout:
            pids += [int(pid) for pid in re.findall(r"# +rank +\d+ +pid +(\d+)", line)]
            if not line.startswith("#"):
                break
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(_TIME_LIMIT_S) == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "out.json").read_text())["complete"] is False
    assert len(pids) == 2
    deadline_s = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s, f"still there: {pids}"
        time.sleep(0.05)


def test_dead_rank_is_told(tmp_path: Path) -> None:
    """kill -9 of a rank: the command ends with an error, and writes what there is."""
    command = [sys.executable, "-m", "jetstream", "bench", "all_reduce", "-n", "2"]
    command += ["-b", "8", "-e", "1M", "--json", "out.json", "--bind", "none"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pids = []
        for line in process.stdout:
            pids += [int(pid) for pid in re.findall(r"# +rank +\d+ +pid +(\d+)", line)]
            if not line.startswith("#"):
                break
        os.kill(pids[1], signal.SIGKILL)
        process.stdout.read()
        errors = process.stderr.read()
        assert process.wait(_TIME_LIMIT_S) not in (0, 1, 2)
    assert "the ranks ended with status" in errors
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["complete"] is False
    assert document["rows"]
