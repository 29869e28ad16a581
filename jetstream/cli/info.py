"""``jetstream info``: what this machine and this build offer, each probe tried for real."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetstream import __version__
from jetstream.bench.machine import (
    allowed_cores,
    cores_text,
    cpu_model,
    memory_bytes,
    native_facts,
    read_text,
)
from jetstream.bench.sizes import format_size
from jetstream.errors import JetstreamError

__all__ = ["add_parser", "collect", "dissector_path"]

_SCHEMA = "jetstream.info/1"
_NAME_WIDTH = 20
#: Processor flags that decide which kernels can run: x86-64 and aarch64 names.
_FLAGS = (
    *("sse4_2", "avx2", "f16c", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16"),
    *("constant_tsc", "nonstop_tsc", "asimd", "asimdhp", "sve", "bf16", "atomics"),
)
_LIBRARIES = ("numpy", "cffi", "pyzmq", "msgpack", "ml_dtypes")
_MEMBARRIER_CALL = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_PRIVATE_EXPEDITED = 1 << 3
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: a fact, or a probe that works or does not."""

    name: str
    text: str
    works: bool | None = None  # None: a fact, nothing to work


Sections = dict[str, list[Finding]]


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand to the command line of ``jetstream``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "info",
        help="show what this machine and this build offer",
        description="Show what this machine and this build offer: processor, limits, kernel, "
        "links; what works here, and why not.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print a JSON document instead")
    parser.add_argument(
        "--dissector",
        action="store_true",
        help="print the path of the dissector for Wireshark and tshark, and nothing else",
    )
    parser.set_defaults(func=_run)


def collect() -> Sections:
    """Looks at the machine; takes a few milliseconds, leaves nothing behind."""
    native = native_facts()
    return {
        "jetstream": _build(native),
        "processor": _processor(native),
        "memory": _memory(),
        "kernel": _kernel(native),
        "links": [_probe("shm", _shared_memory)],
        "tuning": _tuning(),
        "environment": _environment(),
    }


def dissector_path() -> Path:
    """Returns where the dissector for Wireshark and tshark is: ``docs/wire.md``."""
    return Path(__file__).resolve().parents[1] / "dissector" / "jetstream.lua"


def _run(arguments: argparse.Namespace) -> int:
    if arguments.dissector:
        sys.stdout.write(f"{dissector_path()}\n")
        return 0
    sections = collect()
    sys.stdout.write(_as_json(sections) if arguments.json else _as_text(sections))
    return 0


def _as_json(sections: Sections) -> str:
    document: dict[str, Any] = {"schema": _SCHEMA}
    for section, findings in sections.items():
        document[section] = {
            finding.name.replace(" ", "_"): finding.text
            if finding.works is None
            else {"works": finding.works, "text": finding.text}
            for finding in findings
        }
    return json.dumps(document, indent=1) + "\n"


def _as_text(sections: Sections) -> str:
    lines = []
    for section, findings in sections.items():
        lines.append(section)
        for finding in findings:
            mark = {None: "", True: "yes", False: "no"}[finding.works]
            text = ": ".join(part for part in (mark, finding.text) if part)
            lines.append(f"  {finding.name:<{_NAME_WIDTH}} {text}")
        lines.append("")
    broken = [f.name for findings in sections.values() for f in findings if f.works is False]
    if broken:
        lines.append(f"does not work here: {', '.join(broken)}")
    else:
        lines.append("everything that jetstream uses works here")
    return "\n".join(lines) + "\n"


def _probe(name: str, action: Callable[[], str]) -> Finding:
    """Tries something; what it raises becomes the reason why it does not work."""
    try:
        return Finding(name, action(), works=True)
    except (OSError, ImportError, AttributeError, JetstreamError) as error:
        return Finding(name, _reason(error), works=False)


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"the data plane cannot be loaded: {error}"
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


# --- sections -------------------------------------------------------------------------------


def _build(native: dict[str, str]) -> list[Finding]:
    libraries = ", ".join(f"{name} {_library_version(name)}" for name in _LIBRARIES)
    return [
        Finding("version", __version__),
        Finding("build id", native["build_id"]),
        Finding("python", f"{platform.python_version()} ({sys.executable})"),
        Finding("libraries", libraries),
    ]


