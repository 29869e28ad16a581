"""Why rank 0 cannot be reached over TCP, in words: what a single connection tells."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

__all__ = ["try_tcp"]


def try_tcp(host: str, port: int, *, timeout_s: float) -> str:
    """Connects once to each address of `host` until one answers; returns what came of it.

    All of that takes at most about `timeout_s`; looking the name up comes before.
    """
    what = f"a TCP connection to {host} port {port}"
    try:
        _connect(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), timeout_s)
    except socket.gaierror as error:
        return f"the name {host} leads nowhere: {error.strerror}"
    except ConnectionRefusedError:
        return f"{what} is refused: nobody listens there, or a firewall rejects it"
    except TimeoutError:
        return f"{what} gets no answer: the host is down or a firewall drops it"
    except OSError as error:
        return f"{what} fails: {error.strerror}"
    return f"{what} comes up"


def _connect(found: Sequence[tuple[Any, ...]], timeout_s: float) -> None:
    """Raises what the last address of those that getaddrinfo has `found` leads to."""
    for number, (family, kind, protocol, _, address) in enumerate(found, 1):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(timeout_s / len(found))
                probe.connect(address)
                return
        except OSError:
            if number == len(found):
                raise
