"""The flight recorder: torch's own analyser reads the files and finds the rank that is to blame."""

from __future__ import annotations

import datetime
import gc
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jetstream.communicator import Communicator
from jetstream.errors import ConfigurationError, MismatchError
from jetstream.testing.torch_ranks import TorchRanks
from jetstream.torch import flight
from jetstream.torch.flight import ENDED, GroupLog, Recorder, dump_flight_record

torch = pytest.importorskip("torch", reason="torch is not installed")
dist = pytest.importorskip("torch.distributed")
fr_trace = pytest.importorskip("torch.distributed.flight_recorder.fr_trace")

ON = {"TORCH_FR_BUFFER_SIZE": "2000"}
Pools = Callable[[int], TorchRanks]
LONG = datetime.timedelta(seconds=180)
FLOATS = ((3, 4), torch.float32)


def analyse(folder: Path, *options: str) -> str:
    """What torchfrtrace says about the files of a job."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("Flight Recorder")
    logger.addHandler(handler)
    try:
        fr_trace.main([str(folder), *options])
    finally:
        logger.removeHandler(handler)
        gc.enable()  # it does not collect while it runs
    return "\n".join(said)


class Job:
    """The recorders of some ranks, all in this process."""

    def __init__(self, folder: Path, size: int = 3, **environ: str) -> None:
        prefix = {"TORCH_FR_DUMP_TEMP_FILE": str(folder / "rank_"), **ON}
        self.folder = folder
        self.recorders = [Recorder({**prefix, **environ}) for _ in range(size)]
        self.world = self.group(range(size), "0", "default_pg")

    def group(self, ranks: Any, name: str, desc: str) -> dict[int, GroupLog]:
        logs = {}
        for number, rank in enumerate(ranks):
            logs[rank] = self.recorders[rank].log(number, list(ranks))
            logs[rank].name, logs[rank].desc = name, desc
        return logs

    def analyse(self, *options: str) -> str:
        for recorder in self.recorders:
            recorder.dump()
        return analyse(self.folder, *options)

    def tables(self) -> Any:
        """The analyser's tables of groups, collectives and calls."""
        output = self.folder.parent / "tables"
        self.analyse("-o", str(output))
        return pickle.loads(output.read_bytes())[1]


def collective(log: GroupLog, name: str, inputs: Any, outputs: Any) -> None:
    entry = log.collective(name, inputs, outputs)
    entry[ENDED] = time.time_ns()


def all_reduce(log: GroupLog, described: Any = FLOATS) -> None:
    collective(log, "all_reduce", described, described)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "dumps").mkdir()
    return Job(tmp_path / "dumps")


def every_kind(job: Job) -> int:
    """Puts one of each into the records; returns how many."""
    n, whole = 3, ((9, 4), torch.float32)
    stacked = ((3, 3, 4), torch.float32)
    for rank, log in job.world.items():
        all_reduce(log)
        collective(log, "allreduce_coalesced", [FLOATS, ((5,), torch.int64)],
                   [FLOATS, ((5,), torch.int64)])  # fmt: skip
        collective(log, "broadcast", FLOATS, FLOATS)
        collective(log, "reduce", FLOATS, FLOATS)
        collective(log, "all_gather", FLOATS, stacked)
        collective(log, "all_gather_single", FLOATS, whole)
        collective(log, "all_gather_into_tensor_coalesced", [FLOATS] * 2, [whole] * 2)
        collective(log, "reduce_scatter", stacked, FLOATS)
        collective(log, "reduce_scatter_single", whole, FLOATS)
        collective(log, "reduce_scatter_tensor_coalesced", [whole] * 2, [FLOATS] * 2)
        collective(log, "all_to_all", ((rank + 1,), torch.int32), ((n - rank,), torch.int32))
        collective(log, "gather", FLOATS, [FLOATS] * n if rank == 0 else None)
        collective(log, "scatter", [FLOATS] * n if rank == 0 else None, FLOATS)
        collective(log, "barrier", None, None)
    return 14


