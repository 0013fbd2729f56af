"""Training from stores that are begun, imported, or several; and with augmented embeddings."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.builds import edit_identity, opened, quick_encoder, tar
from helpers.corpus import Corpus, edit_lists, make_corpus
from helpers.runs import build_store, last, losses, run, run_recorded

from iianet.encoder.source import EncoderSource
from iianet_cli import train_cli
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot

CPU = torch.device("cpu")
PREFIX = "datamodule.data_config"


def stored(store: Path) -> dict[str, int]:
    catalog = Snapshot.open(Folder(store))
    return {split: len(catalog.split(split).stored_rows) for split in catalog.splits}


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_missing_is_built_once_before_the_first_epoch(
    begun: bool,
    here: Path,
    store: Path,
    corpus: Corpus,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(corpus, "--shards", store)
    expected = losses()
    growing = build_store(corpus, f"growing-{begun}", 2) if begun else here / "new"
    settings = ("--shards", growing, "--build_missing", "shardwriter.dtype=float32")
    command = (*settings[:3], "--set", settings[3])
    assert run(corpus, *command)[0] == 0
    assert losses() == [pytest.approx(row, rel=1e-4) for row in expected]
    counts = stored(growing)
    assert (counts["train"], counts["val"]) == (6, 3)
    said = capsys.readouterr().err
    assert f"built {5 if begun else 9} utterances; 0 cannot be stored" in said
    monkeypatch.setattr(EncoderSource, "load", lambda *_: pytest.fail("the encoder was loaded"))
    assert run(corpus, *command)[0] == 0
    assert stored(growing) == counts


def test_a_store_that_cannot_be_written_is_refused_before_an_earlier_run_is_moved(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    growing = build_store(corpus, "unwritable", 2)
    assert run(corpus, "--shards", growing)[0] == 0
    (growing / ".lock").unlink()
    (growing / ".lock").mkdir()
    code, folder = run(corpus, "--shards", growing, "--build_missing", "--set", "shardwriter.dtype=float32")
    assert code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"error: {growing}/.lock: cannot be written (" in said
    assert "fix its rights, or delete it where it is no file of a build; or choose another --shards folder" in said
    assert (folder / "last.ckpt").is_file() and not list(folder.parent.glob("*-before-*"))


def test_views_that_are_built_before_the_first_epoch_belong_to_the_order_from_the_start(
    corpus: Corpus, here: Path
) -> None:
    """A run that began with the build is resumed from the store that it completed."""
    words = ("--shards", "new", "--build_missing", "--set", "shardwriter.views=2")
    with quick_encoder():
        assert run(corpus, *words)[0] == 0
        assert stored(here / "new") == {"train": 6, "train_view1": 6, "train_view2": 6, "val": 3}
        assert last()["order"]["views"] == 2
        assert run(corpus, *words, "training.epochs=2", "--resume", "last")[0] == 0
    assert len(losses()) == 2


def test_no_shards_overrules_a_config_that_builds(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = (
        "--set",
        f"{PREFIX}.shards=new",
        f"{PREFIX}.use_precomputed_embeddings=true",
        f"{PREFIX}.build_missing=true",
    )
    assert run(corpus, "--no_shards", *named)[0] == 0
    assert not (here / "new").exists()
    capsys.readouterr()
    assert run(corpus, "--no_shards", "--build_missing")[0] == 2
    assert "--build_missing" in capsys.readouterr().err


def test_building_into_a_bucket_while_training_is_refused_with_the_cure(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", "s3://bucket/prefix", "--build_missing")[0] == 2
    assert "s3://bucket/prefix: --build_missing adds to a folder; add what is missing" in capsys.readouterr().err
    assert list(here.glob("s3*")) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_ranks_build_what_is_missing_together(corpus: Corpus, here: Path) -> None:
    words = ("--shards", "new", "--build_missing", "--set", "shardwriter.utterances_per_shard=1")
    done = run_recorded(corpus, *words, record=here / "record", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert stored(here / "new") == {"train": 6, "val": 3}
    assert "new: built 9 utterances; 0 cannot be stored" in done.stderr
    assert "all 6 utterances are in new" in done.stderr


def test_a_store_that_is_named_twice_is_refused(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", store, "--shards", f"{store}/../{store.name}")[0] == 2
    assert "a store is named twice" in capsys.readouterr().err


def test_tars_without_an_index_are_named_with_the_cure(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = here / "tars"
    tars.mkdir()
    shutil.copy(tar(store, "train"), tars)
    assert run(corpus, "--shards", tars)[0] == 2
    assert f"inspect-shards {tars} --reindex makes one of its tars" in capsys.readouterr().err


def test_several_stores_cannot_be_built_into(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", store, "--shards", "other", "--build_missing")[0] == 2
    assert "adds to one store, and there are 2" in capsys.readouterr().err


def test_two_stores_are_trained_from_as_one(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mixtures 0 and 1 have utterances 0 to 2, mixtures 3 and 4 have 3 to 5; the config's manifest asks for all."""
    run(corpus, "--shards", store)
    expected = losses()
    for name, kept, splits in (("first", slice(0, 2), ("train", "val")), ("second", slice(3, 5), ("train",))):
        part = make_corpus(here / name, {"train": 6, "val": 3, "test": 2}, frames=5)
        edit_lists(part, "train", lambda rows, kept=kept: rows[kept])
        build(part.config(), Folder(here / f"{name}-store"), BuildOptions(device=CPU, dtype="float32", splits=splits))
    capsys.readouterr()
    assert run(corpus, "--shards", here / "first-store", "--shards", here / "second-store")[0] == 0
    assert losses() == [pytest.approx(row, rel=1e-6) for row in expected]
    assert "all 6 utterances are in" in capsys.readouterr().err


