"""The request of a bench run: what is refused, which rows come of it, and its way to the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jetstream.bench.config import BenchConfig, check_output_path, parse_dtypes, parse_ops
from jetstream.bench.kinds import Case
from jetstream.dtypes import DType
from jetstream.errors import ConfigurationError


def config_of(**changes: Any) -> BenchConfig:
    return BenchConfig(**{"kinds": ("all_reduce",), "ranks": 2, "sizes_bytes": (8, 64), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kinds": ("all_redcue",)}, "'all_redcue' is not one of all_reduce"),
        ({"dtypes": ("complex32",)}, "-d: 'complex32' is not one of float64"),
        ({"dtypes": ("bool", "float32"), "ops": ("premul_sum",)}, "-o: 'premul_sum' is not one of"),
        ({"dtypes": ("float16", "float32"), "ops": ("band",)}, "-o: no type of -d has any of band"),
        ({"ops": ("xor",)}, "-o: 'xor'"),
        ({"ranks": 0}, "-n must be from 1"),
        ({"ranks": 257}, "-n"),
        ({"root": 2}, "--root must be from 0 to 1"),
        ({"root": -1}, "--root"),
        ({"warmup": -1}, "--warmup"),
        ({"iterations": -5}, "--iters"),
        ({"iterations": 0}, "--iters"),
        ({"timeout_s": 0.0}, "--timeout"),
        ({"timeout_s": float("nan")}, "--timeout"),
        ({"launch": "fortran"}, "--launch"),
        ({"bind": "socket"}, "--bind"),
        ({"algorithm": "ring"}, "ring"),
        ({"sizes_bytes": ()}, "no sizes"),
        ({"kinds": ("sendrecv",), "ranks": 1}, "at least 2 ranks"),
        ({"kinds": ("all_gather",), "launch": "c"}, "--launch c"),
    ],
)
def test_requests_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        config_of(**changes)


def test_the_way_to_the_ranks_and_back() -> None:
    config = config_of(algorithm="all_reduce:two_shot", iterations=7, dtypes=("int32", "uint8"))
    assert BenchConfig.from_json(config.to_json()) == config


def test_names_of_types_and_reductions() -> None:
    assert parse_dtypes(["float", "half", "bfloat16", "float32"]) == (
        "float32",
        "float16",
        "bfloat16",
    )
    assert parse_dtypes(["all"]) == tuple(dtype.label for dtype in DType)
    names = ("sum", "prod", "min", "max", "avg", "band", "bor", "bxor")
    assert parse_ops(["all", "sum"]) == names


def test_undefined_reductions_are_left_out() -> None:
    config = config_of(dtypes=("bool", "int8", "complex64"), ops=("avg", "max"), sizes_bytes=(64,))
    cases = [(case.dtype, case.redop) for case in config.cases()]
    assert cases == [("bool", "max"), ("int8", "avg"), ("int8", "max"), ("complex64", "avg")]


def test_sizes_follow_nccl_tests() -> None:
    gathered = Case("all_gather", 4, 1024, "float32")
    assert (gathered.count, gathered.size_bytes) == (64, 1024)
    scattered = Case("reduce_scatter", 3, 1024, "float64", "sum")
    assert (scattered.count, scattered.size_bytes) == (42, 1008)
    assert Case("all_reduce", 3, 10, "float32").size_bytes == 8
    assert Case("all_gather", 8, 8, "float64").size_bytes == 64  # one element each at least


@pytest.mark.parametrize(
    ("kind", "world", "factor"),
    [
        ("all_reduce", 2, 1.0),
        ("all_reduce", 4, 1.5),
        ("all_gather", 4, 0.75),
        ("reduce_scatter", 2, 0.5),
        ("broadcast", 8, 1.0),
        ("all_to_all", 4, 0.75),
        ("gather", 4, 0.75),
        ("scatter", 2, 0.5),
        ("reduce", 8, 1.0),
        ("scan", 8, 1.0),
        ("sendrecv", 8, 1.0),
        ("all_reduce", 1, 0.0),
    ],
)
def test_bus_bandwidth_factors_of_nccl_tests(kind: str, world: int, factor: float) -> None:
    assert Case(kind, world, 1024, "float32").busbw_factor == factor


def test_rows_appear_once() -> None:
    config = config_of(
        kinds=("all_reduce", "all_gather", "barrier"),
        sizes_bytes=(1, 2, 4, 8),
        dtypes=("float32", "int32"),
        ops=("sum", "max"),
    )
    cases = config.cases()
    assert len(cases) == len(set(cases))
    by_kind = {kind: sum(case.kind == kind for case in cases) for kind in config.kinds}
    assert by_kind == {"all_reduce": 2 * 2 * 2, "all_gather": 2, "barrier": 1}
    for kind in ("broadcast", "reduce", "gather", "scatter"):
        assert [case.root for case in config_of(kinds=(kind,), root=1).cases()] == [1, 1]


def test_prefixes_have_no_average() -> None:
    config = config_of(kinds=("scan", "all_reduce"), ops=("sum", "avg"), sizes_bytes=(64,))
    rows = [(case.kind, case.redop) for case in config.cases()]
    assert rows == [("scan", "sum"), ("all_reduce", "sum"), ("all_reduce", "avg")]
    with pytest.raises(ConfigurationError, match="-o: no type of -d has any of avg for exscan"):
        config_of(kinds=("all_reduce", "exscan"), ops=("avg",))


def test_sizes_that_cannot_fit_are_refused() -> None:
    config = config_of(sizes_bytes=(8, 1 << 30))
    config.check_memory(8 << 30)
    with pytest.raises(ConfigurationError, match=r"6 GiB.*choose a smaller -e"):
        config.check_memory(5 << 30)


def test_output_paths_are_tried_before_the_run(tmp_path: Path) -> None:
    check_output_path("--json", tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
    (tmp_path / "old.json").write_text("kept")
    check_output_path("--json", tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "kept"
    with pytest.raises(ConfigurationError, match=r"--json .*No such file"):
        check_output_path("--json", tmp_path / "missing" / "new.json")
    with pytest.raises(ConfigurationError, match=r"--html .*directory"):
        check_output_path("--html", tmp_path)