def test_all_kinds_of_collectives_match(job: Job) -> None:
    count = every_kind(job)
    tables = job.tables()
    assert len(tables.collectives) == count
    assert all(found.pass_check for found in tables.collectives)
    assert len(tables.ncclcalls) == 3 * count
    assert [(group.desc, group.size) for group in tables.groups] == [("default_pg", 3)]


def test_rank_that_did_not_enter_is_named(job: Job) -> None:
    for log in job.world.values():
        all_reduce(log)
    for rank in (0, 2):
        job.world[rank].collective("all_reduce", FLOATS, FLOATS)  # is inside still
    text = job.analyse()
    assert "Not all ranks joining collective, sequence number: 2" in text
    assert "missing ranks: {1}" in text and "gloo:all_reduce" in text


def test_rank_without_file_is_named(job: Job) -> None:
    for rank in (0, 2):
        job.world[rank].collective("all_reduce", FLOATS, FLOATS)
        job.recorders[rank].dump()
    text = analyse(job.folder, "--allow-incomplete-ranks")
    assert "missed FR dumps from ranks ({1})" in text


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda log: all_reduce(log, ((4, 4), torch.float32)), "SIZE_OR_SYNTAX_MISMATCH"),
        (lambda log: all_reduce(log, ((3, 4), torch.float64)), "COLLECTIVE_DTYPE_MISMATCH"),
        (lambda log: collective(log, "barrier", None, None), "COLLECTIVE_TYPE_MISMATCH"),
    ],
    ids=["shape", "dtype", "operation"],
)
def test_rank_that_differs_is_named(job: Job, other: Callable[[Any], None], words: str) -> None:
    for rank, log in job.world.items():
        (other if rank == 1 else all_reduce)(log)
    text = job.analyse()
    assert "Collective sequence number: 1 has errors" in text
    assert "Culprit rank 1" in text and words in text


def test_messages_are_matched_by_direction(job: Job) -> None:
    """On a group of three no two ranks make the same calls."""
    small, large = ((2,), torch.int8), ((7,), torch.int8)
    for log in job.world.values():
        all_reduce(log)
    zero, one, two = (job.world[rank] for rank in range(3))
    entries = [
        zero.message("send", small, 1, 0),
        zero.message("send", large, 1, 5),
        zero.message("recv", small, 1, 0),
        one.message("recv", large, 0, 5),  # the second one first: another tag
        one.message("recv", small, 0, 0),
        one.message("send", small, 0, 0),
        two.message("send", large, 0, 3),
    ]
    late = zero.message("recv", large, -1, 3)
    zero.found_source(late, 2)
    for entry in [*entries, late]:
        entry[ENDED] = time.time_ns()
    for log in job.world.values():
        all_reduce(log)
    tables = job.tables()
    assert len(tables.collectives) == 2 + 4
    assert all(found.pass_check for found in tables.collectives)
    one.message("recv", small, 2, 9)  # nobody sends it
    text = job.analyse()
    assert "missing ranks: {2}" in text and "recv 0<-1" in text


def test_groups_are_told_apart(job: Job) -> None:
    pair = job.group([2, 0], "1", "tensor")
    for log in [*job.world.values(), *pair.values()]:
        all_reduce(log)
    pair[2].collective("barrier", None, None)
    tables = job.tables()
    assert [found.pass_check for found in tables.collectives].count(True) >= 2
    text = job.analyse()
    assert "group info: 1:tensor" in text and "missing ranks: {0}" in text
    assert "default_pg" not in text


def test_ring_keeps_the_last_ones(tmp_path: Path) -> None:
    recorder = Recorder({"TORCH_FR_BUFFER_SIZE": "5"})
    log = recorder.log(0, [0])
    log.name = "0"
    for _ in range(12):
        all_reduce(log)
    entries = pickle.loads(recorder.dump(tmp_path / "file").read_bytes())["entries"]
    assert [entry["record_id"] for entry in entries] == [7, 8, 9, 10, 11]
    assert [entry["collective_seq_id"] for entry in entries] == [8, 9, 10, 11, 12]


