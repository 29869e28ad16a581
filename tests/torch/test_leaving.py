"""What becomes of a group that cannot be left as usual."""

from __future__ import annotations

from typing import Any

import pytest

from jetstream.errors import BusyError, JetstreamError, TimedOutError
from jetstream.torch import group as groups
from jetstream.torch.group import Group


class Unwilling:
    """A communicator that does not close without an error."""

    def __init__(self, error: JetstreamError) -> None:
        self.error = error

    def close(self) -> None:
        raise self.error


def group_of(comm: Any, monkeypatch: pytest.MonkeyPatch) -> Group:
    group = Group()
    group._comm, group._number = comm, 1
    monkeypatch.setattr(groups, "_worlds", {1: group})
    return group


def test_lost_messages_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would stop in the middle of destroying its groups, and could not go on."""
    group = group_of(Unwilling(TimedOutError("send of 9 bytes")), monkeypatch)
    with pytest.warns(RuntimeWarning, match="send of 9 bytes"):
        group.shutdown()
    assert not groups._worlds


def test_a_busy_group_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    group = group_of(Unwilling(BusyError("another thread is inside")), monkeypatch)
    with pytest.raises(RuntimeError, match="another thread is inside"):
        group.shutdown()
    assert list(groups._worlds.values()) == [group]
