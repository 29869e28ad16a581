"""A group of ranks with a communicator: what both adapters are, whatever torch takes them for."""

from __future__ import annotations

import itertools
import os
import warnings
import weakref
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from jetstream.communicator import Communicator
from jetstream.errors import JetstreamError, TimedOutError
from jetstream.torch.bootstrap import Meeting, open_group_of, open_world_of
from jetstream.torch.errors import as_torch
from jetstream.torch.flight import GroupLog, dump_flight_record, recorder
from jetstream.torch.operations import Collectives
from jetstream.torch.recorded import record
from jetstream.torch.work import release

__all__ = ["Group", "check_no_options"]

#: Groups whose memory others can be made in, in the order in which they were made.
_worlds: weakref.WeakValueDictionary[int, Group] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Group(Collectives):
    """Needs ``_open``, once, before anything else.

    ``global_ranks``: the group's ranks in the world, by their rank in the group.
    """

    global_ranks: tuple[int, ...]
    #: What the flight recorder has of this group; None where there is none.
    flight: GroupLog | None = None
    #: Of a group that has memory of its own: its name, the same on all ranks, and its age.
    _world_name, _number = "", -1

    def _open(
        self, store: Any, rank: int, size: int, timeout: timedelta, global_ranks: Sequence[int]
    ) -> None:
        """All ranks of the group take part, over ``store``, as with torch's own backends.

        ``global_ranks``: none means all. Raises what :func:`jetstream.init` raises.
        """
        self.global_ranks = ranks = tuple(global_ranks) or tuple(range(size))
        world = _world_of(ranks)
        parent = "" if world is None else world._world_name
        try:
            with Meeting(store, rank, size, timeout, parent) as meeting:
                recorder()  # settings that it does not understand
                if world is None:
                    self._comm, self._world_name = open_world_of(meeting, timeout)
                else:
                    members = [world.global_ranks.index(one) for one in ranks]
                    self._comm = open_group_of(world.communicator, meeting, members, timeout)
        except JetstreamError as error:
            raise as_torch(error) from error.__cause__
        if world is None:
            self._number = next(_numbers)
            _worlds[self._number] = self
        record(self, rank, ranks)

    def dump_flight_record(self, path: str | os.PathLike[str] | None = None) -> Path:
        """As :func:`jetstream.torch.dump_flight_record`."""
        return dump_flight_record(path)

    @property
    def communicator(self) -> Communicator:
        """What carries out the operations, for calls without torch's overhead."""
        return self._comm

    def getBackendName(self) -> str:
        """The name of the backend."""
        return "jetstream"

    def set_timeout(self, timeout: timedelta) -> None:
        """From now on the timeout of every operation."""
        self._comm.timeout = timeout.total_seconds()

    _set_default_timeout = set_timeout

    def shutdown(self) -> None:
        """Leave the group: what torch calls for destroy_process_group.

        Warns of sends that do not go out in time, and leaves all the same: torch is in the middle
        of destroying groups. Raises BusyError while another thread is inside a call: nothing of
        this group but its futures has ended then, and it can be called again.
        """
        release(self._comm)
        try:
            self._comm.close()
        except TimedOutError as error:
            text = f"sends of a group that is destroyed are lost: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        except JetstreamError as error:
            raise as_torch(error) from error.__cause__
        _worlds.pop(self._number, None)

    def abort(self) -> None:
        """Make all present and later operations of every rank of the group fail."""
        _worlds.pop(self._number, None)  # torch may forget the group without a shutdown
        self._comm.abort()


def _world_of(ranks: Sequence[int]) -> Group | None:
    """The oldest group that has memory of its own, and all of ``ranks``."""
    worlds = (group for _, group in sorted(_worlds.items()))
    return next((group for group in worlds if set(ranks) <= set(group.global_ranks)), None)


def check_no_options(opts: Any, pg_options: Any) -> None:
    """Raise ValueError for ``pg_options``, which there are none of.

    ``opts``: torch's ``_DistributedBackendOptions``. The other ranks of the group hear of it.
    """
    if pg_options is None:
        return
    with Meeting(opts.store, opts.group_rank, opts.group_size, opts.timeout):
        raise ValueError(
            f"pg_options is a {type(pg_options).__name__}: the jetstream backend has none; see the "
            "environment variables JETSTREAM_*"
        )
