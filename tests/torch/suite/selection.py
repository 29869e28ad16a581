"""The tests of torch that are part of every test run: collectives and messages on tensors."""

from __future__ import annotations

#: Regular expressions of whole names. Left out are tests that give the ranks a second or two
#: to come together, which may take longer where the cores are busy.
CORE = (
    r"test_all_reduce_(sum|product|min|max)(_group|_full_group)?",
    r"test_all_reduce_sum_(async|complex)",
    r"test_all_gather(_complex|_full_group|_coalesced_(complex|full_group|simple|with_empty))?",
    r"test_all_gather_object_(default_pg|subgroup)",
    r"test_broadcast(_full_group)?",
    r"test_reduce_(sum|product|min|max|sum_twice|full_group_sum)",
    r"test_gather(_checks|_full_group)?",
    r"test_scatter(_checks|_complex|_full_group|_object_list)?",
    r"test_send_recv(_with_tag|_any_source)?(_autograd_profiler)?",
    r"test_isend",
    r"test_irecv",
    r"test_barrier(_full_group)?",
    r"test_monitored_barrier_gloo_subgroup",
    r"test_destroy_.*",
    r"test_get_(backend|rank).*",
)
