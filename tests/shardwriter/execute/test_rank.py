"""Which rank a process is, and which GPUs are its own."""

import re
from collections.abc import Sequence

import pytest
from helpers.builds import Run

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


def test_a_rank_says_by_which_variables_it_is_one_and_what_to_do() -> None:
    found = Rank.from_environment({"RANK": "0", "WORLD_SIZE": "4"})
    assert found is not None
    assert found.words == (
        "rank 0 of 4, as RANK=0 and WORLD_SIZE=4 in the environment say; unset RANK and WORLD_SIZE if "
        "nothing has started ranks"
    )
    found = Rank.from_environment(SLURM)
    assert found is not None and "unset SLURM_PROCID and SLURM_NTASKS" in found.words


def test_a_job_script_of_slurm_without_srun_builds_alone_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """It has the variables of its first task, but of a step."""
    script = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    for _ in range(3):
        assert Rank.from_environment({**script, "SLURM_NTASKS": "17"}) is None
    (said,) = caplog.messages
    assert said.startswith("SLURM_NTASKS=17, but srun has not started this process")
    assert "it builds alone. For 17 ranks start it with srun, else unset SLURM_NTASKS" in said
    assert Rank.from_environment({**script, **TORCHRUN}) == Rank.from_environment(TORCHRUN)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--executor", "ray"), "so start the command once, without torchrun or srun; this is rank 0 of 4"),
        (
            ("--abandon",),
            "--abandon: deletes what is unfinished, without ranks (this is rank 0 of 4, as",
        ),
        (
            ("--shards", "s3://bucket/lrs2"),
            "need a folder that all of them share; .*This is rank 0 of 4",
        ),
    ],
)
def test_what_ranks_cannot_do_names_the_variables(
    words: tuple[str, ...], said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    outcome = run(*words)
    assert outcome.code == 2
    assert re.search(re.escape(said).replace(r"\.\*", ".*"), outcome.err)
    assert "as RANK=0 and WORLD_SIZE=4 in the environment say; unset RANK and WORLD_SIZE" in outcome.err


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
