"""The tests of torch that are part of every test run: collectives and messages on tensors."""

from __future__ import annotations

#: Regular expressions of whole names.
CORE = (
    r"test_all_reduce_(sum|product|min|max)(_group|_full_group)?",
    r"test_all_reduce_sum_(async|complex)",
    r"test_all_gather(?!.*cuda).*",
    r"test_broadcast(?!.*cuda).*",
    r"test_reduce_(?!.*cuda).*",
    r"test_(gather|scatter)(?!.*cuda).*",
    r"test_send_recv.*",
    r"test_isend.*",
    r"test_irecv.*",
    r"test_barrier(?!.*cuda).*",
    r"test_destroy_.*",
    r"test_get_(backend|rank).*",
)
