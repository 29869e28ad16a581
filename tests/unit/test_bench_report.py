"""What bench shows: the table's columns, the summary, the JSON document and the HTML page."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream.bench import table
from jetstream.bench.config import BenchConfig
from jetstream.bench.kinds import Case
from jetstream.bench.measure import Samples
from jetstream.bench.report_html import render_page, write_html
from jetstream.bench.results import SCHEMA, Report, Row, make_row, write_json
from jetstream.bench.session import Console

MACHINE = {
    "jetstream": "0.1.0",
    "build_id": "0123456789abcdef",
    "instruction_set": "avx2",
    "python": "3.11.0",
    "numpy": "2.0.0",
    "cpu": "A <fast> & 'quoted' processor",
    "cores": 2,
    "cores_allowed": "0-1",
    "memory_bytes": 8 << 30,
    "kernel": "Linux 6.1",
    "clock_source": "tsc",
    "host": "node<script>",
    "load": "0.3",
    "time": "2026-01-02T03:04:05+0000",
}
RANKS = [
    {"pid": "41", "cores": "0", "host": "node"},
    {"pid": "42", "cores": "1", "host": "node"},
]
VOID = {"meta", "br", "hr", "img", "link"}


def row_of(case: Case, *, iterations: int = 5000, wrong: int | None = 0, agree: Any = True) -> Row:
    random = np.random.default_rng(case.size_bytes)
    latency_ns = random.integers(900, 1100, iterations) + case.size_bytes // 10
    latency_ns[: iterations // 500] *= 9
    checks = 0 if wrong is None else 5
    samples = Samples(latency_ns, wrong, checks, agree, "one_shot")
    return make_row(case, samples, keep_samples=False)


def report_of(
    kinds: tuple[str, ...] = ("all_reduce", "barrier"),
    sizes_bytes: tuple[int, ...] = (8, 1024, 1 << 20),
    ranks: int = 2,
    **options: Any,
) -> Report:
    config = BenchConfig(kinds, ranks, sizes_bytes)
    rows = [row_of(case, **options) for case in config.cases()]
    return Report(config, dict(MACHINE), list(RANKS[:ranks]), rows, complete=True)


def test_row_figures() -> None:
    case = Case("all_gather", 2, 4000, "float32")
    latency_ns = np.array([1000, 2000, 3000, 2000] * 100, np.int64)
    row = make_row(case, Samples(latency_ns, 0, 5, True), keep_samples=True)
    assert (row.mean_us, row.min_us, row.max_us) == (2.0, 1.0, 3.0)
    assert row.algbw_gbs == pytest.approx(2.0)  # 4000 B in 2 us
    assert row.busbw_gbs == pytest.approx(1.0)  # (2 - 1) / 2 of it
    assert row.percentiles_us["p50"] == 2.0
    assert row.percentiles_us["p99.9"] is None
    assert row.samples_ns == latency_ns.tolist()


def test_table_fits_into_120_columns_and_lines_up() -> None:
    huge = Case("reduce_scatter", 64, 1 << 36, "bfloat16", "prod", 12)
    samples = Samples(np.full(9, 98_765_432, np.int64), 123_456, 5, None)
    row = make_row(huge, samples, keep_samples=False)
    lines = [*table.column_lines("all_reduce")[2:], table.row_line(row)]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 120
    head = table.head_lines(report_of())
    assert all(line.startswith("#") and len(line) <= 120 for line in head)


def test_row_line_has_the_columns_of_nccl_tests() -> None:
    row = row_of(Case("all_reduce", 2, 1024, "float32", "sum"), iterations=400)
    fields = table.row_line(row).split()
    assert fields[:5] == ["1024", "256", "float32", "sum", "-1"]
    assert fields[8] == "0"
    assert fields[11] == "-"  # p99.9 of 400
    assert len(fields) == 13


@pytest.mark.parametrize(
    ("wrong", "agree", "footer", "cell"),
    [
        (0, True, "0 OK", "0"),
        (7, True, "7 FAILED", "7"),
        (0, False, "0 FAILED", "differ"),
        (None, None, "not checked", "-"),
    ],
)
def test_verdicts(wrong: int | None, agree: bool | None, footer: str, cell: str) -> None:
    report = report_of(("all_reduce",), (1024,), wrong=wrong, agree=agree)
    assert any(
        line == f"# Out of bounds values : {footer}" for line in table.footer_lines(report.rows)
    )
    assert table.row_line(report.rows[0]).split()[8] == cell
    summary = "\n".join(table.summary_lines(report))
    assert ("WRONG DATA" in summary) == (footer.endswith("FAILED"))
    assert ("all equal" in summary) == (footer == "0 OK")


def test_summary_says_latency_bandwidth_and_tail() -> None:
    summary = "\n".join(table.summary_lines(report_of()))
    assert re.search(r"all_reduce +smallest latency 1\.00 us \(median, 8 B\)", summary)
    assert re.search(r"best bus bandwidth \d+\.\d\d GB/s \(1 MiB\)", summary)
    assert re.search(r"tail up to 1 KiB: p99\.9 is \d+\.\d to \d+\.\d times the median", summary)
    assert re.search(r"barrier +1\.00 us \(median\)", summary)
    assert len(summary.splitlines()) <= 20


def test_a_busy_host_is_said() -> None:
    report = report_of()
    assert not any("load average" in line for line in table.head_lines(report))
    report.machine["load"] = "5.6"
    assert any("load average 5.6 on 2 cores" in line for line in table.head_lines(report))
    assert "The load average was 5.6 on 2 cores" in render_page(report)


def test_one_rank_has_no_bus_bandwidth() -> None:
    report = report_of(ranks=1)
    assert "bandwidth" not in "\n".join([*table.summary_lines(report), *_footers(report)])
    assert "Bus bandwidth by size" not in render_page(report)


def _footers(report: Report) -> list[str]:
    return table.footer_lines(report.rows_of("all_reduce"))


def test_more_ranks_than_cores_is_said() -> None:
    report = report_of()
    assert not table.oversubscribed(report)
    report.ranks = [{**rank, "cores": "0"} for rank in RANKS]
    assert any("oversubscribed" in line for line in table.head_lines(report))
    assert "more ranks than cores" in render_page(report)
    report.ranks = [{**rank, "cores": "0-1,4"} for rank in RANKS]
    assert not table.oversubscribed(report)


def test_json_document(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    report = report_of()
    write_json(path, report)
    document = json.loads(path.read_text())
    assert document["schema"] == SCHEMA
    assert document["complete"] is True
    assert document["machine"]["cpu"] == MACHINE["cpu"]
    assert document["config"]["kinds"] == ["all_reduce", "barrier"]
    assert [row["size_bytes"] for row in document["rows"]] == [8, 1024, 1 << 20, 0]
    assert document["rows"][0]["percentiles_us"]["p99.9"] > document["rows"][0]["mean_us"]
    assert "samples_ns" not in document["rows"][0]
    assert Row.from_dict(json.loads(json.dumps(asdict(report.rows[0])))) == report.rows[0]


class Page(HTMLParser):
    """Checks nesting, and collects what a test wants to know."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(report: Report) -> Page:
    page = Page()
    page.feed(render_page(report))
    page.close()
    assert page.open == []
    return page


