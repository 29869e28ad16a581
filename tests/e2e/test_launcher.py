"""``jetstream run`` with real processes: what runs where, output, statuses, signals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import termios
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.launcher_bench import PATIENCE_S, Bench, lines_of, running_bench, wait_for_lines


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield from running_bench(tmp_path)


# --- what runs, and where -----------------------------------------------------------------


def test_environment_of_the_ranks(bench: Bench) -> None:
    script = bench.script("""
names = sorted(name for name in os.environ if name.startswith("JETSTREAM_"))
say(json.dumps({name: os.environ[name] for name in names}))
""")
    secrets_seen = set()
    for _ in range(2):
        status, out, err = bench.run("-n", "3", script, env={"JETSTREAM_RANK": "77"})
        assert (status, err) == (0, "")
        ranks = [json.loads(lines_of(out, rank)[0]) for rank in range(3)]
        for rank, environ in enumerate(ranks):
            assert environ["JETSTREAM_RANK"] == environ["JETSTREAM_LOCAL_RANK"] == str(rank)
            assert environ["JETSTREAM_WORLD_SIZE"] == "3"
            assert re.fullmatch(r"ipc://@jetstream-\d+-run-\w{16}", environ["JETSTREAM_RENDEZVOUS"])
            assert re.fullmatch(r"[0-9a-f]{64}", environ["JETSTREAM_JOB_SECRET"])
        assert len({environ["JETSTREAM_JOB_SECRET"] for environ in ranks}) == 1
        secrets_seen.add(ranks[0]["JETSTREAM_JOB_SECRET"])
    assert len(secrets_seen) == 2


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_arguments_reach_the_script_untouched(bench: Bench, ranks: str) -> None:
    script = bench.script("say(json.dumps(sys.argv[1:]))")
    arguments = ["-n", "5", "--timeout", "x", "--", "-m", "a b", "", "*"]
    for separator in ([], ["--"]):
        _, out, _ = bench.run("-n", ranks, *separator, script, *arguments)
        line = lines_of(out, 0)[0] if ranks == "2" else out
        assert json.loads(line) == arguments


def test_modules_and_programs(bench: Bench) -> None:
    status, out, _ = bench.run("-n", "2", "-m", "json.tool", "--help")
    assert status == 0
    assert lines_of(out, 0)[0].startswith("usage: ")
    status, out, _ = bench.run("-n", "2", "sh", "-c", 'echo "$JETSTREAM_RANK$1"', "sh", "-x")
    assert sorted(out.splitlines()) == ["[0] 0-x", "[1] 1-x"]


def test_one_rank_is_the_program_itself(bench: Bench) -> None:
    script = bench.script("""
say(f"{os.getpid()} {os.environ['JETSTREAM_WORLD_SIZE']} {sys.stdin.readline()!r}")
sys.stderr.write("unlabelled")
os.kill(os.getpid(), signal.SIGTERM)
""")
    process = bench.start("-n", "1", script, stdin=subprocess.PIPE)
    out, err = process.communicate(b"hello\n", timeout=PATIENCE_S)
    assert out.decode() == f"{process.pid} 1 'hello\\n'\n"
    assert err == b"unlabelled"
    assert process.returncode == -signal.SIGTERM


def test_input_goes_to_rank_0(bench: Bench) -> None:
    script = bench.script("say(repr(sys.stdin.read()))")
    process = bench.start("-n", "3", script, stdin=subprocess.PIPE)
    out, _ = process.communicate(b"hello", timeout=PATIENCE_S)
    assert sorted(out.decode().splitlines()) == ["[0] 'hello'", "[1] ''", "[2] ''"]


def test_binding(bench: Bench) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    script = bench.script("say(json.dumps(sorted(os.sched_getaffinity(0))))")
    count = min(2, len(allowed))
    status, out, err = bench.run("-n", str(count), "--bind", "core", "--timeout", "60", script)
    assert (status, err) == (0, "")
    seen = [json.loads(lines_of(out, rank)[0]) for rank in range(count)]
    assert seen == [[cpu] for cpu in allowed[:count]]
    _, out, err = bench.run("-n", str(len(allowed) + 1), "--bind", "core", script)
    assert f"not binding: {len(allowed) + 1} ranks, but only {len(allowed)} CPUs" in err
    assert json.loads(lines_of(out, 0)[0]) == allowed


def test_program_that_cannot_be_executed(bench: Bench) -> None:
    program = bench.folder / "program"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    status, _, err = bench.run("-n", "2", str(program))
    assert status == 126
    assert "cannot start" in err


# --- output -------------------------------------------------------------------------------


def test_lines_stay_whole_and_streams_apart(bench: Bench) -> None:
    script = bench.script("""