def _processor(native: dict[str, str]) -> list[Finding]:
    cores = allowed_cores()
    limit = cgroup_cores(Path("/sys/fs/cgroup"), read_text("/proc/self/cgroup"))
    usable = len(cores) if limit is None else min(len(cores), max(1, int(limit)))
    room = f"{usable} {'rank' if usable == 1 else 'ranks'}; more share cores and take turns"
    quota = "none" if limit is None else f"{limit:g} cores"
    return [
        Finding("model", f"{cpu_model()} ({platform.machine()})"),
        Finding("features", " ".join(cpu_flags(read_text("/proc/cpuinfo"))) or "none known"),
        Finding("in use", native["instruction_set"]),
        Finding("instruction sets", native.get("instruction_sets", "unknown")),
        Finding("cores", str(os.cpu_count())),
        Finding("cores allowed", cores_text(cores)),
        Finding("cgroup quota", quota),
        Finding("a core each for", room),
    ]


def _memory() -> list[Finding]:
    sizes = memory_bytes()
    total, free = (format_size(sizes.get(key, 0)) for key in ("MemTotal", "MemAvailable"))
    limit = cgroup_memory_bytes(Path("/sys/fs/cgroup"), read_text("/proc/self/cgroup"))
    huge = "/sys/kernel/mm/transparent_hugepage"
    return [
        Finding("memory", f"{total}, {free} available"),
        Finding("cgroup limit", "none" if limit is None else format_size(limit)),
        Finding("locked memory", _limit_text(resource.RLIMIT_MEMLOCK, format_size)),
        Finding("open files", _limit_text(resource.RLIMIT_NOFILE, str)),
        Finding("huge pages", _chosen(read_text(f"{huge}/enabled"))),
        Finding("shared huge pages", shared_huge_pages(read_text(f"{huge}/shmem_enabled"))),
        _probe("memfd", _memfd),
    ]


def _kernel(native: dict[str, str]) -> list[Finding]:
    source = read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    tick = f", tick {native['tick_ns']} ns" if "tick_ns" in native else ""
    return [
        Finding("release", f"{platform.system()} {platform.release()}"),
        Finding("clock source", (source or "unknown") + tick),
        _probe("pidfd", _pidfd),
        _probe("membarrier", _membarrier),
        _probe("fd passing", _fd_passing),
        _probe("binding to cores", _binding),
    ]


def _tuning() -> list[Finding]:
    """What algorithms and chunk sizes a job here chooses by, if this process were its rank 0."""
    from jetstream.tuning import find_tuning

    setting = os.environ.get("JETSTREAM_TUNE", "").strip()
    try:
        found = find_tuning(setting)
    except JetstreamError as error:
        return [Finding("measurements", str(error), works=False)]
    if found.problem:
        where = f"{found.path}: " if found.path else ""
        return [Finding("measurements", f"not used: {where}{found.problem}", works=False)]
    if not found.is_used:
        why = "JETSTREAM_TUNE is off" if setting == "off" else "see 'jetstream tune'"
        return [Finding("measurements", f"none, the built-in choice is used ({why})")]
    places = {where for rules in found.rules.values() for where, _ in rules}
    texts = sorted(
        str(where)
        if isinstance(where, int)
        else f"{' + '.join(map(str, where))} on {len(where)} hosts"
        for where in places
    )
    text = f"{found.path}, for jobs of {', '.join(texts)} ranks"
    return [Finding("measurements", text)]


def _environment() -> list[Finding]:
    from jetstream.config import load_config

    names = sorted(name for name in os.environ if name.startswith("JETSTREAM_"))
    findings = [Finding(name, _variable_text(name, os.environ[name])) for name in names]
    findings.append(_probe("settings", lambda: f"valid, launcher: {load_config().launcher}"))
    return findings


# --- probes: return a text, raise why it does not work -----------------------------------------


