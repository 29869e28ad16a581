"""Configuration from the environment: every launcher, every variable, every way to get it wrong."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jetstream.config import (
    KINDS,
    RANKS_MAX,
    Config,
    configure_logging,
    load_config,
)
from jetstream.errors import ConfigurationError
from jetstream.places import check_rendezvous, split_tcp

JOB = {
    "JETSTREAM_RANK": "1",
    "JETSTREAM_WORLD_SIZE": "4",
    "JETSTREAM_RENDEZVOUS": "ipc://@job",
}
TORCH = {
    "RANK": "2",
    "WORLD_SIZE": "3",
    "LOCAL_RANK": "2",
    "LOCAL_WORLD_SIZE": "3",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-77@1",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "3",
    "SLURM_JOB_ID": "88",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "1",
}


def test_no_variables_mean_a_world_of_one() -> None:
    assert load_config({}) == Config()
    assert load_config({"PATH": "/bin", "RANK": "7"}) == Config()


def test_own_variables() -> None:
    config = load_config(JOB | {"JETSTREAM_JOB_SECRET": "ab" * 16})
    assert (config.rank, config.world_size, config.local_rank) == (1, 4, 1)
    assert config.rendezvous == "ipc://@job"
    assert config.job_secret == b"\xab" * 16
    assert config.launcher == "jetstream"
    assert "ab" * 4 not in repr(config)


@pytest.mark.parametrize(
    ("environ", "launcher", "place"),
    [
        (TORCH, "torchrun", (2, 3, 2)),
        (OPEN_MPI, "openmpi", (1, 2, 1)),
        (MPICH, "mpich", (1, 2, 1)),
        (SLURM, "slurm", (3, 4, 3)),
    ],
)
def test_foreign_launchers(
    environ: dict[str, str], launcher: str, place: tuple[int, int, int]
) -> None:
    config = load_config(environ)
    assert (config.rank, config.world_size, config.local_rank) == place
    assert config.launcher == launcher
    assert check_rendezvous(config.rendezvous) == config.rendezvous
    assert config.rendezvous.startswith(f"ipc://@jetstream-{os.geteuid()}-{launcher}-")
    assert load_config(dict(environ)).rendezvous == config.rendezvous


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        (TORCH, "TORCHELASTIC_RUN_ID"),
        (TORCH, "TORCHELASTIC_RESTART_COUNT"),
        (TORCH, "MASTER_PORT"),
        (OPEN_MPI, "PMIX_NAMESPACE"),
        (SLURM, "SLURM_JOB_ID"),
        (SLURM, "SLURM_STEP_ID"),
    ],
)
def test_other_jobs_meet_elsewhere(environ: dict[str, str], name: str) -> None:
    assert load_config(environ).rendezvous != load_config(environ | {name: "55"}).rendezvous


def test_mpich_jobs_differ_by_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    here = load_config(MPICH).rendezvous
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert load_config(MPICH).rendezvous != here


@pytest.mark.parametrize("name", ["I_MPI_HYDRA_UUID", "PMI_JOBID"])
def test_pmi_job_ids(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = load_config(MPICH | {name: "5"}).rendezvous
    assert load_config(MPICH | {name: "6"}).rendezvous != here
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert load_config(MPICH | {name: "5"}).rendezvous == here


def test_open_mpi_job_id_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: OPEN_MPI[name] for name in OPEN_MPI if name != "PMIX_NAMESPACE"}
    by_job = load_config(old | {"OMPI_MCA_ess_base_jobid": "4242"}).rendezvous
    by_parent = load_config(old).rendezvous
    assert by_job != by_parent
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert load_config(old).rendezvous != by_parent
    assert load_config(old | {"OMPI_MCA_ess_base_jobid": "4242"}).rendezvous == by_job


SECRET = {"JETSTREAM_JOB_SECRET": "ab" * 16}
#: What turns the jobs above into jobs over several hosts.
SPREAD = {
    "torchrun": TORCH | {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "node1"},
    "openmpi": OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    "mpich": MPICH | {"MPI_LOCALNRANKS": "1", "MPI_LOCALRANKID": "0"},
    "slurm": SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[03-04,9],x1"},
}


@pytest.mark.parametrize(("launcher", "host"), [("torchrun", "node1"), ("slurm", "n03")])
def test_jobs_on_several_hosts_meet_at_rank_0(launcher: str, host: str) -> None:
    environ = SPREAD[launcher] | SECRET
    meeting = load_config(environ).rendezvous
    assert re.fullmatch(rf"tcp://{host}:[23][0-9]{{4}}", meeting)
    assert load_config(environ).rendezvous == meeting
    job = "TORCHELASTIC_RUN_ID" if launcher == "torchrun" else "SLURM_JOB_ID"
    assert load_config(environ | {job: "other"}).rendezvous != meeting
    v6 = load_config(environ | {"MASTER_ADDR": "fd00::7"}).rendezvous
    assert v6.startswith("tcp://[fd00::7]:")


def test_mpi_jobs_on_several_hosts_need_to_be_told_where() -> None:
    for launcher in ("openmpi", "mpich"):
        environ = SPREAD[launcher] | SECRET
        with pytest.raises(ConfigurationError, match=r"2 ranks on several hosts.*tcp://HOST:PORT"):
            load_config(environ)
        told = load_config(environ | {"JETSTREAM_RENDEZVOUS": "tcp://node1:7000"})
        assert told.rendezvous == "tcp://node1:7000"
    # Where rank 0 is does not help if the hosts have no name for the job in common.
    with pytest.raises(ConfigurationError, match="several hosts"):
        load_config(SPREAD["mpich"] | SECRET | {"MASTER_ADDR": "node1"})
    named = load_config(SPREAD["openmpi"] | SECRET | {"MASTER_ADDR": "node1"})
    assert named.rendezvous.startswith("tcp://node1:")


@pytest.mark.parametrize("launcher", SPREAD)
@pytest.mark.parametrize("address", ["ipc://@job", "tcp://127.0.0.1:7000", "tcp://[::1]:7000"])
def test_jobs_on_several_hosts_cannot_meet_inside_one(launcher: str, address: str) -> None:
    with pytest.raises(ConfigurationError, match="ranks on several hosts"):
        load_config(SPREAD[launcher] | SECRET | {"JETSTREAM_RENDEZVOUS": address})


def test_torchrun_that_calls_rank_0_localhost() -> None:
    environ = SPREAD["torchrun"] | SECRET | {"MASTER_ADDR": "localhost"}
    with pytest.raises(ConfigurationError, match=r"^MASTER_ADDR is .*several hosts"):
        load_config(environ)


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_no_secret_beyond_this_host(launcher: str) -> None:
    with pytest.raises(ConfigurationError, match=r"JETSTREAM_JOB_SECRET is not set.*tcp://n"):
        load_config(SPREAD[launcher])
    with pytest.raises(ConfigurationError, match="JETSTREAM_JOB_SECRET is not set"):
        load_config(JOB | {"JETSTREAM_RENDEZVOUS": "tcp://10.0.0.1:7000"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("a,b", "a"),
        ("n[3-5]-ib,x", "n3-ib"),
        ("r[1-2]n[007,9]", "r1n007"),
        ("x[2,4]", "x2"),
    ],
)
def test_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    config = load_config(SPREAD["slurm"] | SECRET | {"SLURM_STEP_NODELIST": nodes})
    assert split_tcp(config.rendezvous)[0] == first


def test_own_variables_win_over_a_foreign_launcher() -> None:
    config = load_config(OPEN_MPI | TORCH | JOB)
    assert (config.launcher, config.rank, config.world_size) == ("jetstream", 1, 4)


def test_explicit_rendezvous_with_a_foreign_launcher() -> None:
    config = load_config(OPEN_MPI | {"JETSTREAM_RENDEZVOUS": "tcp://localhost:7777"})
    assert config.rendezvous == "tcp://127.0.0.1:7777"


def test_slurm_batch_script_is_not_a_task() -> None:
    batch = {name: SLURM[name] for name in SLURM if name != "SLURM_STEP_ID"}
    assert load_config(batch) == Config()


def test_slurm_step_may_be_smaller_than_its_job() -> None:
    step = SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert load_config(step).world_size == 1


@pytest.mark.parametrize(
    ("environ", "name", "other"),
    [
        (JOB, "JETSTREAM_RANK", "JETSTREAM_WORLD_SIZE"),
        (JOB, "JETSTREAM_WORLD_SIZE", "JETSTREAM_RANK"),
        (TORCH, "RANK", "WORLD_SIZE"),
        (TORCH, "WORLD_SIZE", "RANK"),
        (OPEN_MPI, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        (MPICH, "PMI_SIZE", "PMI_RANK"),
        (SLURM, "SLURM_NTASKS", "SLURM_PROCID"),
    ],
)
def test_half_set_environment(environ: dict[str, str], name: str, other: str) -> None:
    half = {key: value for key, value in environ.items() if key != name}
    with pytest.raises(ConfigurationError, match=f"{other} is .* but {name} is not set"):
        load_config(half)
    with pytest.raises(ConfigurationError, match=f"{other} is .* but {name} is not set"):
        load_config(environ | {name: " "})


@pytest.mark.parametrize("name", ["JETSTREAM_RENDEZVOUS", "JETSTREAM_LOCAL_RANK"])
def test_orphaned_variables(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        load_config({name: "0"})


def test_missing_rendezvous() -> None:
    with pytest.raises(ConfigurationError, match=r"JETSTREAM_RENDEZVOUS is not set.*4 ranks"):
        load_config({"JETSTREAM_RANK": "0", "JETSTREAM_WORLD_SIZE": "4"})
    assert load_config({"JETSTREAM_RANK": "0", "JETSTREAM_WORLD_SIZE": "1"}).rendezvous == ""


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("JETSTREAM_RANK", "x", "0 to 255"),
        ("JETSTREAM_RANK", "-1", "0 to 255"),
        ("JETSTREAM_RANK", "1.0", "0 to 255"),
        ("JETSTREAM_RANK", "٣", "0 to 255"),  # a digit, but not one of ours
        ("JETSTREAM_RANK", "4", "0 to 3"),
        ("JETSTREAM_WORLD_SIZE", "0", "1 to 256"),
        ("JETSTREAM_WORLD_SIZE", str(RANKS_MAX + 1), "1 to 256"),
        ("JETSTREAM_WORLD_SIZE", "9" * 5000, "1 to 256"),
        ("JETSTREAM_LOCAL_RANK", "4", "0 to 3"),
        ("JETSTREAM_RENDEZVOUS", "tcp://0.0.0.0:5000", "nobody can be called there"),
        ("JETSTREAM_RENDEZVOUS", "tcp://[::]:5000", "nobody can be called there"),
        ("JETSTREAM_RENDEZVOUS", "tcp://224.0.0.1:5000", "nobody can be called there"),
        ("JETSTREAM_RENDEZVOUS", "tcp://10.0.0.256:5000", "nobody can be called there"),
        ("JETSTREAM_RENDEZVOUS", "tcp://*:5000", "tcp://HOST:PORT"),
        ("JETSTREAM_RENDEZVOUS", "tcp://eth0;x:5000", "tcp://HOST:PORT"),
        ("JETSTREAM_RENDEZVOUS", "tcp://::1:5000", "tcp://HOST:PORT"),
        ("JETSTREAM_RENDEZVOUS", "tcp://127.0.0.1:0", "tcp://HOST:PORT"),
        ("JETSTREAM_RENDEZVOUS", "tcp://127.0.0.1:65536", "tcp://HOST:PORT"),
        ("JETSTREAM_RENDEZVOUS", "tcp://127.0.0.1", "tcp://HOST:PORT"),
        ("JETSTREAM_RENDEZVOUS", "ipc:///tmp/socket", "outlive"),
        ("JETSTREAM_RENDEZVOUS", "ipc://@", "ipc://@NAME"),
        ("JETSTREAM_RENDEZVOUS", "ipc://@" + "n" * 101, "ipc://@NAME"),
        ("JETSTREAM_RENDEZVOUS", "inproc://x", "ipc://@NAME"),
        ("JETSTREAM_TIMEOUT", "soon", "seconds"),
        ("JETSTREAM_TIMEOUT", "0", "above 0"),
        ("JETSTREAM_TIMEOUT", "nan", "above 0"),
        ("JETSTREAM_TIMEOUT", "inf", "at most 1000000"),
        ("JETSTREAM_INIT_TIMEOUT", "-3", "above 0"),
        ("JETSTREAM_ALGO", "ring", "one_shot, two_shot, lend, direct"),
        ("JETSTREAM_ALGO", "allreduce:", "one_shot"),
        ("JETSTREAM_ALGO", ":one_shot", "one_shot"),
        ("JETSTREAM_ALGO", "<=4K:one_shot", "all_reduce<=4K"),
        ("JETSTREAM_ALGO", "allreduce<=:one_shot", "all_reduce<=4K"),
        ("JETSTREAM_ALGO", "allreduce<=4X:one_shot", "all_reduce<=4K"),
        ("JETSTREAM_ALGO", "allreduce<=4K:lend;all_reduce<=4096:lend", "all_reduce<=4K"),
        ("JETSTREAM_ALGO", "direct;" * 100, "at most 500 characters"),
        ("JETSTREAM_ALGO", "gathers:one_shot", "all_gather"),
        ("JETSTREAM_ALGO", "broadcast:direct;broadcast:one_shot", "one_shot"),
        ("JETSTREAM_BUFFSIZE", "12", "256K to 1G"),
        ("JETSTREAM_BUFFSIZE", "384K", "power of two"),
        ("JETSTREAM_BUFFSIZE", "2G", "256K to 1G"),
        ("JETSTREAM_BUFFSIZE", "1T", "power of two"),
        ("JETSTREAM_HEAP_BYTES", "0", "multiple of 2M"),
        ("JETSTREAM_HEAP_BYTES", "3M", "multiple of 2M"),
        ("JETSTREAM_HEAP_BYTES", "1026G", "to 1024G"),
        ("JETSTREAM_HEAP_BYTES", "-2M", "multiple of 2M"),
        ("JETSTREAM_SPIN_US", "1.5", "0 to 1000000"),
        ("JETSTREAM_ISA", "sse9", "scalar, avx2, avx512"),
        ("JETSTREAM_CORES", "here", "near, far"),
        ("JETSTREAM_DEBUG", "verbose", "WARN, INFO, TRACE"),
        ("JETSTREAM_HOST", "a b", "letters, digits"),
        ("JETSTREAM_HOST", "h" * 64, "at most 63"),
        ("JETSTREAM_LINK", "shm", "auto, udp, packet, xdp"),
        ("JETSTREAM_INTERFACE", "eth/0", "letters, digits"),
        ("JETSTREAM_INTERFACE", "i" * 16, "at most 15"),
        ("JETSTREAM_INTERFACE", "eth0,", "up to 4"),
        ("JETSTREAM_INTERFACE", "a,b,c,d,e", "up to 4"),
        ("JETSTREAM_LINK_ADDRESS", "10.0.0.1,10.0.0", "an IP address"),
        ("JETSTREAM_LINK_ADDRESS", "10.0.0", "an IP address"),
        ("JETSTREAM_LINK_ADDRESS", "0.0.0.0", "an IP address"),
        ("JETSTREAM_LINK_ADDRESS", "ff02::1", "an IP address"),
        ("JETSTREAM_LINK_MTU", "100", "512 to 65535"),
        ("JETSTREAM_LINK_MTU", "9k", "512 to 65535"),
        ("JETSTREAM_LINK_FAULT", "drop\x07", "printable"),
        ("JETSTREAM_LINK_FAULT", "x" * 501, "at most 500"),
        ("JETSTREAM_LINK_TRACE", "/tmp/trace.pcapng", "{rank}"),
        ("JETSTREAM_LINK_TIMEOUT", "0", "above 0"),
    ],
)
def test_bad_values_name_variable_value_and_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(JOB | {name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}; allowed: ")
    assert allowed in str(caught.value)


def test_as_many_addresses_as_interfaces() -> None:
    both = {"JETSTREAM_INTERFACE": "eth1,eth2", "JETSTREAM_LINK_ADDRESS": "10.0.0.7,10.1.0.7"}
    assert load_config(JOB | both).interface == "eth1,eth2"
    with pytest.raises(ConfigurationError, match=r"JETSTREAM_INTERFACE.*JETSTREAM_LINK_ADDRESS"):
        load_config(JOB | both | {"JETSTREAM_INTERFACE": "eth1"})


@pytest.mark.parametrize("value", ["abc", "zz" * 16, "ab" * 15, "ab" * 65, "ab " * 16])
def test_bad_secret_is_not_shown(value: str) -> None:
    with pytest.raises(ConfigurationError, match="JETSTREAM_JOB_SECRET") as caught:
        load_config(JOB | {"JETSTREAM_JOB_SECRET": value})
    assert value not in str(caught.value)


def test_tuning() -> None:
    config = load_config(
        {
            "JETSTREAM_TIMEOUT": "2.5",
            "JETSTREAM_INIT_TIMEOUT": "7",
            "JETSTREAM_BUFFSIZE": "2m",
            "JETSTREAM_HEAP_BYTES": "6M",
            "JETSTREAM_SPIN_US": "40",
            "JETSTREAM_ISA": "avx2",
            "JETSTREAM_CORES": "far",
            "JETSTREAM_DEBUG": "INFO",
        }
    )
    assert (config.timeout_s, config.init_timeout_s) == (2.5, 7.0)
    assert config.buffer_bytes == 2 << 20
    assert config.heap_bytes == 6 << 20
    assert (config.spin_us, config.isa, config.debug) == (40, "avx2", "INFO")
    assert config.cores == "far"


def test_link_settings() -> None:
    assert load_config(JOB).link == "auto"
    config = load_config(
        JOB
        | {
            "JETSTREAM_HOST": "left",
            "JETSTREAM_LINK": "packet",
            "JETSTREAM_INTERFACE": "enp1s0f0np0.7",
            "JETSTREAM_LINK_ADDRESS": "fe80::1",
            "JETSTREAM_LINK_MTU": "9000",
            "JETSTREAM_LINK_FAULT": "drop=0.01,seed=3",
            "JETSTREAM_LINK_TRACE": "/tmp/{rank}.pcapng",
            "JETSTREAM_LINK_TIMEOUT": "2.5",
        }
    )
    assert (config.host, config.link, config.interface) == ("left", "packet", "enp1s0f0np0.7")
    assert (config.link_address, config.link_mtu) == ("fe80::1", 9000)
    assert (config.link_fault, config.link_timeout_s) == ("drop=0.01,seed=3", 2.5)
    assert config.link_trace == "/tmp/{rank}.pcapng"
    assert load_config({"JETSTREAM_LINK_TRACE": "/tmp/x"}).link_trace == "/tmp/x"


def test_empty_variables_count_as_not_set() -> None:
    names = (
        *("TIMEOUT", "ALGO", "BUFFSIZE", "HEAP_BYTES", "SPIN_US", "ISA", "CORES", "DEBUG"),
        *("JOB_SECRET", "LOCAL_RANK", "HOST", "LINK", "INTERFACE", "LINK_ADDRESS", "LINK_MTU"),
        *("LINK_FAULT", "LINK_TRACE", "LINK_TIMEOUT"),
    )
    plain = load_config(JOB)
    assert load_config(JOB | {f"JETSTREAM_{name}": "" for name in names}) == plain


def test_algorithms() -> None:
    for_all = load_config({"JETSTREAM_ALGO": "Two_Shot"})
    assert [for_all.algorithm_for(kind) for kind in KINDS] == ["two_shot"] * len(KINDS)
    some = load_config({"JETSTREAM_ALGO": "allreduce:one_shot; all_gather : direct;"})
    assert some.algorithm_for("all_reduce") == "one_shot"
    assert some.algorithm_for("all_gather") == "direct"
    assert some.algorithm_for("barrier") is None
    assert load_config({}).algorithm_for("all_reduce") is None


def test_algorithms_by_size() -> None:
    text = "allreduce<=4K:one_shot; All_Reduce <= 64k : two_shot;all_reduce:lend;reduce<=8:direct"
    config = load_config({"JETSTREAM_ALGO": text})
    assert config.algorithms == (
        ("all_reduce", "lend"),
        ("all_reduce<=4096", "one_shot"),
        ("all_reduce<=65536", "two_shot"),
        ("reduce<=8", "direct"),
    )
    sizes = (0, 4096, 4097, 65536, 65537, 1 << 40)
    chosen = [config.algorithm_for("all_reduce", size) for size in sizes]
    assert chosen == ["one_shot", "one_shot", "two_shot", "two_shot", "lend", "lend"]
    assert config.algorithm_for("reduce", 8) == "direct"
    assert config.algorithm_for("reduce", 9) is None
    general = load_config({"JETSTREAM_ALGO": "reduce<=8:direct;two_shot"})
    assert general.algorithm_for("reduce", 9) == "two_shot"


@pytest.fixture
def jetstream_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("jetstream")
    before = (logger.level, list(logger.handlers))
    yield logger
    logger.setLevel(before[0])
    logger.handlers = before[1]


def test_logging_goes_to_stderr_once(
    jetstream_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    config = load_config(JOB | {"JETSTREAM_DEBUG": "INFO"})
    configure_logging(config)
    configure_logging(config)
    logging.getLogger("jetstream.control").info("hello %d", 3)
    logging.getLogger("jetstream.control").debug("not this")
    assert stderr.getvalue() == "jetstream[rank 1] INFO hello 3\n"


def test_logging_is_left_alone_without_the_variable(jetstream_logger: logging.Logger) -> None:
    before = list(jetstream_logger.handlers)
    configure_logging(load_config(JOB))
    assert jetstream_logger.handlers == before


def test_every_variable_is_documented() -> None:
    root = Path(__file__).parents[2]
    names = set(re.findall(r"JETSTREAM_[A-Z_]+", (root / "jetstream" / "config.py").read_text()))
    documented = (root / "docs" / "environment.md").read_text()
    assert len(names) > 10
    assert [name for name in sorted(names) if f"`{name}`" not in documented] == []