def test_stores_made_unlike_are_refused_together(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(corpus.config(), Folder(here / "half"), BuildOptions(device=CPU, dtype="float16", limit=2))
    assert run(corpus, "--shards", store, "--shards", here / "half")[0] == 2
    assert "were built with different settings (dtype: float32 here, float16 there)" in capsys.readouterr().err


def test_imported_embeddings_are_trained_from_only_where_they_are_trusted(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = build_store(corpus, "imported")
    unknown = {"name": "ResNetVideoModel", "imported": True, "fingerprint": None}
    edit_identity(imported, replace(opened(imported).identity, encoder=unknown))
    assert run(corpus, "--shards", imported)[0] == 2
    assert "--trust_imported" in capsys.readouterr().err
    assert run(corpus, "--shards", imported, "--trust_imported")[0] == 0


def test_embeddings_are_augmented_in_training_alone(corpus: Corpus, store: Path, here: Path) -> None:
    still = ("--set", "optimizer.lr=0.0")
    run(corpus, "--shards", store, *still)
    [plain] = losses()
    run(corpus, "--shards", store, *still, f"{PREFIX}.embedding_augmentation.noise=1.0")
    [noisy] = losses()
    assert noisy[0] != pytest.approx(plain[0], rel=1e-5)
    assert noisy[1] == pytest.approx(plain[1], rel=1e-6)


def test_views_of_a_store_are_drawn_from_by_default(corpus: Corpus, here: Path) -> None:
    views = build_store(corpus, "views", None, "shardwriter.views=2")
    still = ("--set", "optimizer.lr=0.0", "training.epochs=3", f"{PREFIX}.block_size=1")
    run(corpus, "--shards", views, *still)
    drawn = losses()
    run(corpus, "--shards", views, *still, f"{PREFIX}.views=0")
    centre = losses()
    assert [val for _, val in drawn] == pytest.approx([val for _, val in centre], rel=1e-6)
    assert [train for train, _ in drawn] != pytest.approx([train for train, _ in centre], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "mode", "is_warned"),
    [
        ([], "raw mouths, encoded in every step", True),
        (["--no_shards"], "raw mouths, encoded in every step", False),
        (["--use_precomputed_embeddings"], "embeddings from {store}", False),
    ],
)
def test_every_run_says_its_mode_and_a_store_that_is_named_in_vain(
    words: list[str],
    mode: str,
    is_warned: bool,
    corpus: Corpus,
    store: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_cli, "fit", lambda *_: 0)
    assert run(corpus, *words, "--set", f"{PREFIX}.shards={store}")[0] == 0
    said = capsys.readouterr().err
    assert f"INFO: mode: {mode.format(store=store)}\n" in said
    warning = f"WARNING: datamodule.data_config.shards names {store}, which is NOT used"
    assert (warning in said) is is_warned
    assert ("give --use_precomputed_embeddings to train from it, or give --no_shards" in said) is is_warned
