"""A store is refused where its encoder is another one, or where nobody knows which it was."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.shuffle_encoder import ShuffleEncoder
from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError
from loaders.matching import refuse_other_encoder
from shardwriter import write_store
from shardwriter.storage.folder import Folder
from shardwriter.store.identity import UNKNOWN_ENCODER, identity_of, imported_identity
from shardwriter.store.snapshot import Snapshot

RANDOM = EncoderSource(pretrain=None, seed=0)


def store_of(folder: Path, encoder: dict[str, object], dim: int = 512) -> Snapshot:
    embedding = np.zeros((dim, 2), dtype=np.float16)
    write_store(folder, [("ann", embedding, {})], identity=encoder)
    return Snapshot.open(Folder(folder))


@pytest.fixture
def imported(tmp_path: Path) -> Snapshot:
    return store_of(tmp_path, dict(imported_identity(ClipEncoder, "float16").encoder))


def test_imported_embeddings_are_refused_until_they_are_trusted(imported: Snapshot) -> None:
    with pytest.raises(StoreError, match=r"is unknown .*earlier.*random weights of seed 0") as refused:
        refuse_other_encoder(imported, RANDOM)
    assert "--trust_imported (datamodule.data_config.trust_imported)" in str(refused.value)
    assert f"inspect-shards {imported.storage.name} --against CONFIG --recheck" in str(refused.value)


def test_trust_is_taken_with_one_warning_that_the_fallback_may_mix_encoders(
    imported: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        refuse_other_encoder(imported, RANDOM, trust_imported=True)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "the run mixes two encoders" in record.getMessage()


def test_imported_embeddings_of_whole_crops_cannot_be_taken_for_those_of_fewer_rows(imported: Snapshot) -> None:
    fifty = replace(RANDOM, crop_rows=50)
    said = r"of all 88 rows of the crop, and the config's encoder sees 50 .*Set crop_rows: 88, or build another"
    with pytest.raises(StoreError, match=said):
        refuse_other_encoder(imported, fifty, trust_imported=True)


@pytest.mark.parametrize(
    "unknown", [UNKNOWN_ENCODER, *({"name": name, "imported": True} for name in ("theirs", ["a"]))]
)
def test_trust_in_embeddings_of_unknown_rows_names_those_of_the_config(
    unknown: Mapping[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_other_encoder(store_of(tmp_path, dict(unknown)), replace(RANDOM, crop_rows=50), trust_imported=True)
    [record] = caplog.records
    assert "random weights of seed 0 and crop_rows 50" in record.getMessage()


def test_reindexed_tars_are_named_as_such(tmp_path: Path) -> None:
    snapshot = store_of(tmp_path, dict(UNKNOWN_ENCODER))
    with pytest.raises(StoreError, match="tars indexed by --reindex"):
        refuse_other_encoder(snapshot, RANDOM)


def test_embeddings_of_another_shape_cannot_be_trusted(tmp_path: Path) -> None:
    snapshot = store_of(tmp_path, dict(UNKNOWN_ENCODER), dim=8)
    with pytest.raises(StoreError, match="have 8 rows at 25 fps; the config's encoder has 512 at 25"):
        refuse_other_encoder(snapshot, RANDOM, trust_imported=True)


def test_imported_embeddings_of_one_encoder_cannot_be_taken_for_another_s(tmp_path: Path) -> None:
    wide = store_of(tmp_path, dict(imported_identity(ShuffleEncoder, "float16").encoder), dim=1024)
    refuse_other_encoder(wide, replace(RANDOM, name="ShuffleNetV2_1x"), trust_imported=True)
    said = (
        r"imported as those of the encoder ShuffleNetV2_1x; the config's is ShuffleNetV2_05x\. Set .*: ShuffleNetV2_1x,"
    )
    with pytest.raises(StoreError, match=said):
        refuse_other_encoder(wide, replace(RANDOM, name="ShuffleNetV2_05x"), trust_imported=True)


@pytest.mark.parametrize(("fact", "there"), [("dim", 1024), ("fps", 50)])
def test_other_rows_or_frames_a_second_are_named_even_where_the_weights_are_the_same(
    tmp_path: Path, fact: str, there: int
) -> None:
    kernels = RANDOM.kernels(torch.device("cpu"))
    built = identity_of(RANDOM, "0a", kernels, "float16")
    snapshot = store_of(tmp_path, {"name": "made of this"})
    other: Any = {fact: there}
    snapshot = replace(snapshot, record=replace(snapshot.record, identity=replace(built, **other)))
    with pytest.raises(StoreError, match=rf"\({fact}: {getattr(built, fact)} here, {there} there\)"):
        refuse_other_encoder(snapshot, RANDOM)


def test_trust_covers_imported_embeddings_alone(tmp_path: Path) -> None:
    snapshot = store_of(tmp_path, {"name": "ResNetVideoModel", "fingerprint": "another", "pretrain": None, "seed": 7})
    built = replace(snapshot.identity, precision=RANDOM.kernels(torch.device("cpu")).record())
    snapshot = replace(snapshot, record=replace(snapshot.record, identity=built))
    with pytest.raises(StoreError, match="encoder fingerprint"):
        refuse_other_encoder(snapshot, RANDOM, trust_imported=True)
