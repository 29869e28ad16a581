"""Many to one: what arrives at a rank to which all others send at once, and how fairly.

    python bench/incast.py [--senders 8] [--bytes 1M] [--seconds 5] [--links udp packet]
                           [--losses none link=0.01 bridge=0.01] [--json]

Every rank is a host of its own. Goodput is what the receiver has got in the time; fairness is the
share of the best served sender over that of the worst (1 is fair).
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from bounds import positive, share, whole
from report import parse_size

from jetstream import Communicator
from jetstream.testing import NoNetworkError, run_ranks

AHEAD = 2  # messages of each sender that are awaited at a time
LAST = 251  # first byte of the message that ends it
LINKS = ("udp", "packet", "xdp")
LOSSES = ["none", "link=0.001", "link=0.01", "link=0.05", "bridge=0.01"]
SENT = ("frames_sent", "retransmits", "spurious", "timeouts", "probes", "credit_stalls")
HEAD = (
    "| link | loss | goodput, Gb/s | fairness | repeated, % | arrived twice, % | receiver drops |",
    "|---|---|---:|---:|---:|---:|---:|",
)


def receive(comm: Communicator, size_bytes: int) -> dict[str, Any]:
    """Takes what comes, from each sender as fast as it can, and checks it, until all have ended."""
    senders = range(1, comm.size)
    boxes = {s: [np.zeros(size_bytes, np.uint8) for _ in range(AHEAD)] for s in senders}
    works = {s: [comm.irecv(box, s) for box in boxes[s]] for s in senders}
    counts = dict.fromkeys(senders, 0)
    timely = dict.fromkeys(senders, 0)
    awaited = set(senders)
    begin_s = time.monotonic()
    elapsed_s = 0.0  # until the first has ended: from then on the others have more room
    while awaited:
        for sender in tuple(awaited):
            slot = counts[sender] % AHEAD
            if not works[sender][slot].done():
                continue
            box = boxes[sender][slot]
            if box[0] == LAST:
                elapsed_s = elapsed_s or time.monotonic() - begin_s
                awaited.remove(sender)
                continue
            if box[0] != sender or box[-1] != counts[sender] % LAST:
                raise SystemExit(f"message {counts[sender]} of rank {sender} is wrong")
            counts[sender] += 1
            timely[sender] += not elapsed_s
            works[sender][slot] = comm.irecv(box, sender)
    total = sum(timely.values())
    counters = [comm.peer_counters(sender) for sender in senders]
    return {
        "senders": comm.size - 1,
        "bytes": size_bytes,
        "messages": total,
        "gbit_per_s": 8e-9 * total * size_bytes / elapsed_s,
        "fairness": max(timely.values()) / max(1, min(timely.values())),
        "duplicates": sum(counter["duplicates"] for counter in counters),
        "drops": comm.link_counters()["receive_drops"],
    }


def send(comm: Communicator, size_bytes: int, seconds: float) -> dict[str, Any]:
    """Sends for so long."""
    message = np.full(size_bytes, comm.rank, np.uint8)
    begin_s = time.monotonic()
    count = 0
    while time.monotonic() - begin_s < seconds:
        message[-1] = count % LAST
        comm.send(message, 0, timeout=120)
        count += 1
    message[0] = LAST
    comm.send(message, 0, timeout=120)
    counters = comm.peer_counters(0)
    return {name: counters[name] for name in SENT}


def run(comm: Communicator, size_bytes: int, seconds: float) -> dict[str, Any]:
    """One rank's part."""
    comm.barrier()
    return send(comm, size_bytes, seconds) if comm.rank else receive(comm, size_bytes)


def measure(chosen: argparse.Namespace, link: str, loss: str) -> dict[str, Any]:
    """Goodput, fairness and repeats with one kind of link and one kind of loss."""
    by, _, lost = loss.partition("=")
    spread = {"faults": f"drop={lost},seed=1"} if by == "link" else {}
    if by == "bridge":
        spread = {"kernel_drop": float(lost)}
    results: Any = run_ranks(
        run,
        chosen.senders + 1,
        chosen.bytes,
        chosen.seconds,
        hosts=chosen.senders + 1,
        link=link,
        bind=True,
        timeout_s=chosen.seconds + 120,
        **spread,
    )
    found: dict[str, Any] = {"link": link, "loss": loss, **results[0]}
    for name in SENT:
        found[name] = sum(row[name] for row in results[1:])
    return found


def line_of(found: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [found["link"], found["loss"], f"{found['gbit_per_s']:.2f}", f"{found['fairness']:.2f}"]
    for name in ("retransmits", "duplicates"):
        cells.append(f"{100 * found[name] / max(1, found['frames_sent']):.1f}")
    return "| " + " | ".join([*cells, str(found["drops"])]) + " |"


def parse_loss(text: str) -> str:
    """Checks 'none', 'link=SHARE' or 'bridge=SHARE'."""
    by, _, lost = text.partition("=")
    if text != "none":
        if by not in ("link", "bridge"):
            raise argparse.ArgumentTypeError(f"{text!r} is not none, link=SHARE or bridge=SHARE")
        share(lost)
    return text


def main() -> None:
    """Measures all that is asked for; prints a table, or lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--senders", type=whole(1, 63), default=8, help="ranks that send (8)")
    parser.add_argument("--bytes", type=parse_size, default="1M", help="of a message (1M)")
    parser.add_argument("--seconds", type=positive, default=5.0, help="how long, each (5)")
    parser.add_argument(
        "--links", nargs="+", choices=LINKS, default=LINKS[:2], metavar="LINK",
        help=f"of {', '.join(LINKS)} (udp packet)",
    )  # fmt: skip
    parser.add_argument(
        "--losses", nargs="+", type=parse_loss, default=LOSSES, metavar="HOW",
        help=f"none; link=SHARE: by the sending link; bridge=SHARE: by the kernel, between "
        f"namespaces ({' '.join(LOSSES)})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="every count, a line for each case")
    chosen = parser.parse_args()
    if not chosen.json:
        print(*HEAD, sep="\n")
    for link in chosen.links:
        for loss in chosen.losses:
            try:
                found = measure(chosen, link, loss)
            except NoNetworkError as error:
                print(f"| {link} | {loss} | not possible here: {error} |", flush=True)
                continue
            print(json.dumps(found) if chosen.json else line_of(found), flush=True)


if __name__ == "__main__":
    main()
