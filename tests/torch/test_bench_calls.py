"""`bench/torch_calls.py` as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "bench" / "torch_calls.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_ways_that_need_no_peer(tmp_path: Path) -> None:
    samples, venv = tmp_path / "samples.json", tmp_path / "venv"
    words = ["--sizes", "8,1K", "--dtypes", "bfloat16", "--rounds", "1", "--budget", "0.01"]
    words += ["--only", "dist,comm,symmetric,numpy,vllm", "--no-install", "--venv", str(venv)]
    done = run(*words, "--json", str(samples))
    assert done.returncode == 0, done.stderr
    assert "not measured: vllm: not installed in" in done.stderr and "4/8 bfloat16" in done.stderr
    assert "| 8 B |" in done.stdout and "comm / numpy" in done.stdout
    entries = json.loads(samples.read_text())
    assert {entry["way"] for entry in entries} == {"dist", "comm", "symmetric", "numpy"}
    assert all(0 < entry["p50_us"] <= entry["p999_us"] for entry in entries)


def test_wrong_arguments() -> None:
    for words, reason in (
        (("--only", "comm,mpi"), "choose from dist, backend"),
        (("--sizes", "7"), "not a positive multiple of 4"),
        (("--dtypes", "int8"), "choose from float32, bfloat16"),
        (("--rounds", "0"), "'0': a number from 1"),
    ):
        done = run(*words)
        assert done.returncode == 2 and reason in done.stderr and "Traceback" not in done.stderr
