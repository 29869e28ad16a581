"""``jetstream info``: sections for people, a document for programs, nothing secret, no crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jetstream._native", reason="the data plane is not built")

from jetstream.collectives.select import Rule
from jetstream.collectives.tuning import SCHEMA, write_rules
from jetstream.dtypes import Algorithm, Kind
from jetstream.tuning import this_host, write_file


def info(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jetstream", "info", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_text_has_all_sections(tmp_path: Path) -> None:
    done = info(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    heads = [line for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    sections = ["jetstream", "processor", "memory", "kernel", "links", "tuning", "environment"]
    assert heads[:-1] == sections
    assert max(len(line) for line in done.stdout.splitlines()) < 200


def test_document(tmp_path: Path) -> None:
    done = info("--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "jetstream.info/1"
    assert document["links"]["shm"]["works"] is True
    assert document["memory"]["memfd"]["works"] is True
    assert document["processor"]["in_use"] in ("scalar", "avx2", "avx512")
    assert document["processor"]["in_use"] in document["processor"]["instruction_sets"]
    assert document["environment"]["settings"]["works"] is True


def test_secret_is_not_shown(tmp_path: Path) -> None:
    secret = "00112233445566778899aabbccddeeff"
    done = info(cwd=tmp_path, JETSTREAM_JOB_SECRET=secret, JETSTREAM_SPIN_US="7")
    assert done.returncode == 0
    assert secret not in done.stdout + done.stderr
    assert "set, 32 characters" in done.stdout
    assert "JETSTREAM_SPIN_US    7" in done.stdout


def test_wrong_setting_is_told_not_raised(tmp_path: Path) -> None:
    done = info(cwd=tmp_path, JETSTREAM_ALGO="ring")
    assert done.returncode == 0
    assert "no: JETSTREAM_ALGO is 'ring'" in done.stdout
    assert "does not work here: settings" in done.stdout


def test_tuning_in_use(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    host = this_host()
    rules = {(3, Kind.REDUCE): (Rule(None, Algorithm.DIRECT, 64),)}
    document = {
        "schema": SCHEMA,
        "host": {"cpu": host.cpu, "cores": host.cores},
        "rules": write_rules(rules, is_crowded=True),
    }
    write_file(path, document)
    assert f"{path}, for jobs of 3 ranks" in info(cwd=tmp_path, JETSTREAM_TUNE=str(path)).stdout
    assert "(JETSTREAM_TUNE is off)" in info(cwd=tmp_path, JETSTREAM_TUNE="off").stdout
    empty = info(cwd=tmp_path, JETSTREAM_TUNE="", XDG_CACHE_HOME=str(tmp_path)).stdout
    assert "none, the built-in choice is used (see 'jetstream tune')" in empty
    path.write_text("{")
    damaged = info(cwd=tmp_path, JETSTREAM_TUNE=str(path))
    assert damaged.returncode == 0
    assert f"no: not used: {path}: it is no JSON" in damaged.stdout
    path.unlink()
    assert "which cannot be read" in info(cwd=tmp_path, JETSTREAM_TUNE=str(path)).stdout
