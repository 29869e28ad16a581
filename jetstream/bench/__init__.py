"""The engine of ``jetstream bench``: sizes, inputs, reference, timed loop, statistics, reports."""

from __future__ import annotations
