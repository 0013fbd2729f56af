"""Who started this process, and which of several ranks it is: torchrun, srun, a user's variables, or nobody; and the
cores and GPUs that it has."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from iianet.errors import ConfigError
from iianet.wording import counted

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

OTHER_LAUNCHERS = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec", "JSM_NAMESPACE_SIZE": "jsrun"}
"""Variables by which launchers that are not supported say how many processes they started."""
_TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
"""Tasks of a step, else those of its job, which may have more: salloc's own shell is one of them."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The processes that were started for one job, each of which is a rank, and which of them this one is.

    Attributes:
        by: What started them: torchrun, srun, or something else that has set RANK and WORLD_SIZE.
        number: Of this process, from 0 on.
        world_size: How many were started.
        local: Number of this process among those of its machine.
        local_size: How many are on this machine; all of them where nothing says so.
        job: What tells them from those of another job.
        variables: Names of those that say so.
    """

    by: Literal["torchrun", "srun", "variables"] = "variables"
    number: int = 0
    world_size: int
    local: int = 0
    local_size: int
    job: str = ""
    variables: tuple[str, str] = ("RANK", "WORLD_SIZE")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Launch | None":
        """The launch that the environment tells of; None where this process was started alone.

        Raises:
            ConfigError: The variables contradict each other.
        """
        if _is_of_torchrun(environment):
            return cls._of_torchrun(environment)._refusing_false_numbers()
        if _is_of_srun(environment):
            return cls._of_srun(environment)._refusing_false_numbers()
        if (tasks := _count(environment, "SLURM_NTASKS")) > 1:
            _say_no_srun(tasks)
        return None

    @classmethod
    def for_training(cls, environment: Mapping[str, str] = os.environ) -> "Launch | None":
        """The same for ranks that step together, as many on each machine.

        Raises:
            ConfigError: The variables contradict each other, a launcher is not supported, or RANK and WORLD_SIZE are
                there without torchrun.
        """
        launch = cls.from_environment(environment)
        if launch is None or launch.by == "variables":
            _refuse_others(environment)
        elif launch.by == "torchrun" and launch.world_size % launch.local_size:
            raise ConfigError(
                f"torchrun: WORLD_SIZE={launch.world_size} with LOCAL_WORLD_SIZE={launch.local_size} on this machine: "
                "expected as many ranks on each machine; give the same --nproc_per_node everywhere"
            )
        elif launch.by == "srun" and not _is_even(environment):
            tasks, nodes = _tasks_and_nodes(environment)
            raise ConfigError(
                f"srun: started {tasks} tasks on {nodes} nodes; expected as many on each, which --ntasks does not "
                f"promise: give --ntasks-per-node={max(tasks // nodes, 1)}"
            )
        return launch

    @classmethod
    def _of_torchrun(cls, environment: Mapping[str, str]) -> "Launch":
        _require(environment, "RANK", "WORLD_SIZE")
        number, world_size = _count(environment, "RANK", least=0), _count(environment, "WORLD_SIZE")
        names = _values(environment, "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
        return cls(
            by="torchrun" if "TORCHELASTIC_RUN_ID" in environment else "variables",
            number=number,
            world_size=world_size,
            local=_count(environment, "LOCAL_RANK", "RANK", least=0),
            local_size=_count(environment, "LOCAL_WORLD_SIZE", "WORLD_SIZE"),
            job=f"{' '.join(['torchrun', *names])}, {world_size} ranks",
        )

    @classmethod
    def _of_srun(cls, environment: Mapping[str, str]) -> "Launch":
        _require(environment, "SLURM_PROCID")
        tasks, nodes = _tasks_and_nodes(environment)
        return cls(
            by="srun",
            number=_count(environment, "SLURM_PROCID", least=0),
            world_size=tasks,
            local=_count(environment, "SLURM_LOCALID", "SLURM_PROCID", least=0),
            local_size=tasks // nodes if _is_even(environment) else tasks,
            job=f"Slurm {'.'.join(_values(environment, 'SLURM_JOB_ID', 'SLURM_STEP_ID'))}, {tasks} ranks",
            variables=("SLURM_PROCID", next(name for name in _TASKS if name in environment)),
        )

    def _refusing_false_numbers(self) -> "Launch":
        """The same. Raises ConfigError where there are not as many ranks as its number says, here or in all."""
        name, names = self.variables
        for what, number, count in (("", self.number, self.world_size), ("local ", self.local, self.local_size)):
            if number >= count:
                raise ConfigError(
                    f"{name}={self.number} with {names}={self.world_size}: the {what}rank is {number}, expected 0 to "
                    f"{count - 1}; set what torchrun or srun sets, or unset {name} and {names} to run alone"
                )
        return self

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self.world_size // self.local_size

    @property
    def words(self) -> str:
        """Which rank this is and why, and what to do where that was not meant: variables are left behind easily."""
        first, second = self.variables
        return (
            f"rank {self.number} of {self.world_size}, as {first}={self.number} and {second}={self.world_size} in the "
            f"environment say; unset {first} and {second} if nothing has started ranks"
        )

    def refuse_other_nodes(self, configured: int) -> None:
        """Raise ConfigError where training.num_nodes contradicts the launcher; 1, the default, says nothing."""
        if configured not in (1, self.num_nodes):
            raise ConfigError(
                f"training.num_nodes is {configured}, and {self.by} started {self.world_size} ranks, {self.local_size} "
                f"on each of {self.num_nodes} machines; start it on {configured} machines, or set "
                f"training.num_nodes={self.num_nodes}"
            )


def is_first_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that speaks for all ranks; it is where it is alone, whatever was left over.

    Variables that contradict each other silence nobody: the command then says so.
    """
    try:
        if _is_of_torchrun(environment):
            deciding = ["RANK"]
        elif _is_of_srun(environment):
            deciding = ["SLURM_PROCID"]
        else:
            deciding = ["LOCAL_RANK", "NODE_RANK"]  # of the ranks that Lightning starts, and of the user's machines
    except ConfigError:
        return True
    return all(environment.get(name, "0") == "0" for name in deciding)


