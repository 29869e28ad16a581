"""jetstream as a backend of torch.distributed.

::

    import torch.distributed as dist
    dist.init_process_group("jetstream")     # started by torchrun, as with gloo

Where jetstream is installed, torch knows the name without any import (entry point
``torch.backends``). ``docs/torch.md`` has the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jetstream.torch.flight import dump_flight_record

__all__ = [
    "ProcessGroupJetstream",
    "dump_flight_record",
    "empty",
    "install_as_gloo",
    "register",
    "zeros",
]

_NAME = "jetstream"


def register() -> None:
    """Make the backend known to torch.distributed; further calls do nothing.

    Raises ImportError where there is no torch.
    """
    import torch.distributed as dist

    if dist.is_available() and not hasattr(dist.Backend, _NAME.upper()):
        dist.Backend.register_backend(_NAME, _create, extended_api=True, devices=["cpu"])


def _create(opts: Any, pg_options: Any) -> Any:
    # Imported here: torch calls register() while it is being imported itself.
    from jetstream.torch.backend_base import create_backend, is_shared
    from jetstream.torch.process_group import create_process_group

    if is_shared(opts):
        return create_backend(opts, pg_options)
    return create_process_group(opts, pg_options)


def _autoload() -> None:
    """What torch calls when it is imported; an exception here would make that fail."""
    try:
        register()
    except Exception as error:
        import warnings

        warnings.warn(f"jetstream is no backend of torch: {error}", stacklevel=2)


def install_as_gloo() -> Callable[[], None]:
    """Have torch use jetstream wherever a program asks for gloo; returns what undoes that.

    See :func:`jetstream.torch.gloo.install_as_gloo` for where that holds.
    """
    from jetstream.torch.gloo import install_as_gloo as install

    return install()


def __getattr__(name: str) -> Any:
    """Load what needs the whole of torch at its first use (PEP 562)."""
    if name == "ProcessGroupJetstream":
        from jetstream.torch.process_group import ProcessGroupJetstream

        return ProcessGroupJetstream
    if name in ("empty", "zeros"):
        from jetstream.torch import symmetric

        return getattr(symmetric, name)
    raise AttributeError(f"module 'jetstream.torch' has no attribute {name!r}")
