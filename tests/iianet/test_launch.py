"""Which processes a launcher started, and what of the environment and the config contradicts that."""

import os
from collections.abc import Callable

import pytest
import torch

from iianet.errors import ConfigError
from iianet.launch import Launch, is_first_rank, training_devices, usable_cores

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_NTASKS": "4",
    "SLURM_STEP_ID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
}


LEFT_OVER = {"RANK": "0", "WORLD_SIZE": "1"}
"""Of an earlier run in the same shell: in a step of several tasks it would make each of them the first."""


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN, {**SRUN, **TORCHRUN}, {**SRUN, **LEFT_OVER}])
def test_a_launcher_says_how_many_ranks_there_are(environment: dict[str, str]) -> None:
    launch = Launch.for_training(environment)
    assert launch is not None
    assert (launch.world_size, launch.local_size, launch.num_nodes) == (4, 2, 2)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"},
        {"WORLD_SIZE": "2", "LOCAL_RANK": "1"},  # as the Trainer starts the ranks of one machine
        {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},  # salloc's own shell
    ],
)
def test_a_process_that_nobody_launched_is_alone(environment: dict[str, str]) -> None:
    assert Launch.for_training(environment) is None


@pytest.mark.parametrize("read", [Launch.from_environment, Launch.for_training])
def test_tasks_of_slurm_without_srun_are_named_once_and_ignored(
    read: Callable[[dict[str, str]], Launch | None], caplog: pytest.LogCaptureFixture
) -> None:
    """A job's script has the variables of its first task, but of a step."""
    tasks = "17" if read == Launch.from_environment else "19"
    script = {"SLURM_NTASKS": tasks, "SLURM_PROCID": "0", "SLURM_JOB_ID": "77"}
    shell = {**script, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}  # salloc's own
    for environment in (script, script, shell):
        assert read(environment) is None
    (said,) = caplog.messages
    assert said.startswith(f"SLURM_NTASKS is {tasks}, but srun did not start this process as one of so many tasks")
    assert "start the command with srun, else unset SLURM_NTASKS" in said
    assert read({**script, **TORCHRUN}) == read(TORCHRUN)


OF_A_SCRIPT = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
OF_A_STEP = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (OF_A_SCRIPT, (1, 4, 1, 2, "torchrun 29500, 4 ranks")),
        (OF_A_STEP, (5, 8, 1, 8, "Slurm 77.0, 8 ranks")),
        ({**OF_A_STEP, "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"}, (5, 8, 1, 4, "Slurm 77.0, 8 ranks")),
        ({**OF_A_STEP, "SLURM_STEP_NUM_TASKS": "6"}, (5, 6, 1, 6, "Slurm 77.0, 6 ranks")),
        ({**OF_A_STEP, **OF_A_SCRIPT}, (1, 4, 1, 2, "torchrun 29500, 4 ranks")),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4, 3, 4, "torchrun, 4 ranks")),
    ],
)
def test_environment_says_the_rank(environment: dict[str, str], expected: tuple[object, ...]) -> None:
    found = Launch.from_environment(environment)
    assert found is not None
    assert (found.number, found.world_size, found.local, found.local_size, found.job) == expected


