"""vLLM on the CPU through jetstream: a plugin, without effect unless JETSTREAM_VLLM is 1.

Installing jetstream makes the plugin known to vLLM (entry point ``vllm.general_plugins``), which
calls :func:`register` in each of its processes. Nobody gets another communication than before by
that alone: vLLM loads the plugins of all installed packages, so the user has to ask for it.
"""

from __future__ import annotations

import os
from typing import Any

from jetstream.environ import Reader
from jetstream.errors import ConfigurationError

__all__ = ["register"]

_COMMUNICATOR = "jetstream.torch.vllm_communicator.JetstreamCommunicator"


def register() -> None:
    """Have vLLM make its groups with jetstream, if JETSTREAM_VLLM is 1.

    vLLM calls this in every process, before it makes groups. Calling it again changes nothing.

    Raises ConfigurationError for a value other than 0 and 1, and where vLLM runs on something
    other than the CPU: who has asked for jetstream should not get something else without a word.
    """
    if Reader(os.environ).choice("JETSTREAM_VLLM", ("0", "1")) != "1":
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise ConfigurationError(
            "JETSTREAM_VLLM is '1', but vLLM runs on "
            f"{current_platform.device_type!r}: jetstream serves vLLM on the CPU"
        )
    import jetstream.torch

    jetstream.torch.register()  # vLLM would fall back to gloo for a backend torch does not know
    platform: Any = type(current_platform)
    platform.dist_backend = "jetstream"
    platform.get_device_communicator_cls = classmethod(lambda cls: _COMMUNICATOR)