def _memfd() -> str:
    fd = os.memfd_create("jetstream-info", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, 4096)
    finally:
        os.close(fd)
    return "anonymous shared memory"


def _pidfd() -> str:
    os.close(os.pidfd_open(os.getpid()))
    return "the death of a rank is noticed at once"


def _membarrier() -> str:
    import ctypes

    call = _MEMBARRIER_CALL.get(platform.machine())
    if call is None:
        raise OSError(0, f"not known for {platform.machine()}")
    commands = ctypes.CDLL(None, use_errno=True).syscall(call, 0, 0, 0)
    if commands < 0:
        raise OSError(ctypes.get_errno(), "membarrier")
    if not commands & _MEMBARRIER_PRIVATE_EXPEDITED:
        raise OSError(0, "the kernel has no expedited form")
    return "expedited"


def _fd_passing() -> str:
    read_end, write_end = os.pipe()
    left, right = socket.socketpair(socket.AF_UNIX)
    try:
        socket.send_fds(left, [b"x"], [read_end])
        for fd in socket.recv_fds(right, 1, 1)[1]:
            os.close(fd)
    finally:
        left.close()
        right.close()
        os.close(read_end)
        os.close(write_end)
    return "over Unix sockets"


def _binding() -> str:
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    return "sched_setaffinity"


def _shared_memory() -> str:
    from jetstream._core.segment import Segment

    segment = Segment.create(2)
    try:
        attached = Segment.attach(segment.fd)
        attached.close()
        return f"segment of {format_size(segment.nbytes)} for 2 ranks made and attached"
    finally:
        segment.close()


# --- reading ----------------------------------------------------------------------------------


def cpu_flags(cpuinfo: str) -> list[str]:
    """Returns the flags of _FLAGS that the text of /proc/cpuinfo lists, in the order of _FLAGS."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return [flag for flag in _FLAGS if flag in present]
    return []


def cgroup_cores(root: Path, membership: str) -> float | None:
    """Returns the CPU quota of this process's cgroup in cores; None without one.

    root: where cgroups are mounted; membership: the text of /proc/self/cgroup.
    """
    quotas = []
    for folder in _cgroup_folders(root, membership, "cpu"):
        words = read_text(str(folder / "cpu.max")).split()  # version 2
        if not words:
            words = [read_text(str(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            quotas.append(int(words[0]) / max(1, int(words[1])))
    return min(quotas, default=None)


def cgroup_memory_bytes(root: Path, membership: str) -> int | None:
    """Returns the memory limit of this process's cgroup; None without one."""
    limits = []
    for folder in _cgroup_folders(root, membership, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = read_text(str(folder / name))
            if text.isdigit() and int(text) < _UNLIMITED_BYTES:
                limits.append(int(text))
    return min(limits, default=None)


def _cgroup_folders(root: Path, membership: str, controller: str) -> list[Path]:
    """Lists the folders of this process's cgroup and of all above it."""
    folders = []
    for line in membership.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or (parts[1] and controller not in parts[1].split(",")):
            continue
        top = root / parts[1] if parts[1] else root
        path = Path(parts[2].lstrip("/"))
        folders += [top / path, *(top / parent for parent in path.parents)]
    return folders


def _library_version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _limit_text(limit: int, write: Callable[[int], str]) -> str:
    soft, hard = (
        "unlimited" if value == resource.RLIM_INFINITY else write(value)
        for value in resource.getrlimit(limit)
    )
    return soft if soft == hard else f"{soft}, can be raised to {hard}"


def _chosen(text: str) -> str:
    """Returns the bracketed word of ``always [madvise] never``."""
    _, _, after = text.partition("[")
    return after.partition("]")[0] or "not supported by this kernel"


def shared_huge_pages(text: str) -> str:
    """Says what the setting shmem_enabled, its chosen word in brackets, means for the heaps."""
    chosen = _chosen(text)
    granted = chosen in ("always", "within_size", "advise", "force")
    return f"{chosen}: symmetric memory in pages of {'2 MiB' if granted else '4 KiB'}"


def _variable_text(name: str, value: str) -> str:
    return f"set, {len(value)} characters" if "SECRET" in name else value
