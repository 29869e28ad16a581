"""What a single TCP connection tells about an address at which nobody answers."""

from __future__ import annotations

import contextlib
import logging
import socket
import time

import pytest

from jetstream.config import load_config
from jetstream.control import rendezvous
from jetstream.control.reach import try_tcp
from jetstream.errors import RendezvousError


def test_what_a_connection_tells() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = f"a TCP connection to 127.0.0.1 port {port}"
        assert try_tcp("127.0.0.1", port, timeout_s=5.0) == f"{text} comes up"
    assert try_tcp("127.0.0.1", port, timeout_s=5.0).startswith(f"{text} is refused: nobody")
    assert "no.such.host.invalid leads nowhere" in try_tcp("no.such.host.invalid", 1, timeout_s=5.0)


def test_frames_that_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue of connections looks like a firewall that drops: nothing comes back.

    A name with many addresses takes no longer than one.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        addresses = socket.getaddrinfo(*server.getsockname(), type=socket.SOCK_STREAM)
        monkeypatch.setattr("socket.getaddrinfo", lambda *_args, **_options: 20 * addresses)
        begin_s = time.monotonic()
        text = try_tcp(*server.getsockname(), timeout_s=1.0)
        assert time.monotonic() - begin_s < 10.0
    assert "gets no answer: the host is down or a firewall drops it" in text


def test_a_long_wait_is_explained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Long before the time is up."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setattr(rendezvous, "_WARN_S", 0.3)
    for name, value in (
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("RENDEZVOUS", f"tcp://127.0.0.1:{port}"),
        ("INIT_TIMEOUT", "1"),
    ):
        monkeypatch.setenv(f"JETSTREAM_{name}", value)
    finding = "^a TCP connection to .* is refused.*; rank 1 heard nothing"
    with caplog.at_level(logging.WARNING), pytest.raises(RendezvousError, match=finding):
        rendezvous.join(load_config(), build="b1")
    (record,) = caplog.records
    assert f"rank 1 waits for rank 0: a TCP connection to 127.0.0.1 port {port} is refused" in (
        record.getMessage()
    )
