"""Tests of torch that a backend under test does not pass, each with its reason.

They are run all the same: one that passes is an error, so that the list cannot grow stale.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exclude:
    """Why a test does not pass, and where."""

    reason: str
    backends: tuple[str, ...]
    world_sizes: tuple[int, ...] = (2, 3, 4, 8)


EXCLUDES: dict[str, Exclude] = {
    "test_ddp_logging_data_cpu": Exclude(
        "compares the name of the backend in DDP's log with dist.get_backend(): DDP's C++ logger "
        "takes a group of the name gloo for an object of gloo's C++ class and reads its number of "
        "threads there, so a stand-in has to say jetstream",
        ("jetstream-as-gloo",),
    ),
}


def exclude_of(name: str, backend: str, world_size: int) -> Exclude | None:
    """Returns what is known of the test on this backend and world size, None: it has to pass."""
    known = EXCLUDES.get(name)
    if known and backend in known.backends and world_size in known.world_sizes:
        return known
    return None
