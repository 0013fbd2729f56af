"""Which rank of a job this process is, as torchrun, Slurm or a user's script says it."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from iianet.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of the processes that were started to build one store.

    Attributes:
        number: From 0 on.
        world_size: How many were started.
        local: Number among those of this machine.
        local_size: How many are on this machine; None where nothing says so.
        job: What tells them from those of another job.
        variables: Names of those that say so.
    """

    number: int
    world_size: int
    local: int
    local_size: int | None
    job: str
    variables: tuple[str, str] = ("RANK", "WORLD_SIZE")

    @property
    def words(self) -> str:
        """Which rank it is and why, and what to do where that was not meant: variables are left behind easily."""
        first, second = self.variables
        return (
            f"rank {self.number} of {self.world_size}, as {first}={self.number} and {second}={self.world_size} in the "
            f"environment say; unset {first} and {second} if nothing has started ranks"
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Rank | None":
        """The rank that RANK and WORLD_SIZE say, or else SLURM_PROCID and SLURM_NTASKS; None where it is alone.

        Raises:
            ConfigError: They contradict each other.
        """
        for names, job in ((_TORCHRUN, _torchrun_job), (_SLURM, _slurm_job)):
            number, world_size, local, local_size = (_number(environment, name) for name in names)
            if number is None or world_size is None:
                continue
            if not 0 <= number < world_size:
                raise ConfigError(
                    f"{names[0]}={number} with {names[1]}={world_size}: expected ranks from 0 to {world_size - 1}; set "
                    "both as torchrun does, or unset both to build with one process"
                )
            if world_size == 1:
                return None
            if names is _SLURM and "SLURM_STEP_ID" not in environment:
                _say_no_srun(world_size)
                return None
            return cls(
                number=number,
                world_size=world_size,
                local=number if local is None else local,
                local_size=local_size,
                job=f"{job(environment)}, {world_size} ranks",
                variables=names[:2],
            )
        return None


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")


@cache
def _say_no_srun(count: int) -> None:
    """Once: the environment of a job's script has the variables of its first task."""
    logger.warning(
        "SLURM_NTASKS=%d, but srun has not started this process (there is no SLURM_STEP_ID): it builds alone. For %d "
        "ranks start it with srun, else unset SLURM_NTASKS",
        count,
        count,
    )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text!r}: expected a whole number, as torchrun and Slurm set it") from error


def _torchrun_job(environment: Mapping[str, str]) -> str:
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return " ".join(["torchrun", *(environment[name] for name in names if name in environment)])


def _slurm_job(environment: Mapping[str, str]) -> str:
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
    return "Slurm " + ".".join(environment[name] for name in names if name in environment)
