"""The benchmarks of `bench/` as a user starts them: right results, and arguments that are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jetstream.testing import NoNetworkError

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("incast.py", "--losses foo", "'foo' is not none, link=SHARE or bridge=SHARE"),
        ("incast.py", "--senders 300", "'300': a number from 1 to 63"),
        ("loss.py", "--rounds 0", "'0': a number from 1"),
        ("loss.py", "--json /nonexistent/x", "/nonexistent/x: No such file"),
        ("links.py", "shm --mtu 100", "'100': a number from 540 to 65535"),
        (".", "--budget -1", "'-1': a number above 0"),
    ],
)
def test_wrong_arguments(program: str, arguments: str, words: str) -> None:
    command = [sys.executable, str(BENCH / program), *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_between_namespaces(tmp_path: Path) -> None:
    """Ranks that `python bench hosts` starts meet and get right results, on each kind of link."""
    report = tmp_path / "report.md"
    names = "jetstream-udp,jetstream-packet"
    words = [*(sys.executable, str(BENCH), "hosts", "--quick", "--sizes", "8", "--budget", "0.02")]
    words += ["--only", names, "--venv", str(tmp_path / "venv"), "--markdown", str(report)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    text = report.read_text()
    if "- all: " in text:
        reason = next(line for line in text.splitlines() if line.startswith("- all: "))
        raise pytest.skip.Exception(reason) from NoNetworkError(reason)
    assert "Not measured" not in text
    assert "|  | jetstream-udp | jetstream-packet |" in text and "| 8 B | " in text