def test_a_rank_says_by_which_variables_it_is_one_and_what_to_do() -> None:
    found = Launch.from_environment({"RANK": "0", "WORLD_SIZE": "4"})
    assert found is not None
    assert found.words == (
        "rank 0 of 4, as RANK=0 and WORLD_SIZE=4 in the environment say; unset RANK and WORLD_SIZE if "
        "nothing has started ranks"
    )
    found = Launch.from_environment(OF_A_STEP)
    assert found is not None and "unset SLURM_PROCID and SLURM_NTASKS" in found.words


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 with WORLD_SIZE=4: the rank is 4, expected 0 to 3; .* or unset"),
        (
            {**SRUN, "SLURM_PROCID": "5"},
            "SLURM_PROCID=5 with SLURM_NTASKS=4: the rank is 5, expected 0 to 3; .* or unset",
        ),
        (
            {**TORCHRUN, "LOCAL_RANK": "2"},
            "RANK=3 with WORLD_SIZE=4: the local rank is 2, expected 0 to 1; .* or unset",
        ),
        (
            {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"},
            "SLURM_PROCID is not set, though .* by torchrun or srun, .* or unset",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"},
            "RANK is not set, though .* by torchrun or srun, .* or unset",
        ),
        ({"RANK": "one", "WORLD_SIZE": "4"}, "RANK='one': expected a whole number from 0 on.*unset it"),
    ],
)
def test_impossible_ranks_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Launch.from_environment(environment)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, "RANK=0 and WORLD_SIZE=4 are set, but torchrun did not .* unset both"),
        (
            {**TORCHRUN, "RANK": "2", "WORLD_SIZE": "3"},
            "WORLD_SIZE=3 with LOCAL_WORLD_SIZE=2 .* the same --nproc_per_node",
        ),
        ({**TORCHRUN, "WORLD_SIZE": "two"}, "WORLD_SIZE='two': expected a whole number from 1 on"),
        ({**SRUN, "SLURM_NTASKS": "3"}, "started 3 tasks on 2 nodes; .* --ntasks-per-node=1"),
        (
            {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"},
            "started 4 tasks on 1 nodes; .* --ntasks-per-node=4",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: mpirun started .* with torchrun or srun, or unset"),
    ],
)
def test_ranks_that_would_train_apart_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Launch.for_training(environment)


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "1"}, True),
        ({"SLURM_PROCID": "3"}, True),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, True),  # a batch script, or a shell within it
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "many", "SLURM_STEP_ID": "0"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),  # build-shards takes these as torchrun's
        (TORCHRUN, False),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "1", "SLURM_PROCID": "3"}, True),
        ({**SRUN, "SLURM_PROCID": "0", "RANK": "3"}, True),
        ({**SRUN, "SLURM_PROCID": "3"}, False),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0"}, False),  # as Lightning starts them
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1", "MASTER_ADDR": "first"}, False),
    ],
)
def test_one_rank_speaks_for_all_and_who_is_alone_always_does(environment: dict[str, str], is_first: bool) -> None:
    assert is_first_rank(environment) == is_first


def test_nodes_of_the_config_may_not_contradict_the_launcher() -> None:
    launch = Launch(by="torchrun", world_size=4, local_size=2)
    launch.refuse_other_nodes(1)
    launch.refuse_other_nodes(2)
    with pytest.raises(ConfigError, match=r"training.num_nodes is 4, and torchrun started 4 ranks, 2 on each of 2"):
        launch.refuse_other_nodes(4)


@pytest.mark.parametrize(
    ("requested", "gpus", "expected"),
    [
        (None, 0, ("cpu", 2)),
        (2, 0, ("cpu", 2)),
        (None, 2, ("gpu", [0, 1])),
        (None, 4, ("gpu", [0, 1])),
        ([1, 3], 4, ("gpu", [1, 3])),
    ],
)
def test_started_ranks_decide_how_many_devices_there_are(
    requested: list[int] | int | None, gpus: int, expected: tuple[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert training_devices(requested, Launch(by="torchrun", world_size=2, local_size=2)) == expected


@pytest.mark.parametrize(
    ("requested", "gpus", "said"),
    [
        (3, 0, r"asks for 3 devices, \[0, 1, 2\], and torchrun started 2 ranks on this machine; .* training.gpus=2"),
        ([0], 4, r"asks for 1 device, \[0\], and torchrun started 2 ranks"),
        (None, 1, "torchrun started 2 ranks on this machine, which has 1 GPU; start no more ranks than GPUs"),
        ([0, 5], 1, "torchrun started 2 ranks on this machine, which has 1 GPU"),
    ],
)
def test_devices_that_contradict_the_launcher_are_refused(
    requested: list[int] | int | None, gpus: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=said):
        training_devices(requested, Launch(by="torchrun", world_size=2, local_size=2))


def test_cores_are_those_of_the_process_or_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3))
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert usable_cores() == 8
