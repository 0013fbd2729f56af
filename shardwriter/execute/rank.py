"""Which rank of a job this process is, as torchrun, Slurm or a user's script says it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from iianet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of the processes that were started to build one store.

    Attributes:
        number: From 0 on.
        world_size: How many were started.
        local: Number among those of this machine.
        local_size: How many are on this machine; None where nothing says so.
        job: What tells them from those of another job.
    """

    number: int
    world_size: int
    local: int
    local_size: int | None
    job: str

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
            return cls(
                number=number,
                world_size=world_size,
                local=number if local is None else local,
                local_size=local_size,
                job=f"{job(environment)}, {world_size} ranks",
            )
        return None


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")


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
