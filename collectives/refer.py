"""From which size on symmetric arrays are read where they lie, by kind of collective."""

from __future__ import annotations

from jetstream.dtypes import Kind

__all__ = ["REFER_BYTES"]

#: Bytes of one SEND. Below, a copy into a ring costs about as little as to wait until the last
#: reader has read the array. Where all exchange, all wait for all anyway; where a rank only sends,
#: it would get further without waiting, so there the gain has to be larger.
REFER_BYTES = {
    Kind.ALL_GATHER: 4 * 1024,
    Kind.REDUCE_SCATTER: 4 * 1024,
    Kind.ALL_TO_ALL: 4 * 1024,
    Kind.ALL_REDUCE: 16 * 1024,
    Kind.BROADCAST: 16 * 1024,
    Kind.REDUCE: 16 * 1024,
    Kind.GATHER: 16 * 1024,
    Kind.SCATTER: 16 * 1024,
    Kind.SCAN: 16 * 1024,
    Kind.EXSCAN: 16 * 1024,
}
