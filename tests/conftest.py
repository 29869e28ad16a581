"""Options of the test suite, and the watch over what tests leave behind."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import secrets
import signal
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hypothesis import settings

_LEAK_PATIENCE_S = 30.0
#: In the environment of all that this session starts.
_MARK = "JETSTREAM_TEST_SESSION"

# How long an example takes says something about the machine, not about the code. The same examples
# every time, but in the long runs that look for new ones.
settings.register_profile("steady", deadline=None, database=None, derandomize=True)
settings.register_profile("searching", deadline=None, database=None)
settings.load_profile("steady")


def pytest_report_header() -> str | None:
    """Said here, since a folder that is left out has no word in the header."""
    if importlib.util.find_spec("torch") is None:
        return "tests/torch: left out, because torch is not installed (make torch)"
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jetstream tests")
    group.addoption(
        "--full-matrix",
        action="store_true",
        help="every collective x dtype x op x size x world, minutes long",
    )
    group.addoption(
        "--fault-rounds",
        type=int,
        default=6,
        metavar="N",
        help="how many times to kill ranks at random moments (default 6)",
    )
    group.addoption(
        "--fault-seed", type=int, default=1, metavar="SEED", help="seed of these moments (1)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--full-matrix"):
        settings.load_profile("searching")
    os.environ["JETSTREAM_TUNE"] = "off"  # a file of this host would change what is chosen
    os.environ[_MARK] = secrets.token_hex(8)
    # Under nohup, or in the background of a shell, some signals come ignored, and would be so in
    # all that the tests start.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            is_interrupt = number is signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    config.addinivalue_line("markers", "slow: takes more than ten seconds or more than 8 GiB")


def pytest_collection_finish() -> None:
    """Thousands of tests have been collected, which no garbage collection need look at again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where there has to be a network, a test that is skipped for lack of one has failed."""
    report = yield
    if report.skipped and os.environ.get("JETSTREAM_REQUIRE_NETWORK") == "1" and call.excinfo:
        from jetstream.testing import NoNetworkError

        error: BaseException | None = call.excinfo.value
        while error is not None and not isinstance(error, NoNetworkError):
            error = error.__cause__ or error.__context__
        if error is not None:
            report.outcome = "failed"
            report.longrepr = f"JETSTREAM_REQUIRE_NETWORK is set, and {error}"
    return report


@dataclass(frozen=True)
class Footprint:
    """What this session holds of what outlives a process, or may."""

    processes: frozenset[str]
    segments: frozenset[str]
    sockets: frozenset[str]
    files: frozenset[str]


def footprint() -> Footprint:
    """Takes stock of this process and all that it has started, orphans included."""
    processes = [path for path in Path("/proc").glob("[0-9]*") if _is_ours(path)]
    held = {path.name: _held_by(path) for path in (Path("/proc/self"), *processes)}
    named = {
        words[6]: words[-1]
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        if len(words := line.split()) > 7 and "jetstream" in words[-1]
    }
    sockets = {f"socket:[{inode}]": name for inode, name in named.items()}
    return Footprint(
        processes=frozenset(_describe(path) for path in processes),
        segments=frozenset(
            f"{pid}: {name}"
            for pid, names in held.items()
            for name in names
            if name.startswith("/memfd:jetstream (")
        ),
        sockets=frozenset(
            f"{pid}: {sockets[name]}"
            for pid, names in held.items()
            for name in names
            if name in sockets
        ),
        files=frozenset(path.name for path in Path("/dev/shm").glob("*jetstream*")),
    )


def _is_ours(process: Path) -> bool:
    """Was it started, directly or not, by this session?"""
    if process.name == str(os.getpid()):
        return False
    try:
        return f"{_MARK}={os.environ[_MARK]}\0".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def _describe(process: Path) -> str:
    try:
        return f"{process.name} {(process / 'comm').read_text().strip()}"
    except OSError:
        return f"{process.name} (ended)"


def _held_by(process: Path) -> list[str]:
    """Names of the files, sockets and memfds that a process has open or mapped."""
    try:
        names = {line.split(maxsplit=5)[-1] for line in (process / "maps").read_text().splitlines()}
        for fd in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                names.add(str(fd.readlink()))
    except OSError:
        return []
    return sorted(names)


class LeakWatch:
    """Knows what there was at the start and says what has come since."""

    def __init__(self) -> None:
        self._before = footprint()

    def look(self) -> dict[str, list[str]]:
        """What there is now and was not before, by kind."""
        now = footprint()
        kinds = [field.name for field in fields(Footprint)]
        new = {kind: sorted(getattr(now, kind) - getattr(self._before, kind)) for kind in kinds}
        return {kind: names for kind, names in new.items() if names}

    def expect_nothing(self) -> None:
        """Fails if something is left; what is ending may take a moment."""
        deadline_s = time.monotonic() + _LEAK_PATIENCE_S
        while (left := self.look()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        if left:
            pytest.fail(f"left behind: {left}")


@pytest.fixture
def no_leaks() -> Iterator[LeakWatch]:
    """Fails the test if it leaves processes, segments, sockets or files in /dev/shm behind."""
    watch = LeakWatch()
    yield watch
    watch.expect_nothing()
