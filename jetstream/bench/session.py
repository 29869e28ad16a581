"""The command's side of a run: starts the ranks, shows their events, keeps the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from jetstream.bench import table
from jetstream.bench.config import BenchConfig
from jetstream.bench.results import Report, Row
from jetstream.bench.sizes import format_size
from jetstream.bench.worker import EVENT_MARK

__all__ = ["CLEAR_LINE", "Console", "run_session", "run_worker"]

#: Goes to the begin of the line on a terminal and empties it.
CLEAR_LINE = "\r\x1b[K"
_END_GRACE_S = 10.0


class Console:
    """Shows events: the table on `out`, progress on `progress` (None: no progress)."""

    def __init__(self, config: BenchConfig, out: TextIO, progress: TextIO | None) -> None:
        self.report = Report(config)
        self._out = out
        self._progress = progress
        self._begin_s = time.monotonic()

    def handle(self, event: dict[str, Any]) -> None:
        """Shows one event and adds it to the report."""
        if self._progress is not None:
            self._progress.write(CLEAR_LINE)
            self._progress.flush()
        kind = event["event"]
        if kind == "start":
            self.report.machine, self.report.ranks = event["machine"], event["ranks"]
            self._write(table.head_lines(self.report))
        elif kind == "case":
            self._show_progress(event)
        elif kind == "row":
            self._add(Row.from_dict(event["row"]))
        elif kind == "end":
            self._close_table()
            self.report.complete = True
            self._write(table.summary_lines(self.report))

    def write_text(self, line: str) -> None:
        """Passes on a line that is no event."""
        self._out.write(line)
        self._out.flush()

    def _add(self, row: Row) -> None:
        rows = self.report.rows
        if not rows or rows[-1].kind != row.kind:
            self._close_table()
            self._write(table.column_lines(row.kind))
        rows.append(row)
        self._write([table.row_line(row)])

    def _close_table(self) -> None:
        if self.report.rows:
            kind = self.report.rows[-1].kind
            self._write(table.footer_lines(self.report.rows_of(kind)))

    def _show_progress(self, event: dict[str, Any]) -> None:
        if self._progress is None:
            return
        done, total = event["index"], event["total"]
        text = f"{event['kind']} {format_size(event['requested_bytes'])}: "
        text += f"{done} of {total} done, {100 * done // total} %"
        if done:
            elapsed_s = time.monotonic() - self._begin_s
            text += f", about {elapsed_s / done * (total - done):.0f} s left"
        self._progress.write(CLEAR_LINE + text)
        self._progress.flush()

    def _write(self, lines: list[str]) -> None:
        self._out.write("".join(f"{line.rstrip()}\n" for line in lines))
        self._out.flush()


def run_session(config: BenchConfig, console: Console) -> int:
    """Starts the ranks through ``jetstream run`` and shows what they report.

    Returns the exit status: 0, 1 for wrong data, else that of the launcher.
    """
    options = ["-n", str(config.ranks), "--bind", config.bind]
    worker = ["jetstream.bench.worker", config.to_json()]
    return run_worker(options, worker, console.handle, console.write_text)


def run_worker(
    options: list[str],
    worker: list[str],
    handle: Callable[[dict[str, Any]], None],
    write_text: Callable[[str], None],
    *,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Runs ``jetstream run OPTIONS -m WORKER`` and passes on events, and lines that are none.

    ``variables`` are for the ranks, in addition to those of this process. Returns the exit status.
    """
    command = [sys.executable, "-m", "jetstream", "run", "--no-label", *options, "-m", *worker]
    # A folder named jetstream in the working directory must not be taken for the package.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **(variables or {})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        with process.stdout:
            for line in process.stdout:
                if line.startswith(EVENT_MARK):
                    handle(json.loads(line[1:]))
                else:
                    write_text(line)
        return process.wait()
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Makes sure that nothing outlives the command, also when it is interrupted."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_END_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