def _is_of_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether torchrun's variables speak of ranks, whoever has set them."""
    is_set = "RANK" in environment and "WORLD_SIZE" in environment
    return "TORCHELASTIC_RUN_ID" in environment or (is_set and _count(environment, "WORLD_SIZE") > 1)


def _is_of_srun(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several tasks of a step; a batch script has their variables, but no step."""
    return "SLURM_STEP_ID" in environment and _tasks_and_nodes(environment)[0] > 1


def _require(environment: Mapping[str, str], *names: str) -> None:
    """Raise ConfigError where a variable is missing: each process would take itself for the first."""
    if missing := [name for name in names if name not in environment]:
        raise ConfigError(
            f"{missing[0]} is not set, though other variables say that this process is one of several ranks; start all "
            "of them by torchrun or srun, which set it, or unset the others to run alone"
        )


def _tasks_and_nodes(environment: Mapping[str, str]) -> tuple[int, int]:
    """How many tasks a step of Slurm has, and on how many machines."""
    return _count(environment, *_TASKS), _count(environment, "SLURM_STEP_NUM_NODES", "SLURM_NNODES")


def _is_even(environment: Mapping[str, str]) -> bool:
    """Whether as many tasks are on each machine, which --ntasks does not promise."""
    tasks, nodes = _tasks_and_nodes(environment)
    return tasks % nodes == 0 and "SLURM_NTASKS_PER_NODE" in environment


def _values(environment: Mapping[str, str], *names: str) -> list[str]:
    return [environment[name] for name in names if name in environment]


@cache
def _say_no_srun(tasks: int) -> None:
    """Once: the environment of a job's script has the variables of its first task."""
    logger.warning(
        "SLURM_NTASKS is %d, but srun did not start this process as one of so many tasks, so it is no rank. For one "
        "rank a task, start the command with srun, else unset SLURM_NTASKS",
        tasks,
    )


def _refuse_others(environment: Mapping[str, str]) -> None:
    """Raise ConfigError where variables speak of ranks that would train apart, each of them the whole."""
    if _is_of_torchrun(environment):
        raise ConfigError(
            f"RANK={environment['RANK']} and WORLD_SIZE={environment['WORLD_SIZE']} are set, but torchrun did not "
            "start this process (TORCHELASTIC_RUN_ID is not set); start it with torchrun, or unset both to train alone"
        )
    for name, launcher in OTHER_LAUNCHERS.items():
        if _count(environment, name) > 1:
            raise ConfigError(
                f"{name}={environment[name]}: {launcher} started this process, which train.py does not support: each "
                f"rank would train alone. Start it with torchrun or srun, or unset {name} to train alone"
            )


def _count(environment: Mapping[str, str], *names: str, least: int = 1) -> int:
    """The number in the first of some variables that is set; `least` where none is."""
    name = next((name for name in names if name in environment), None)
    if name is None:
        return least
    text = environment[name]
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise ConfigError(
            f"{name}={text!r}: expected a whole number from {least} on, as torchrun and Slurm set it; unset it"
        )
    return int(text)


def training_devices(
    requested: Sequence[int] | int | None, launch: Launch | None = None
) -> tuple[str, list[int] | int]:
    """Choose accelerator and devices for the Trainer.

    Args:
        requested: training.gpus: indices of GPUs, how many, or None for one if there is any.
        launch: Processes that a launcher started; each has a device of its own, so they decide how many.

    Returns:
        "gpu" and the indices that exist; or "cpu", and 1 or as many ranks as were started on this machine.

    Raises:
        ConfigError: `requested` contradicts the launch, or this machine has fewer GPUs than it has ranks.
    """
    import torch  # asking who is the first rank needs none

    count = torch.cuda.device_count()
    if requested is None:
        requested = (launch.local_size if launch else 1) if count else 0
    indices = list(range(requested)) if isinstance(requested, int) else list(dict.fromkeys(requested))
    existing = [index for index in indices if 0 <= index < count]
    if launch is not None:
        _refuse_other_count(indices, existing, launch)
    if existing != indices:
        used = f"GPUs {existing}" if existing else "the CPU"
        logger.warning(
            "training.gpus asks for %s; found %s on this machine, using %s", indices, counted(count, "GPU"), used
        )
    return ("gpu", existing) if existing else ("cpu", launch.local_size if launch else 1)


def choose_device(name: str | None) -> "torch.device":
    """The device that was asked for; by default the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: It is no device that encodes, or is not on this machine.
    """
    import torch  # asking who is the first rank needs none

    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(
            f"--device {name}: found {name!r}, expected cpu, cuda or cuda:N, on which embeddings are made"
        )
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and count == 0:
        raise ConfigError(f"--device {name}: no GPU found; use --device cpu, or leave --device out")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"--device {name}: found {counted(count, 'GPU')}, expected one from cuda:0 to cuda:{count - 1}"
        )
    return device