def test_file_is_as_torch_writes_it(tmp_path: Path) -> None:
    recorder = Recorder({"TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "made" / "trace_"), **ON})
    log = recorder.log(1, [4, 7])
    log.name, log.desc = "0", "default_pg"
    all_reduce(log)
    failed = log.collective("broadcast", FLOATS, FLOATS)
    log.fail(failed, MismatchError("no"))
    refused = log.collective("broadcast", FLOATS, FLOATS)
    log.fail(refused, ValueError("no"))  # nothing was sent: nothing is to be seen
    log.fail(log.message("send", FLOATS, 77, 0), ValueError("no"))
    path = recorder.dump()
    assert path == tmp_path / "made" / "trace_7"  # the rank in the job
    assert [found.name for found in path.parent.iterdir()] == ["trace_7"]
    content = pickle.loads(path.read_bytes())
    assert content["version"] == "2.10" and content["comm_lib_version"].startswith("jetstream ")
    assert content["pg_config"] == {"0": {"name": "0", "desc": "default_pg", "ranks": "[4, 7]"}}
    assert content["pg_status"]["0"]["last_completed_collective"] == 1
    assert content["pg_status"]["0"]["last_enqueued_collective"] == 2
    first, second = content["entries"]
    assert first["input_sizes"] == [[3, 4]] and first["input_dtypes"] == ["Float"]
    assert first["state"] == "completed" and first["duration_ms"] >= 0
    assert second["state"] == "started" and second["retired"]
    assert second["error"] == "MismatchError: no"


def test_environment(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert Recorder(environ).slots == 0
    default = tmp_path / ".cache" / "torch" / "comm_lib_trace_rank_0"
    assert Recorder(environ).dump() == default
    older = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/x/y_"}
    assert Recorder(older).slots == 7
    with pytest.raises(ConfigurationError, match="TORCH_FR_BUFFER_SIZE is 'many'"):
        Recorder({"TORCH_FR_BUFFER_SIZE": "many"})
    changing = {"TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "a")}
    recorder = Recorder(changing)
    changing["TORCH_FR_DUMP_TEMP_FILE"] = str(tmp_path / "b")
    assert recorder.dump().name == "a0"
    changing["TORCH_FR_DUMP_DYNAMIC_FILE_NAME"] = "1"
    assert recorder.dump().name == "b0"


def test_only_what_is_active(tmp_path: Path) -> None:
    recorder = Recorder({"TORCH_INCLUDE_ONLY_ACTIVE": "true", **ON})
    log = recorder.log(0, [0])
    all_reduce(log)
    log.collective("barrier", None, None)
    assert [entry["profiling_name"] for entry in recorder.snapshot()["entries"]] == ["gloo:barrier"]


def test_forgotten_groups_leave_nothing(tmp_path: Path) -> None:
    recorder = Recorder({"TORCH_FR_BUFFER_SIZE": "3"})
    for number in range(10):
        log = recorder.log(0, [0])
        log.name = str(number)
        all_reduce(log)
    del log
    assert len(recorder.logs) == 3
    assert set(recorder.snapshot()["pg_config"]) == {"7", "8", "9"}


# --- jobs ----------------------------------------------------------------------------------------


def run_job(comm: Communicator, folder: Path, case: str) -> None:
    """Everything once; then rank 1 goes another way."""
    prefix = folder / "dumps" / "rank_"
    os.environ.update(ON, TORCH_FR_DUMP_TEMP_FILE=str(prefix))
    store = dist.FileStore(str(folder / "store"), comm.size)
    flight._recorder = None  # the process has run other tests
    dist.init_process_group(
        "jetstream", store=store, rank=comm.rank, world_size=comm.size,
        timeout=LONG,
    )  # fmt: skip
    use_everything(comm.rank, comm.size)
    x = torch.ones(5)
    if case == "healthy":
        if comm.rank == 0:
            dist.group.WORLD.dump_flight_record()
        else:
            assert str(dump_flight_record()) == f"{prefix}{comm.rank}"
    elif case == "missing":
        if comm.rank == 1:
            store.wait(["gave up 0", "gave up 2"], LONG)
            dump_flight_record()  # the others have theirs by themselves
        else:
            dist.group.WORLD.set_timeout(datetime.timedelta(seconds=1))
            with pytest.raises(dist.DistBackendError, match=r"Timed out|gave up"):
                dist.all_reduce(x)
            store.set(f"gave up {comm.rank}", "1")
    else:
        with pytest.raises(dist.DistBackendError, match="rank 1"):
            dist.all_reduce(torch.ones(6) if comm.rank == 1 else x)
    dist.destroy_process_group()
    del os.environ["TORCH_FR_BUFFER_SIZE"]
    flight._recorder = None


def use_everything(rank: int, size: int) -> None:
    """Each collective and message once, sync and async."""
    x, whole = torch.full((4,), rank), torch.zeros(4 * size, dtype=torch.int64)
    parts = [torch.zeros(4, dtype=torch.int64) for _ in range(size)]
    works = [
        dist.all_reduce(x, async_op=True),
        dist.all_gather_into_tensor(whole, x, async_op=True),
    ]
    for work in works:
        work.wait()
    dist.all_gather(parts, x)
    dist.reduce_scatter_tensor(x, whole)
    dist.reduce_scatter(x, parts)
    dist.broadcast(x, 1)
    dist.reduce(x, 2)
    dist.gather(x, parts if rank == 0 else None, 0)
    dist.scatter(x, parts if rank == 0 else None, 0)
    dist.all_to_all_single(torch.zeros_like(whole), whole)
    splits = [rank + 1] * size
    received = torch.zeros(sum(range(1, size + 1)), dtype=torch.int64)
    given = torch.zeros(sum(splits), dtype=torch.int64)
    dist.all_to_all_single(received, given, list(range(1, size + 1)), splits)
    dist.all_to_all(parts, [part.clone() for part in parts])
    sent = dist.isend(x, (rank + 1) % size)
    dist.recv(parts[0], (rank - 1) % size)
    sent.wait()
    if rank > 0:
        dist.send(x, 0, tag=3)
    else:
        for _ in range(1, size):
            dist.recv(x, tag=3)
    pair = dist.new_group([0, 2], group_desc="pair")
    if rank != 1:
        dist.all_reduce(x, group=pair)
    box: list[Any] = [None] * size
    dist.all_gather_object(box, rank)
    dist.barrier()


@pytest.mark.parametrize("case", ["healthy", "missing", "mismatch"])
def test_analyser_reads_a_job(torch_pools: Pools, tmp_path: Path, case: str) -> None:
    torch_pools(3).pool.run(run_job, tmp_path, case)
    tables = tmp_path / "tables"
    done = subprocess.run(
        [Path(sys.executable).with_name("torchfrtrace"), tmp_path / "dumps", "-o", tables],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = pickle.loads(tables.read_bytes())[1]
    failed = [one for one in found.collectives if not one.pass_check]
    said = done.stdout + done.stderr
    if case == "healthy":
        assert not failed and "rror" not in said and "Not all ranks" not in said, said
        names = {one.collective_name.partition(":")[2].split()[0] for one in found.collectives}
        assert {"all_reduce", "all_to_all", "gather", "send", "barrier"} <= names | {"recv"}
    elif case == "missing":
        assert "Not all ranks joining collective" in said and "missing ranks: {1}" in said
        assert "run_job at" in said  # where those that wait are
    else:
        assert "SIZE_OR_SYNTAX_MISMATCH" in said and "Culprit rank 1" in said


def run_off(comm: Communicator, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), comm.size)
    dist.init_process_group("jetstream", store=store, rank=comm.rank, world_size=comm.size)
    assert dist.group.WORLD.flight is None
    dist.all_reduce(torch.ones(5))
    with pytest.raises(RuntimeError, match="TORCH_FR_BUFFER_SIZE is 0"):
        dump_flight_record(folder / "file")
    dist.destroy_process_group()


def test_nothing_is_recorded(torch_pools: Pools, tmp_path: Path) -> None:
    torch_pools(3).pool.run(run_off, tmp_path)
