"""Which rank a process is, and which GPUs are its own."""

from collections.abc import Sequence

import pytest

from iianet.errors import ConfigError
from shardwriter.execute.devices import own_gpus
from shardwriter.execute.rank import Rank

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"SLURM_NTASKS": "4"}, None),
        (TORCHRUN, (1, 4, 1, 2, "torchrun 29500, 4 ranks")),
        (SLURM, (5, 8, 1, None, "Slurm 77.0, 8 ranks")),
        ({**SLURM, **TORCHRUN}, (1, 4, 1, 2, "torchrun 29500, 4 ranks")),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4, 3, None, "torchrun, 4 ranks")),
    ],
)
def test_environment_says_the_rank(environment: dict[str, str], expected: tuple[object, ...] | None) -> None:
    found = Rank.from_environment(environment)
    assert (found and (found.number, found.world_size, found.local, found.local_size, found.job)) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 with WORLD_SIZE=4: expected ranks from 0 to 3"),
        ({"RANK": "one", "WORLD_SIZE": "4"}, "RANK='one': expected a whole number"),
    ],
)
def test_impossible_ranks_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Rank.from_environment(environment)


@pytest.mark.parametrize(
    ("count", "local", "local_size", "expected"),
    [(8, 0, 1, range(8)), (8, 1, 4, [1, 5]), (4, 3, 4, [3]), (1, 3, 4, [0]), (2, 1, None, [1]), (1, 5, None, [0])],
)
def test_ranks_of_a_machine_share_its_gpus(
    count: int, local: int, local_size: int | None, expected: Sequence[int]
) -> None:
    own = Rank(number=local, world_size=8, local=local, local_size=local_size, job="")
    assert list(own_gpus(count, own)) == list(expected)
    assert list(own_gpus(count, None)) == list(range(count))
