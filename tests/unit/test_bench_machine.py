"""Reading the machine: processor flags, core lists and cgroup limits, from texts of the kernel."""

from __future__ import annotations

from pathlib import Path

from jetstream.bench.machine import cores_text, facts, memory_bytes
from jetstream.cli.info import (
    cgroup_cores,
    cgroup_memory_bytes,
    collect,
    cpu_flags,
    shared_huge_pages,
)


def test_cores_text() -> None:
    assert cores_text((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    assert cores_text((3,)) == "3"
    assert cores_text(()) == ""


def test_facts_are_plain_values() -> None:
    found = facts()
    assert all(isinstance(value, str | int) for value in found.values())
    assert found["cpu"]
    assert memory_bytes()["MemTotal"] == found["memory_bytes"] > 0


def test_every_probe_gives_a_reason_or_works() -> None:
    findings = [finding for findings in collect().values() for finding in findings]
    assert all(finding.text for finding in findings)
    assert len({finding.name for finding in findings}) == len(findings)


def test_cpu_flags_of_both_architectures() -> None:
    assert cpu_flags("processor : 0\nflags : fpu avx2 fma\n") == ["avx2", "fma"]
    assert cpu_flags("Features : fp asimd atomics\n") == ["asimd", "atomics"]
    assert cpu_flags("") == []


def test_cgroup_version_2(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "memory.max").write_text("1048576\n")
    (folder / "memory.max").write_text("max\n")
    assert cgroup_cores(tmp_path, "0::/a/b") == 1.5
    assert cgroup_memory_bytes(tmp_path, "0::/a/b") == 1 << 20


def test_cgroup_version_1(tmp_path: Path) -> None:
    folder = tmp_path / "cpu,cpuacct" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("50000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    membership = "5:memory:/job\n4:cpu,cpuacct:/job\n"
    assert cgroup_cores(tmp_path, membership) == 0.5
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_cores(tmp_path, membership) is None
    assert cgroup_memory_bytes(tmp_path, membership) is None


def test_no_cgroup(tmp_path: Path) -> None:
    assert cgroup_cores(tmp_path, "") is None
    assert cgroup_memory_bytes(tmp_path, "0::/") is None


def test_shared_huge_pages() -> None:
    choices = "always within_size advise never deny force"
    for word in ("always", "within_size", "advise", "force"):
        assert shared_huge_pages(choices.replace(word, f"[{word}]")).startswith(f"{word}: ")
        assert shared_huge_pages(choices.replace(word, f"[{word}]")).endswith("of 2 MiB")
    assert shared_huge_pages(choices.replace("never", "[never]")).endswith("of 4 KiB")
    assert shared_huge_pages("").startswith("not supported by this kernel: ")
