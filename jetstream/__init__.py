"""jetstream: a low-latency interconnect runtime for tensor-parallel inference.

::

    import jetstream
    comm = jetstream.init()          # ranks started by `jetstream run -n 4 script.py`
    comm.all_reduce(x)               # in place, the same bits on every rank

Importing costs little: parts are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jetstream.communicator import Communicator
    from jetstream.errors import JetstreamError
    from jetstream.job import get_include, init
    from jetstream.records import OperationRecord
    from jetstream.work import Work

__version__ = "0.1.0"
__all__ = [
    "Communicator",
    "JetstreamError",
    "OperationRecord",
    "Work",
    "__version__",
    "get_include",
    "init",
]

_HOMES = {
    "Communicator": "jetstream.communicator",
    "JetstreamError": "jetstream.errors",
    "OperationRecord": "jetstream.records",
    "Work": "jetstream.work",
    "get_include": "jetstream.job",
    "init": "jetstream.job",
}


def __getattr__(name: str) -> Any:
    """Load a public name, or a submodule, at its first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is not None:
        return getattr(importlib.import_module(home), name)
    if name in ("errors", "testing", "transport", "collectives"):
        return importlib.import_module(f"jetstream.{name}")
    raise AttributeError(f"module 'jetstream' has no attribute {name!r}")
