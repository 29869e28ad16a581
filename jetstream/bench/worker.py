"""What every rank of a bench run does: measure each case, and on rank 0 report it as events.

Run by the launcher as ``python -m jetstream.bench.worker CONFIG``, CONFIG being the JSON form of
BenchConfig. Rank 0 then writes one event per line to standard output: a record separator (as in
RFC 7464) and a JSON object. Everything else on standard output is the program's own words.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jetstream.bench.config import BenchConfig
from jetstream.bench.machine import allowed_cores, cores_text, facts
from jetstream.bench.measure import Effort, gather_text, measure
from jetstream.bench.results import make_row
from jetstream.errors import JetstreamError

if TYPE_CHECKING:
    from jetstream.communicator import Communicator

__all__ = ["EVENT_MARK", "Emit", "measure_all", "print_event", "run_rank"]

#: First character of a line that carries an event.
EVENT_MARK = "\x1e"

_FAILED = 3

#: Takes one event: a dict with the key "event" ("start", "case", "row" or "end").
Emit = Callable[[dict[str, Any]], None]


def run_rank(config: BenchConfig, emit: Emit) -> int:
    """Joins the job, measures, and returns the exit status.

    0; 1 when a rank got wrong data; 3 when the library raised an error, which is written to
    standard error. emit is called on rank 0 only.
    """
    if config.algorithm is not None:
        os.environ["JETSTREAM_ALGO"] = config.algorithm
    import jetstream

    try:
        with jetstream.init(timeout=config.timeout_s) as comm:
            return measure_all(comm, config, emit if comm.rank == 0 else lambda event: None)
    except JetstreamError as error:
        sys.stderr.write(f"jetstream bench: {type(error).__name__}: {error}\n")
        return _FAILED


def measure_all(comm: Communicator, config: BenchConfig, emit: Emit) -> int:
    """Measures all cases of a request on all ranks together; returns 1 if data was wrong."""
    ranks = gather_text(comm, f"{os.getpid()} {cores_text(allowed_cores())} {os.uname().nodename}")
    keys = ("pid", "cores", "host")
    described = [dict(zip(keys, text.split(" ", 2), strict=True)) for text in ranks]
    emit({"event": "start", "machine": facts(), "ranks": described})
    effort = Effort(config.budget_s, config.iterations, config.warmup, config.check, config.launch)
    cases = config.cases()
    failed = False
    for index, case in enumerate(cases):
        emit({"event": "case", "index": index, "total": len(cases), **asdict(case)})
        samples = measure(comm, case, effort)
        row = make_row(case, samples, keep_samples=config.keep_samples)
        emit({"event": "row", "row": asdict(row)})
        failed = failed or row.failed
    emit({"event": "end"})
    return int(failed)


def print_event(event: dict[str, Any]) -> None:
    """Write an event to standard output."""
    sys.stdout.write(EVENT_MARK + json.dumps(event, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Entry point of a rank: one argument, the configuration as JSON."""
    (text,) = arguments
    return run_rank(BenchConfig.from_json(text), print_event)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