for index in range(300):
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        for piece in (f"{name} {rank} ", f"{index} ", "x" * (index * 37 % 5000), "\\n"):
            stream.write(piece)
            stream.flush()
""")
    status, out, err = bench.run("-n", "3", script)
    assert status == 0
    for name, text in (("out", out), ("err", err)):
        assert len(text.splitlines()) == 900
        for rank in range(3):
            expected = [
                f"{name} {rank} {index} " + "x" * (index * 37 % 5000) for index in range(300)
            ]
            assert lines_of(text, rank) == expected


def test_odd_output(bench: Bench) -> None:
    script = bench.script("""
os.write(1, b"\\xff\\xfe\\n\\n\\r\\n" + bytes([rank]) + b"no newline")
""")
    process = bench.start("-n", "2", script)
    out, _ = process.communicate(timeout=PATIENCE_S)
    for rank in range(2):
        label = b"[%d] " % rank
        lines = [line for line in out.split(b"\n") if line.startswith(label)]
        assert lines == [
            label + text for text in (b"\xff\xfe", b"", b"\r", bytes([rank]) + b"no newline")
        ]
    assert out.endswith(b"newline\n")


def test_endless_line_is_cut(bench: Bench) -> None:
    script = bench.script("""
if rank == 1:
    os.write(1, b"y" * 100)
    for _ in range(40):
        sys.stdout.write("x" * 100_000)
""")
    status, out, _ = bench.run("-n", "2", script)
    assert status == 0
    lines = lines_of(out, 1)
    assert 2 <= len(lines) <= 5
    assert "".join(lines) == "y" * 100 + "x" * 4_000_000


def test_output_comes_at_once(bench: Bench) -> None:
    script = bench.script("print('now'); time.sleep(300)")
    process = bench.start("-n", "2", script)
    assert sorted(wait_for_lines(process, 2)) == ["[0] now\n", "[1] now\n"]
    process.terminate()
    process.wait(PATIENCE_S)


def test_without_labels(bench: Bench) -> None:
    script = bench.script("say('plain'); sys.stderr.write('err\\n')")
    assert bench.run("-n", "2", "--no-label", script) == (0, "plain\n" * 2, "err\n" * 2)


def test_reader_that_goes_away_ends_the_job(bench: Bench) -> None:
    script = bench.script("""
while True:
    say("more")
    time.sleep(0.01)
""")
    process = bench.start("-n", "2", script)
    wait_for_lines(process, 3)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGPIPE


# --- failures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "status", "text"),
    [
        ("sys.exit(7)", 7, "exited with status 7"),
        ("raise RuntimeError('no')", 1, "exited with status 1"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was killed by SIGKILL"),
        ("os.abort()", 134, "was killed by SIGABRT"),
    ],
)
def test_first_failure_counts(bench: Bench, action: str, status: int, text: str) -> None:
    script = bench.script(f"""
if rank == 1:
    say(str(os.getpid()))
    {action}
time.sleep(300)
""")
    code, out, err = bench.run("-n", "3", "--grace", "0.5", script)
    assert code == status
    own = [line for line in err.splitlines() if line.startswith("jetstream run: ")]
    pid = lines_of(out, 1)[0]
    assert own == [f"jetstream run: rank 1 (pid {pid}) {text}; the other 2 get 0.5 s to end"]


def test_last_words_precede_the_verdict(bench: Bench) -> None:
    script = bench.script("sys.stderr.write('why\\n' * 20000); sys.exit(1)")
    _, _, err = bench.run("-n", "2", script)
    lines = err.splitlines()
    verdict = next(i for i, line in enumerate(lines) if line.startswith("jetstream run: "))
    guilty = int(lines[verdict].split()[3])
    assert lines[:verdict].count(f"[{guilty}] why") == 20000


def test_success_of_one_does_not_end_the_others(bench: Bench) -> None:
    script = bench.script("""
