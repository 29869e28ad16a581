"""``jetstream run`` with real processes: whatever ends how, nothing is left behind."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.launcher_bench import PATIENCE_S, Bench, running_bench, wait_for_lines, wait_until


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield from running_bench(tmp_path)


HELPERS = """
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
subprocess.Popen(["sleep", "300"], **quiet)
subprocess.Popen(["sh", "-c", "trap '' TERM HUP INT; sleep 301 & sleep 302"])
say("up")
"""


@pytest.mark.parametrize("end", ["", "sys.exit(2)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_ranks_start_ends_with_them(bench: Bench, end: str) -> None:
    script = bench.script(HELPERS + f"if rank == 0:\n    {end or 'pass'}\n")
    process = bench.start("-n", "2", script)
    process.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not bench.processes())  # killed, they take a moment to end


def test_helpers_may_finish_their_work(bench: Bench) -> None:
    target = bench.folder / "written"
    script = bench.script(f"""
# It waits for the end of this rank, and then has work to do.
helper = subprocess.Popen(
    ["sh", "-c", "echo up; read nothing; echo x >> {target}"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
)
helper.stdout.readline()
""")
    assert bench.run("-n", "2", script)[0] == 0
    assert target.read_text() == "x\nx\n"


def test_process_that_got_away_does_not_hold_us_up(bench: Bench) -> None:
    script = bench.script("subprocess.Popen(['sleep', '300'], start_new_session=True)")
    process = bench.start("-n", "2", script)
    assert process.wait(PATIENCE_S) == 0
    bench.kill()


@pytest.mark.parametrize("wrapper", [[], ["sh", "-c", '"$@"; true', "sh", sys.executable]])
def test_killed_launcher_takes_everything_along(bench: Bench, wrapper: list[str]) -> None:
    script = bench.script(HELPERS + "time.sleep(300)\n")
    process = bench.start("-n", "3", *wrapper, script)
    wait_for_lines(process, 3)
    wait_until(lambda: len(bench.processes()) > 9)
    process.kill()
    wait_until(lambda: not bench.processes())


def test_launcher_killed_before_it_knows_its_rank(bench: Bench) -> None:
    """It was kept from running since it started a rank, which has long started others."""
    (bench.folder / "sitecustomize.py").write_text("""
import os, time
os.pidfd_open = lambda pid: time.sleep(300)
""")
    script = bench.script(HELPERS + "time.sleep(300)\n")
    process = bench.start("-n", "2", script, env={"PYTHONPATH": str(bench.folder)})
    wait_until(lambda: len(bench.processes()) >= 7)
    process.kill()
    wait_until(lambda: not bench.processes())


def test_launcher_killed_at_any_moment(bench: Bench) -> None:
    script = bench.script(HELPERS + "time.sleep(300)\n")
    dice = random.Random(5)
    for _ in range(10):
        process = bench.start("-n", "3", script)
        time.sleep(dice.random() * 0.5)
        process.kill()
        process.communicate(timeout=PATIENCE_S)
        wait_until(lambda: not bench.processes())