def choose_devices(names: str | None, num_processes: int = 1, rank: Launch | None = None) -> "Sequence[torch.device]":
    """The device of each process.

    Args:
        names: cpu, cuda (all GPUs), cuda:N, or some with commas between them; by default as `choose_device`.
        num_processes: Processes on each.
        rank: Of a job whose ranks share the GPUs of their machine.

    Raises:
        ConfigError: One is no device, is not here, or is named twice.
    """
    import torch  # asking who is the first rank needs none

    if names is None and torch.cuda.is_available() and rank is not None:
        names = "cuda"
    devices = [device for name in ([None] if names is None else names.split(",")) for device in _named(name, rank)]
    if len(set(devices)) < len(devices):
        raise ConfigError(f"--device {names}: names a device twice; --num_processes N starts N processes on each")
    return [device for device in devices for _ in range(num_processes)]


def _named(name: str | None, rank: Launch | None) -> "list[torch.device]":
    import torch  # asking who is the first rank needs none

    device = choose_device(name)
    if name != "cuda":
        return [device]
    return [torch.device("cuda", index) for index in own_gpus(torch.cuda.device_count(), rank)]


def own_gpus(count: int, rank: Launch | None) -> Sequence[int]:
    """Which of the GPUs that a process sees are its own: all, or every so many-th, or one where ranks share it."""
    if rank is None:
        return range(count)
    return range(count)[rank.local :: rank.local_size] or [rank.local % count]


def usable_cores() -> int:
    """Cores that this process may use; where the system does not say (macOS), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse_other_count(indices: Sequence[int], existing: Sequence[int], launch: Launch) -> None:
    """Raise ConfigError where a launcher started more or fewer ranks than there are devices for them."""
    import torch  # asking who is the first rank needs none

    started = f"{launch.by} started {counted(launch.local_size, 'rank')} on this machine"
    if indices and len(indices) != launch.local_size:
        raise ConfigError(
            f"training.gpus asks for {counted(len(indices), 'device')}, {list(indices)}, and {started}; start as many "
            f"ranks as devices, or give --set training.gpus={launch.local_size}"
        )
    if existing and len(existing) < launch.local_size:
        raise ConfigError(
            f"{started}, which has {counted(torch.cuda.device_count(), 'GPU')}; start no more ranks than GPUs"
        )
