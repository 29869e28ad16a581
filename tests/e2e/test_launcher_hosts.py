"""``jetstream run`` for several hosts: virtual ones, and one launcher for each."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE_S = 60.0
SECRET = "5a" * 16
#: Joins with a plain memfd for a segment, and says who is where.
PROGRAM = """
import os, sys
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
config = load_config()
member = join(config, segments=Memfd, build="b", open_link=lambda link: link.kind.encode())
print(member.rank, member.size, config.local_rank, member.local_rank, *member.hosts, flush=True)
member.close()
sys.exit(int(os.environ.get("STATUS", 0)))
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.py"
    path.write_text(PROGRAM)
    return str(path)


def start(*arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jetstream", "run", *arguments],
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, sorted(out.splitlines()), err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_virtual_hosts(script: str) -> None:
    status, lines, err = finish(start("-n", "5", "--hosts", "2", script))
    assert (status, err) == (0, "")
    hosts = "host0 host0 host0 host1 host1"
    local = [0, 1, 2, 0, 1]
    assert lines == [f"[{rank}] {rank} 5 {local[rank]} {local[rank]} {hosts}" for rank in range(5)]


def test_a_launcher_for_each_host(script: str, tmp_path: Path) -> None:
    """The hosts have names here, because they are one machine."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    common = ["-n", "2", "--nnodes", "2", "--rendezvous", f"127.0.0.1:{free_port()}"]
    one = start(
        *(*common, "--node-rank", "1", "--secret-file", str(secret), script), JETSTREAM_HOST="b"
    )
    zero = start(
        *(*common, "--node-rank", "0", script), JETSTREAM_JOB_SECRET=SECRET, JETSTREAM_HOST="a"
    )
    assert finish(zero) == (0, ["[0] 0 4 0 0 a a b b", "[1] 1 4 1 1 a a b b"], "")
    assert finish(one) == (0, ["[2] 2 4 0 0 a a b b", "[3] 3 4 1 1 a a b b"], "")


TORCH_PROGRAM = """
import os
names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
print(*(os.environ[name] for name in names), flush=True)
"""


def test_ranks_are_told_what_torch_asks_for(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCH_PROGRAM)
    for arguments, places in (
        (["-n", "3"], ("0 3 0 3", "1 3 1 3", "2 3 2 3")),
        (["-n", "3", "--hosts", "2"], ("0 3 0 2", "1 3 1 2", "2 3 0 1")),
    ):
        status, lines, err = finish(start(*arguments, str(script)))
        assert (status, err) == (0, "")
        port = int(lines[0].split()[-1])  # free when it was looked for
        assert 0 < port < 65536
        assert lines == [f"[{rank}] {place} 127.0.0.1 {port}" for rank, place in enumerate(places)]
    spread = ["-n", "1", "--nnodes", "2", "--node-rank", "1", "--rendezvous", "node0:29400"]
    status, lines, err = finish(start(*spread, str(script), JETSTREAM_JOB_SECRET=SECRET))
    assert (status, lines, err) == (0, ["[1] 1 2 0 1 node0 29401"], "")


def test_each_launcher_has_the_status_of_its_ranks(script: str) -> None:
    common = ["-n", "1", "--nnodes", "2", "--rendezvous", f"127.0.0.1:{free_port()}"]
    env = {"JETSTREAM_JOB_SECRET": SECRET}
    zero = start(*common, "--node-rank", "0", script, **env)
    one = start(*common, "--node-rank", "1", script, STATUS="7", **env)
    assert finish(zero)[0] == 0
    status, _, err = finish(one)
    assert status == 7
    assert "rank 1 (pid " in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--hosts", "3"], "3 hosts are too many for 2 ranks"),
        (["--hosts", "0"], "not a number from 1"),
        (["--node-rank", "0"], "--node-rank goes with --nnodes"),
        (["--rendezvous", "a:1"], "--rendezvous goes with --nnodes"),
        (["--secret-file", "x"], "--secret-file goes with --nnodes"),
        (["--nnodes", "2"], "--node-rank is needed: a number from 0 to 1"),
        (["--nnodes", "2", "--node-rank", "2"], "from 0 to 1"),
        (["--nnodes", "2", "--node-rank", "0"], "--rendezvous HOST:PORT is needed"),
        (["--nnodes", "200", "--node-rank", "0"], "400 ranks: at most 256"),
        (["--nnodes", "2", "--hosts", "2"], "--nnodes is for real ones"),
        (["--nnodes", "2", "--node-rank", "0", "--rendezvous", "a:1"], "a secret is needed"),
        (
            ["--nnodes", "2", "--node-rank", "0", "--rendezvous", "a:1", "--secret-file", "/no"],
            "/no: No such file",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments: list[str], text: str) -> None:
    status, _, err = finish(start("-n", "2", *arguments, "true"))
    assert status == 2
    assert text in err


@pytest.mark.parametrize(
    ("rendezvous", "secret", "text"),
    [("a", SECRET, "JETSTREAM_RENDEZVOUS is 'tcp://a'"), ("a:1", "xyz", "JETSTREAM_JOB_SECRET is")],
)
def test_settings_are_checked_once(rendezvous: str, secret: str, text: str) -> None:
    arguments = ["-n", "2", "--nnodes", "2", "--node-rank", "0", "--rendezvous", rendezvous]
    status, _, err = finish(start(*arguments, "true", JETSTREAM_JOB_SECRET=secret))
    assert status == 2
    assert err.count(text) == 1
