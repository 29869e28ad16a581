"""Which algorithm and which chunk size a call gets: one table each, the same on all ranks."""

from __future__ import annotations

from jetstream.collectives.algorithms import ALGORITHMS
from jetstream.collectives.calls import CHUNK_BYTES_MAX
from jetstream.dtypes import Algorithm, Kind
from jetstream.errors import ArgumentError

__all__ = ["CHUNK_BYTES", "ONE_SHOT_BYTES_MAX", "REDUCE_DIRECT", "algorithms_of", "choose"]

#: all_reduce is one-shot up to so many bytes of array: (world up to, bytes up to).
#: One-shot is one message deep, but every rank reads the arrays of all; lending is two deep, and
#: every rank reads about two arrays whatever the world.
ONE_SHOT_BYTES_MAX = (
    (2, 4 * 1024),
    (4, 12 * 1024),
    (256, 8 * 1024),
)

#: reduce is direct in worlds up to so many ranks, and in larger ones up to so many bytes: one
#: message deep, but the root reads the arrays of all. Two-shot folds on all ranks, two deep.
REDUCE_DIRECT = (4, 64 * 1024)

#: Chunk size by the bytes of the longest operation: (bytes up to, chunk bytes). A small message
#: is one chunk: one frame costs less than an early start gains. Longer ones overlap the copy of
#: one chunk with the peers' folding of the one before. What is lent goes in the largest chunks: it
#: is hardly copied, so there is little to overlap.
CHUNK_BYTES = (
    (8 * 1024, 8 * 1024),
    (32 * 1024, 16 * 1024),
    (None, 32 * 1024),
)


def choose(
    kind: Kind, nbytes: int, world: int, *, forced: Algorithm | None = None
) -> tuple[Algorithm, int]:
    """Choose the algorithm and the chunk size, in bytes, of a call.

    ``nbytes`` is what the longest operation works on, in bytes, but for two-shot, where it is the
    array: ``count`` of the call, or the largest of its ``counts``. ``forced`` overrides the
    choice of algorithm; raises ArgumentError if the kind does not have it.
    """
    if forced is not None and forced not in algorithms_of(kind):
        known = ", ".join(algorithm.label for algorithm in algorithms_of(kind))
        raise ArgumentError(f"{kind.label} has no algorithm {forced.label}, only {known}")
    algorithm = Algorithm.DIRECT
    if forced is not None:
        algorithm = forced
    elif kind is Kind.ALL_REDUCE:
        limit = next(limit for ranks, limit in ONE_SHOT_BYTES_MAX if world <= ranks)
        algorithm = Algorithm.ONE_SHOT if nbytes <= limit else Algorithm.LEND
    elif kind is Kind.REDUCE and world > REDUCE_DIRECT[0] and nbytes > REDUCE_DIRECT[1]:
        algorithm = Algorithm.TWO_SHOT
    if algorithm is Algorithm.LEND:
        return algorithm, CHUNK_BYTES_MAX
    op_bytes = -(-nbytes // world) if algorithm is Algorithm.TWO_SHOT else nbytes
    chunk_bytes = next(size for limit, size in CHUNK_BYTES if limit is None or op_bytes <= limit)
    return algorithm, chunk_bytes


def algorithms_of(kind: Kind) -> list[Algorithm]:
    """The algorithms that a kind of collective can be forced to use."""
    return [algorithm for known, algorithm in ALGORITHMS if known is kind]
