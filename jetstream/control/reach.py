"""Why rank 0 cannot be reached over TCP, in words: what a single connection tells."""

from __future__ import annotations

import socket

__all__ = ["try_tcp"]


def try_tcp(host: str, port: int, *, timeout_s: float) -> str:
    """Connects once, for at most about `timeout_s`, and returns what came of it."""
    what = f"a TCP connection to {host} port {port}"
    try:
        socket.create_connection((host, port), timeout_s).close()
    except socket.gaierror as error:
        return f"the name {host} leads nowhere: {error.strerror}"
    except ConnectionRefusedError:
        return f"{what} is refused: nobody listens there, or a firewall rejects it"
    except TimeoutError:
        return f"{what} gets no answer: the host is down or a firewall drops it"
    except OSError as error:
        return f"{what} fails: {error.strerror}"
    return f"{what} comes up"