if rank == 0:
    sys.exit(0)
time.sleep(0.5)
say("done")
""")
    assert bench.run("-n", "2", "--grace", "0", script) == (0, "[1] done\n", "")


@pytest.mark.parametrize("ignored", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_those_who_do_not_end_are_ended(bench: Bench, ignored: str) -> None:
    script = bench.script(f"""
{ignored}
say("up")
if rank == 0:
    sys.stdin.readline()
    sys.exit(3)
time.sleep(300)
""")
    process = bench.start("-n", "3", "--grace", "0.3", script, stdin=subprocess.PIPE)
    wait_for_lines(process, 3)
    process.communicate(b"\n", timeout=PATIENCE_S)
    assert process.returncode == 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_time_limit(bench: Bench, ranks: int) -> None:
    last = ranks - 1
    script = bench.script(f"time.sleep(300 if rank == {last} else 0)")
    status, _, err = bench.run("-n", str(ranks), "--timeout", "1", script)
    assert status == 124
    assert re.search(rf"ending the job after 1 s; still running: .*rank {last} ", err)


# --- signals ------------------------------------------------------------------------------

CATCH = """
def note(number, frame):
    say(f"got {number}")
    sys.exit(number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, note)
say("up")
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on_once(bench: Bench, number: signal.Signals) -> None:
    process = bench.start("-n", "3", "--grace", "60", bench.script(CATCH))
    wait_for_lines(process, 3)
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert Counter(line[4:] for line in out.decode().splitlines()) == {f"got {number:d}": 3}
    assert process.returncode == number


def test_ignored_signals_stay_ignored(bench: Bench) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = bench.start("-n", "2", "--grace", "60", bench.script(CATCH), preexec_fn=ignore)
    wait_for_lines(process, 2)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert out.decode().count("got 15") == 2
    assert "got 1\n" not in out.decode()


def test_second_interrupt_kills(bench: Bench) -> None:
    script = bench.script("""
def note(number, frame):
    say("no")
signal.signal(signal.SIGINT, note)
say("up")
while True:
    time.sleep(1)
""")
    process = bench.start("-n", "2", script)
    wait_for_lines(process, 2)
    process.send_signal(signal.SIGINT)
    assert sorted(wait_for_lines(process, 2)) == ["[0] no\n", "[1] no\n"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_control_c_on_a_terminal(bench: Bench, ranks: str) -> None:
    ours, theirs = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    try:
        process = bench.start(
            "-n",
            ranks,
            "--grace",
            "60",
            bench.script(CATCH),
            **streams,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        seen = b""
        while seen.count(b"up") < int(ranks):
            seen += os.read(ours, 1000)
        os.write(ours, b"\x03")
        assert process.wait(PATIENCE_S) == signal.SIGINT
        while seen.count(b"got 2") < int(ranks):
            seen += os.read(ours, 1000)
        assert seen.count(b"got 2") == int(ranks)
    finally:
        os.close(theirs)
        os.close(ours)


def test_ranks_find_each_other(bench: Bench) -> None:
    script = bench.script("""
from jetstream.config import load_config
from jetstream.control.rendezvous import join
class Memfd:
    def __init__(self, fd):
        self.fd = fd
    @classmethod
    def create(cls, world, *, all_bytes=0, heap_bytes=0):
        return cls(os.memfd_create("x"))
    @classmethod
    def attach(cls, fd):
        return cls(os.dup(fd))
    def close(self):
        os.close(self.fd)
member = join(load_config(), segments=Memfd, build="b")
say(f"{member.rank} of {member.size}")
member.close()
""")
    status, out, err = bench.run("-n", "4", script)
    assert (status, err) == (0, "")
    assert sorted(out.splitlines()) == [f"[{rank}] {rank} of 4" for rank in range(4)]
