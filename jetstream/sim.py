"""The simulator of the wire: the real protocol over a network that is computed, in virtual time.

Two hosts exchange messages through the connections of the data plane (``csrc/rel``), which see a
link with the delay, rate, loss and stalls that the caller asks for (``csrc/sim``). Nothing depends
on this machine: the same options give the same result, to the nanosecond.

    from jetstream import sim
    result = sim.simulate(loss=0.01, messages=500, message_bytes=8192)
    print(result.p50_us, result.p999_us)

``python -m jetstream.sim`` and ``jetstream sim`` print tables. docs/reliability.md tells what the
simulator checks in every run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from jetstream._core.native import check, ffi, lib, text_of
from jetstream.errors import JetstreamError

__all__ = ["Link", "Result", "SimulationError", "format_table", "simulate", "table"]

LOSSES = (0.0, 0.001, 0.01, 0.05)
STALLS_US = (0, 1000, 10000)
_CHUNK_BYTES = 16384
_LIMIT_US = 600_000_000


class SimulationError(JetstreamError):
    """The protocol did what it must not do, or did not come to an end."""


@dataclass(frozen=True, slots=True)
class Link:
    """The network between the two hosts, the same in both directions.

    delay_us: one way. jitter_us: up to so much more, at random. gbps: rate of the line in Gb/s, 0
    for no limit. queue_frames: room in front of it. buffer_frames: what a receiver holds while its
    process does not run. loss, duplicate, reorder, corrupt: shares of all frames, 0 to 1.
    stall_us: a process stands still for so long, on average every stall_every_us.
    """

    delay_us: float = 5.0
    jitter_us: float = 1.0
    gbps: float = 25.0
    queue_frames: int = 256
    buffer_frames: int = 512
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    stall_us: float = 0.0
    stall_every_us: float = 5_000.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a run took, in virtual time, and what both hosts counted."""

    completion_us: float
    p50_us: float
    p999_us: float
    max_us: float
    frames_sent: int
    bytes_sent: int
    acks_sent: int
    retransmits: int
    spurious: int
    timeouts: int
    probes: int
    duplicates: int
    refused: int


def simulate(
    *,
    link: Link | None = None,
    messages: int = 500,
    message_bytes: int = 8192,
    is_exchange: bool = True,
    mtu_bytes: int = 1500,
    window: int = 128,
    rto_min_us: float = 1000.0,
    rto_max_us: float = 100_000.0,
    ack_delay_us: float = 20.0,
    seed: int = 1,
) -> Result:
    """Lets two hosts send each other messages, and returns how long that took.

    is_exchange: both hosts send message n + 1 when they have read the other's message n, as in a
    sequence of all-reduces; latencies are then those of one exchange. Without, both send as fast
    as they may.

    Raises ValueError for options out of range, SimulationError if anything was wrong with what the
    protocol did: order, bytes, windows, credits, or no end within ten virtual minutes.
    """
    link = Link() if link is None else link
    chunk_bytes = min(message_bytes, _CHUNK_BYTES)
    if messages < 1 or message_bytes < 1 or message_bytes % chunk_bytes:
        raise ValueError(f"messages must be whole numbers of chunks of {_CHUNK_BYTES} bytes")
    config = ffi.new("js_sim_config *")
    config.seed = seed
    config.messages = messages
    config.message_chunks = message_bytes // chunk_bytes
    config.chunk_bytes = chunk_bytes
    config.is_exchange = is_exchange
    config.window = config.share = window
    config.mtu_bytes = mtu_bytes
    config.ring_slots = 256
    config.ring_bytes = 4 << 20
    config.first_psn = 1
    _fill_link(config, link)
    config.rto_min_us = round(rto_min_us)
    config.rto_max_us = round(rto_max_us)
    config.ack_delay_us = round(ack_delay_us)
    config.limit_us = _LIMIT_US
    out = ffi.new("js_sim_result *")
    check(lib.js_sim_run(config, out))
    if out.verdict != lib.JS_SIM_OK:
        name = text_of(lib.js_sim_verdict_name(out.verdict))
        raise SimulationError(f"seed {seed}: {name} on host {out.violator} at {out.time_ns} ns")
    return _result_of(out)


def _fill_link(config: object, link: Link) -> None:
    """Translates a link into the fields of a js_sim_config."""
    values = {
        "delay_ns": link.delay_us * 1000,
        "jitter_ns": link.jitter_us * 1000,
        "rate_mbps": link.gbps * 1000,
        "queue_frames": link.queue_frames,
        "buffer_frames": link.buffer_frames,
        "loss_ppm": link.loss * 1e6,
        "duplicate_ppm": link.duplicate * 1e6,
        "reorder_ppm": link.reorder * 1e6,
        "corrupt_ppm": link.corrupt * 1e6,
        "stall_us": link.stall_us,
        "stall_every_us": link.stall_every_us,
    }
    for name, value in values.items():
        if value < 0 or value > 0xFFFFFFFF:
            raise ValueError(f"{name} of the link is out of range: {value}")
        setattr(config, name, round(value))


def _result_of(out: object) -> Result:
    times = {f"{name}_us": getattr(out, f"{name}_ns") / 1000 for name in ("p50", "p999", "max")}
    times["completion_us"] = getattr(out, "time_ns") / 1000  # noqa: B009
    counts = {f.name: getattr(out, f.name) for f in fields(Result) if f.name not in times}
    return Result(**times, **counts)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a loss rate and a stall, and what each of the two loads took."""

    loss: float
    stall_us: float
    exchange: Result  # 8 KiB each way, one after the other
    stream: Result  # 1 MiB messages, both ways at once


def table(
    losses: Iterable[float] = LOSSES, stalls_us: Sequence[float] = STALLS_US, *, seed: int = 1
) -> list[Row]:
    """Runs both loads for every loss rate and length of stalls."""
    rows = []
    for loss in losses:
        for stall_us in stalls_us:
            link = Link(loss=loss, stall_us=stall_us)
            exchange = simulate(link=link, seed=seed)
            stream = simulate(
                link=link, seed=seed, messages=8, message_bytes=1 << 20, is_exchange=False
            )
            rows.append(Row(loss, stall_us, exchange, stream))
    return rows


_COLUMNS = (
    ("loss", 6), ("stall", 7), ("p50", 9), ("p99.9", 9), ("total", 10), ("repeats", 8),
    ("timeouts", 9), ("total", 10), ("Gb/s", 6), ("repeats", 8), ("timeouts", 9),
)  # fmt: skip


def format_table(rows: Iterable[Row]) -> str:
    """The table as text; times in microseconds, rates per direction."""
    lines = [
        f"{'':13}  {'500 exchanges of 8 KiB':>49}  {'8 MiB each way':>37}",
        "  ".join(f"{name:>{width}}" for name, width in _COLUMNS),
    ]
    for row in rows:
        exchange, stream = row.exchange, row.stream
        gbps = 8 * (8 << 20) / stream.completion_us / 1000
        values = (
            f"{row.loss:.1%}", f"{row.stall_us:g}", f"{exchange.p50_us:.3f}",
            f"{exchange.p999_us:.3f}", f"{exchange.completion_us:.3f}", exchange.retransmits,
            exchange.timeouts, f"{stream.completion_us:.3f}", f"{gbps:.2f}", stream.retransmits,
            stream.timeouts,
        )  # fmt: skip
        lines.append(
            "  ".join(
                f"{value:>{width}}" for value, (_, width) in zip(values, _COLUMNS, strict=True)
            )
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(format_table(table()))
