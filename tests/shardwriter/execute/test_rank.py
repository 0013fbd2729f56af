"""What ranks cannot do, and which GPUs are their own."""

import re
from collections.abc import Sequence

import pytest
from helpers.builds import Run

from iianet.launch import Launch, own_gpus


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
    ("count", "local", "local_size", "expected"),
    [(8, 0, 1, range(8)), (8, 1, 4, [1, 5]), (4, 3, 4, [3]), (1, 3, 4, [0]), (2, 1, 8, [1]), (1, 5, 8, [0])],
)
def test_ranks_of_a_machine_share_its_gpus(count: int, local: int, local_size: int, expected: Sequence[int]) -> None:
    own = Launch(number=local, world_size=8, local=local, local_size=local_size)
    assert list(own_gpus(count, own)) == list(expected)
    assert list(own_gpus(count, None)) == list(range(count))