@pytest.mark.parametrize(
    "report",
    [
        report_of(),
        report_of(("barrier",)),
        report_of(("all_reduce",), (64,)),
        report_of(("all_gather", "pingpong"), iterations=20),
        report_of(("all_reduce",), (8,), iterations=1),
        report_of(ranks=1),
        Report(BenchConfig(("all_reduce",), 2, (8,)), dict(MACHINE), list(RANKS)),
        Report(BenchConfig(("all_reduce",), 2, (8,))),
    ],
    ids=[
        "two kinds",
        "barrier",
        "one size",
        "few",
        "one iteration",
        "one rank",
        "no rows",
        "nothing",
    ],
)
def test_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    page = read_page(report)
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "href", "srcset", "data", "onclick", "onload"}
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    text = render_page(report)
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "nan" not in re.findall(r'd="[^"]*nan', text)
    assert len(page.ids) == len(set(page.ids))


def test_page_has_figures_with_words_for_them() -> None:
    page = read_page(report_of())
    assert page.tags.count("svg") == 5  # four for the sizes, one for the barrier
    labelled = [value for name, value in page.attributes if name == "aria-labelledby"]
    assert len(labelled) == 5
    for value in labelled:
        assert all(part in page.ids for part in (value or "").split())


def test_page_escapes_what_the_machine_says() -> None:
    text = render_page(report_of())
    assert "<fast>" not in text
    assert "&lt;fast&gt;" in text
    assert "node<script>" not in text


def test_page_warns(tmp_path: Path) -> None:
    report = report_of(wrong=3)
    report.complete = False
    write_html(tmp_path / "page.html", report)
    text = (tmp_path / "page.html").read_text()
    assert "Wrong data was found" in text
    assert "ended early" in text
    assert 'class="wrong"' in text


def play(events: list[dict[str, Any]], progress: io.StringIO | None) -> tuple[Console, str]:
    out = io.StringIO()
    console = Console(BenchConfig(("all_reduce", "barrier"), 2, (8, 64)), out, progress)
    for event in events:
        console.handle(json.loads(json.dumps(event)))
    return console, out.getvalue()


def events_of(config: BenchConfig) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"event": "start", "machine": MACHINE, "ranks": RANKS}]
    for index, case in enumerate(config.cases()):
        events.append({"event": "case", "index": index, "total": 3, **asdict(case)})
        events.append({"event": "row", "row": asdict(row_of(case))})
    return [*events, {"event": "end"}]


def test_console_shows_a_table_for_each_kind() -> None:
    config = BenchConfig(("all_reduce", "barrier"), 2, (8, 64))
    console, text = play(events_of(config), None)
    assert console.report.complete
    assert len(console.report.rows) == 3
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        table.row_line(row) for row in console.report.rows
    ]
    assert lines.index("# all_reduce") < lines.index("# barrier")
    assert text.count("# Out of bounds values : 0 OK") == 2
    assert text.count("# Avg bus bandwidth") == 1
    assert "\x1b" not in text


def test_console_shows_progress_only_where_asked() -> None:
    config = BenchConfig(("all_reduce", "barrier"), 2, (8, 64))
    progress = io.StringIO()
    _, text = play(events_of(config), progress)
    assert "all_reduce 64 B: 1 of 3 done, 33 %, about" in progress.getvalue()
    assert progress.getvalue().endswith("\r\x1b[K")
    assert "\r" not in text


def test_console_of_a_run_that_broke_off() -> None:
    config = BenchConfig(("all_reduce", "barrier"), 2, (8, 64))
    console, text = play(events_of(config)[:4], None)
    assert not console.report.complete
    assert len(console.report.rows) == 1
    assert "In short" not in text
