"""No damaged file is believed, and none ends a command in a traceback, a hang or without memory."""

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.builds import build_store, plans, stored
from helpers.campaign import forge
from helpers.campaign.runner import Tally, show, tried
from helpers.corpus import make_corpus

CASES = 2_000
SEED = 12
"""Of these cases; benchmarks/campaign.py tries 100,000 others."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_damage_is_refused_by_name_or_listed_or_leaves_the_data_equal() -> None:
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:  # of the script's length: cases hold paths
        for result in tried(Path(folder), SEED, range(CASES), len(os.sched_getaffinity(0))):
            tally.add(result)
    again = "python benchmarks/campaign.py --seed {} --case {}".format
    assert not tally.failed, show(tally, SEED, lambda result: f"{result.case} ({again(SEED, result.number)})")
    assert sum(tally.outcomes.values()) == CASES
    assert all(tally.outcomes[kind, word] for kind, word in (("tar", "refused"), ("index", "equal"), ("tar", "listed")))


def _seal_record(store: Path) -> None:
    path = store / "store.json"
    path.write_bytes(forge.seal_document(forge.json.loads(path.read_bytes())))


def _seal_indexes(store: Path) -> None:
    for path in store.glob("*.index"):
        path.write_bytes(forge.seal_table(path.read_bytes()))


def _rename_plan(store: Path) -> None:
    before = plans(store)
    forge.forge_plan(random.Random(0), store / before[0], _with_another_digest)()
    assert plans(store) != before


def _with_another_digest(_: random.Random, content: bytes) -> bytes:
    """A plan of another manifest."""
    table = forge.pq.read_table(forge.io.BytesIO(content))
    facts = forge.json.loads(table.schema.metadata[forge.METADATA])
    facts["manifest_digests"] = {"train": "f" * 32}
    described = table.replace_schema_metadata({forge.METADATA: forge.json.dumps(facts).encode()})
    buffer = forge.io.BytesIO()
    forge.pq.write_table(described, buffer)
    return buffer.getvalue()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("make_right", [_seal_record, _seal_indexes, _rename_plan])
def test_what_the_campaign_forges_has_right_digests(make_right: Callable[[Path], None], tmp_path: Path) -> None:
    store = tmp_path / "store"
    build_store(make_corpus(tmp_path / "corpus", {"train": 4}), store, splits=("train",))
    before = stored(store, "train")
    make_right(store)
    after = stored(store, "train")
    assert before.keys() == after.keys()
    for key, embedding in before.items():
        np.testing.assert_array_equal(after[key], embedding)
