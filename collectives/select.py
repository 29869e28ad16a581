"""Which algorithm and which chunk size a call gets: the same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jetstream.collectives.algorithms import ALGORITHMS, HIERARCHICAL
from jetstream.collectives.calls import CHUNK_ALIGN, CHUNK_BYTES_MAX
from jetstream.collectives.placement import Placement
from jetstream.dtypes import Algorithm, Kind
from jetstream.errors import ArgumentError

__all__ = [
    "BUILT_IN",
    "CHUNK_BYTES",
    "CROWDED_RANKS_PER_CORE",
    "HIERARCHICAL_ONE_SHOT_BYTES_MAX",
    "ONE_SHOT_BYTES_MAX",
    "ONE_SHOT_BYTES_MAX_CROWDED",
    "REDUCE_DIRECT",
    "REMOTE_CHUNK_BYTES_MAX",
    "REMOTE_ONE_SHOT_BYTES_MAX",
    "Rule",
    "Selection",
    "Where",
    "algorithms_of",
    "choose",
    "chunk_bytes_for",
    "is_crowded",
    "limit_chunk",
]

#: all_reduce is one-shot up to so many bytes of array. One-shot is one message deep, but every
#: rank reads the arrays of all; lending is two deep, and every rank reads about two arrays.
ONE_SHOT_BYTES_MAX = 2 * 1024

#: The same where ranks share cores: a second message costs everyone a turn on its core, which is
#: worth many bytes.
ONE_SHOT_BYTES_MAX_CROWDED = 16 * 1024

#: From here on ranks share cores: with fewer, most of them still have one of their own.
CROWDED_RANKS_PER_CORE = 1.5

#: reduce is direct in worlds up to so many ranks, and in larger ones up to so many bytes: one
#: message deep, but the root reads the arrays of all. Two-shot folds on all ranks, two deep; where
#: ranks share cores that gains nothing.
REDUCE_DIRECT = (4, 64 * 1024)

#: Chunk size by the bytes of the longest operation: (bytes up to, chunk bytes). A small message
#: is one chunk: one frame costs less than an early start gains. Longer ones overlap the copy of
#: one chunk with the peers' folding of the one before. What is lent goes in the largest chunks: the
#: next one takes the same memory again, so there is nothing to overlap.
CHUNK_BYTES = (
    (8 * 1024, 8 * 1024),
    (32 * 1024, 16 * 1024),
    (None, 32 * 1024),
)

#: Over hosts. First figures, over udp between hosts of one machine whose cores were short: between
#: hosts a message costs 10 us whatever its size, and a KiB about one more.
#:
#: all_reduce with one rank on each of more than two hosts is one-shot up to so many bytes of array,
#: and two-shot above: between three hosts one-shot was faster up to 256 KiB, but there the wire
#: cost nothing, and one-shot sends H - 1 arrays where two-shot sends less than two. Two hosts send
#: each other as much either way, so they save the second message at any size.
REMOTE_ONE_SHOT_BYTES_MAX = 32 * 1024

#: The same where hosts have several ranks, for the hierarchical algorithms: in one shot each rank
#: of a host sends the whole array, above each sends its share (two hosts of two ranks: 150 against
#: 180 us at 8 KiB, 280 against 200 at 32 KiB).
HIERARCHICAL_ONE_SHOT_BYTES_MAX = 8 * 1024

#: Largest chunk over hosts, of partial folds too: what is lost of it is sent again as a whole, and
#: more than this adds nothing to the rate.
REMOTE_CHUNK_BYTES_MAX = 32 * 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """What calls of up to ``bytes_max`` bytes get; None: of any size."""

    bytes_max: int | None
    algorithm: Algorithm
    chunk_bytes: int


#: Whom rules are for: so many ranks on one host, or the numbers of ranks of several.
Where = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """What the ranks of a job choose by; the same on all of them.

    ``crowded``: ranks share cores. ``rules``: what has been measured, by ranks and kind, sizes
    ascending, the last without limit; where there are none the tables of this module decide.
    ``source`` says where the rules come from, empty where there are none.
    """

    crowded: bool = False
    rules: Mapping[tuple[Where, Kind], tuple[Rule, ...]] = field(default_factory=dict)
    source: str = ""


#: Nothing measured, a core for each rank.
BUILT_IN = Selection()


def choose(
    kind: Kind,
    nbytes: int,
    world: int,
    *,
    forced: Algorithm | None = None,
    selection: Selection = BUILT_IN,
    placement: Placement | None = None,
) -> tuple[Algorithm, int]:
    """Choose the algorithm and the chunk size, in bytes, of a call.

    ``nbytes`` is what the longest operation works on, in bytes, but for two-shot, where it is the
    array: ``count`` of the call, or the largest of its ``counts``. ``forced`` overrides the
    choice of algorithm; raises ArgumentError if the kind does not have it. What has been measured
    (``selection``) counts for ranks that are spread over hosts as those measured were.
    """
    if forced is not None and forced not in algorithms_of(kind):
        known = ", ".join(algorithm.label for algorithm in algorithms_of(kind))
        raise ArgumentError(f"{kind.label} has no algorithm {forced.label}, only {known}")
    is_spread = placement is not None and not placement.is_one_host
    where: Where = placement.sizes if placement is not None and is_spread else world
    for rule in selection.rules.get((where, kind), ()):
        if rule.bytes_max is None or nbytes <= rule.bytes_max:
            if forced in (None, rule.algorithm):
                return rule.algorithm, rule.chunk_bytes
            break
    algorithm = forced
    if algorithm is None and placement is not None and is_spread:
        algorithm = _over_hosts(kind, nbytes, placement)
    elif algorithm is None:
        algorithm = _built_in(kind, nbytes, world, is_crowded=selection.crowded)
    return algorithm, chunk_bytes_for(algorithm, nbytes, world)


def _built_in(kind: Kind, nbytes: int, world: int, *, is_crowded: bool) -> Algorithm:
    if kind is Kind.ALL_REDUCE:
        limit = ONE_SHOT_BYTES_MAX_CROWDED if is_crowded else ONE_SHOT_BYTES_MAX
        return Algorithm.ONE_SHOT if nbytes <= limit else Algorithm.LEND
    is_large = world > REDUCE_DIRECT[0] and nbytes > REDUCE_DIRECT[1]
    if kind is Kind.REDUCE and is_large and not is_crowded:
        return Algorithm.TWO_SHOT
    return Algorithm.DIRECT


def _over_hosts(kind: Kind, nbytes: int, placement: Placement) -> Algorithm:
    if kind is Kind.ALL_REDUCE and not placement.is_one_each:
        is_small = nbytes <= HIERARCHICAL_ONE_SHOT_BYTES_MAX
        return Algorithm.HIERARCHICAL_ONE_SHOT if is_small else Algorithm.HIERARCHICAL
    if kind is Kind.ALL_REDUCE:
        is_short = placement.host_count == 2 or nbytes <= REMOTE_ONE_SHOT_BYTES_MAX
        return Algorithm.ONE_SHOT if is_short else Algorithm.TWO_SHOT
    # Without neighbours there is no hierarchy; with them each byte crosses once instead of once
    # for each of them.
    is_flat = placement.is_one_each or (kind, Algorithm.HIERARCHICAL) not in HIERARCHICAL
    return Algorithm.DIRECT if is_flat else Algorithm.HIERARCHICAL


def limit_chunk(chunk_bytes: int, partial_scale: int, placement: Placement) -> int:
    """A chunk size, in bytes, that is not too large between hosts: for partial folds neither."""
    if placement.is_one_host:
        return chunk_bytes
    most = REMOTE_CHUNK_BYTES_MAX // max(1, partial_scale)
    return max(CHUNK_ALIGN, min(chunk_bytes, most))


def chunk_bytes_for(algorithm: Algorithm, nbytes: int, world: int) -> int:
    """The built-in chunk size of an algorithm, in bytes; the arguments are those of ``choose``."""
    if algorithm is Algorithm.LEND:
        return CHUNK_BYTES_MAX
    op_bytes = -(-nbytes // world) if algorithm is Algorithm.TWO_SHOT else nbytes
    return next(size for limit, size in CHUNK_BYTES if limit is None or op_bytes <= limit)


def algorithms_of(kind: Kind) -> list[Algorithm]:
    """The algorithms that a kind of collective can be forced to use."""
    return [algorithm for known, algorithm in (*ALGORITHMS, *HIERARCHICAL) if known is kind]


def is_crowded(cpus: tuple[frozenset[int], ...]) -> bool:
    """Do the ranks share cores? ``cpus[r]`` are the cores that rank r may use."""
    alone = [next(iter(allowed)) for allowed in cpus if len(allowed) == 1]
    most = max((alone.count(core) for core in set(alone)), default=1)
    union = frozenset[int]().union(*cpus)
    return max(most, len(cpus) / max(1, len(union))) > CROWDED_RANKS_PER_CORE
