"""Ranks of other hosts that die, stop, or are cut off: on every link the others say who it was.

The ordinary run tries some on one link, ``--full-matrix`` all on each.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import CommunicatorAbortedError, JetstreamError, PeerDiedError
from jetstream.testing import NoNetworkError, RankPool

LINKS = ("udp", "packet", "xdp")
KINDS = ("killed", "stopped", "cut off", "mute")
SHORT = (("packet", "killed"), ("xdp", "stopped"), ("packet", "mute"))
#: How long a rank may be silent.
SILENCE_S = 2.0
#: Generous: what a busy machine adds to it. A call gives up after 30 s.
NOTICE_S = 20.0
PATIENCE_S = 60.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "end" in metafunc.fixturenames:
        full = bool(metafunc.config.getoption("--full-matrix"))
        every = [(link, kind) for link in LINKS for kind in KINDS]
        metafunc.parametrize("end", every if full else SHORT, ids="-".join)


def work_until(comm: Communicator, noticed: Path) -> tuple[str, str, float]:
    """Calls until something goes wrong; returns what, and when, and leaves a file that says so."""
    try:
        while True:
            for count in (1, 1000, 50_000):
                comm.all_reduce(np.ones(count, np.float32), timeout=PATIENCE_S / 2)
    except JetstreamError as error:
        found = type(error).__name__, str(error), time.monotonic()
        (noticed / str(comm.rank)).touch()
    with pytest.raises(CommunicatorAbortedError, match="cannot be used any more"):
        comm.barrier()
    return found


def connect(comm: Communicator) -> None:
    comm.all_reduce(np.ones(1, np.float32), timeout=PATIENCE_S / 2)


def strike(pool: RankPool, kind: str) -> None:
    """Rank 2, alone on host 1, meets its end."""
    network = pool.network
    assert network is not None
    if kind in ("cut off", "mute"):
        network.cut(1, is_one_way=kind == "mute")
    else:
        os.kill(pool.pids[2], signal.SIGKILL if kind == "killed" else signal.SIGSTOP)


def test_an_end_is_named(end: tuple[str, str], no_leaks: Any, tmp_path: Path) -> None:
    link, kind = end
    env = {"JETSTREAM_LINK_TIMEOUT": str(SILENCE_S)}
    hosts = {"hosts": (0, 0, 1), "link": link, "namespaces": True}
    with RankPool(3, timeout_s=PATIENCE_S, env=env, **hosts) as pool:
        try:
            pool.run(connect)
        except NoNetworkError as error:
            pytest.skip(str(error))
        pool.start(work_until, tmp_path)
        time.sleep(0.3)
        pids = pool.pids
        began_s = time.monotonic()
        strike(pool, kind)
        if kind == "stopped":  # until the others have given it up
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < began_s + PATIENCE_S / 2:
                time.sleep(0.01)
            os.kill(pids[2], signal.SIGCONT)
        outcomes = pool.wait()
    for outcome in outcomes[:2]:
        assert outcome.is_ok, outcome.failure
        name, text, noticed_s = outcome.value
        assert name == PeerDiedError.__name__, text
        assert "rank 2" in text
        assert noticed_s - began_s < SILENCE_S + NOTICE_S
    if kind == "killed":
        assert outcomes[2].failure == "killed by SIGKILL"
        return
    # Whoever comes back, or is heard no more, is told, or finds the others silent.
    assert outcomes[2].is_ok, outcomes[2].failure
    name, text, _ = outcomes[2].value
    assert name in (PeerDiedError.__name__, CommunicatorAbortedError.__name__), text
    assert "rank" in text
    print(text)


@pytest.mark.ranks(2, hosts=2, link="packet", kernel_drop=0.05)
def test_records_tell_of_repeats(comm: Communicator) -> None:
    """What was sent again for a call is in its record; all of them together in the counters.

    While the ticker looks at the communicator, the record of the call that has just ended is not
    yet written: what is read then is as of the call before.
    """
    told = {}
    for _ in range(30):
        comm.all_reduce(np.ones(40_000, np.float32))
        record = comm.last_op
        assert record is not None
        assert (f"{record.retransmits} frames repeated" in str(record)) == (record.retransmits > 0)
        told[record.op_id] = record.retransmits
    peer = 1 - comm.rank
    before = comm.peer_counters(peer)["retransmits"]
    comm.barrier()  # its record has what has been repeated since the last one was written
    while len(records := comm.records()) < 31:
        time.sleep(0.001)
    repeats = int(records["retransmits"].sum())
    written = dict(zip(records["op_id"].tolist(), records["retransmits"].tolist(), strict=True))
    assert told.items() <= written.items()
    assert len(told) > 15
    assert 0 < before <= repeats <= comm.peer_counters(peer)["retransmits"]
    assert len(records) == 31
