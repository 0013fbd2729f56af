"""Which part of each epoch this process reads, and other arguments of ShardedEmbeddings, checked."""

import logging
import operator
import os
from typing import SupportsIndex

import torch.distributed as dist

from iianet.errors import ConfigError
from iianet.wording import show

logger = logging.getLogger(__name__)


def place_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size: those that were given, else those of the process group, else 0 of 1.

    Variables such as RANK count for nothing: whoever has left them may have no part in this.

    Raises:
        ConfigError: They contradict each other.
    """
    if rank is not None and world_size is not None:
        place = whole_number("rank", rank, 0), whole_number("world_size", world_size, 1)
        if place[0] < place[1]:
            return place
    if rank is not None or world_size is not None:
        raise ConfigError(
            f"ShardedEmbeddings: rank is {rank} and world_size is {world_size}; expected both, and a rank below "
            "world_size, or neither"
        )
    if (group := _group()) is not None:
        return group
    if (set_size := os.environ.get("WORLD_SIZE", "1")) != "1":
        logger.warning(
            "ShardedEmbeddings: WORLD_SIZE=%s and RANK=%s are set, but no process group stands, so this process reads "
            "every utterance. To share them, call torch.distributed.init_process_group first, or give rank and "
            "world_size",
            set_size,
            os.environ.get("RANK"),
        )
    return 0, 1


def refuse_other_group(rank: int, world_size: int) -> None:
    """Raise ConfigError where a process group was made later, of which each rank would read everything."""
    group = _group()
    if group not in (None, (rank, world_size)):
        raise ConfigError(
            f"ShardedEmbeddings: was made as rank {rank} of {world_size}, but (rank, world size) are {group} in the "
            "process group that stands now. Make it after init_process_group, or give it rank and world_size"
        )


def whole_number(name: str, value: object, least: int) -> int:
    """An argument that is a whole number. Raises ConfigError where it is none, or less than `least`."""
    if not isinstance(value, SupportsIndex) or isinstance(value, bool) or operator.index(value) < least:
        raise ConfigError(f"ShardedEmbeddings: {name} is {show(value)}; expected a whole number, at least {least}")
    return operator.index(value)


def _group() -> tuple[int, int] | None:
    """Rank and world size of the process group that stands, if one does."""
    is_there = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if is_there else None
