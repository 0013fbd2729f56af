"""inspect-shards --reindex: a store of tars that have no index."""

import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.builds import contents, stored
from helpers.foreign_tars import embedding, npy, own_members, traps, write_tar
from helpers.inspection import STORED, Place, run, run_json

from iianet.config.schema import load_config
from iianet.errors import StoreError
from loaders.sharded_embeddings import ShardedEmbeddings
from shardwriter import write_store
from shardwriter.build.build import BuildOptions, build
from shardwriter.inspect.reindex import reindex
from shardwriter.store.catalog import Catalog
from shardwriter.store.identity import is_imported


def lose(store: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in store.glob(pattern):
            path.unlink()


EVERYTHING = ("*.index", "plan-*", "store.json", "README.md")


@pytest.mark.parametrize("lost", [EVERYTHING, ("*.index",), ("plan-*",), ("store.json",), ("train-000001.index",)])
def test_a_store_that_lost_its_records_is_read_as_before(place: Place, lost: tuple[str, ...]) -> None:
    before = {split: stored(place.store, split) for split in STORED}
    tars = {path.name: path.read_bytes() for path in place.store.glob("*.tar")}
    lose(place.store, *lost)
    lose(place.store, "train.index")  # it would say what is lost
    assert run(place.store, "--reindex", "--verify") == 0
    assert {path.name: path.read_bytes() for path in place.store.glob("*.tar")} == tars
    for split, embeddings in before.items():
        found = stored(place.store, split)
        assert found.keys() == embeddings.keys()
        for key in found:
            np.testing.assert_array_equal(found[key], embeddings[key])


def test_int8_audio_and_views_are_found_again(full: Place, tmp_path: Path) -> None:
    place = full.copy(tmp_path)
    before = Catalog.open(place.store).record.identity
    lose(place.store, *EVERYTHING)
    assert run(place.store, "--reindex", "--verify") == 0
    catalog = Catalog.open(place.store)
    assert catalog.splits == ("train", "train_view1", "train_view2", "val")
    identity = catalog.record.identity
    assert (identity.dtype, identity.dim, identity.audio) == (before.dtype, before.dim, before.audio)


def test_the_audio_lists_are_in_the_new_plan(place: Place) -> None:
    before = Catalog.open(place.store).manifest("val")
    lose(place.store, *EVERYTHING)
    assert run(place.store, "--reindex", "--data_root", place.root) == 0
    after = Catalog.open(place.store).manifest("val")
    assert after.digest() == before.digest()
    assert after.utterances.table.equals(before.utterances.table)


def test_the_identity_is_kept_where_anything_still_tells_it(place: Place) -> None:
    before = Catalog.open(place.store).record
    lose(place.store, "*.index", "plan-*")
    assert run(place.store, "--reindex") == 0
    assert Catalog.open(place.store).record.identity == before.identity
    assert Catalog.open(place.store).record.data_root == before.data_root
    lose(place.store, "*.index", "store.json")
    assert run(place.store, "--reindex") == 0
    assert Catalog.open(place.store).record.identity == before.identity


def test_where_nothing_tells_the_encoder_the_store_says_so(place: Place) -> None:
    lose(place.store, *EVERYTHING)
    assert run(place.store, "--reindex") == 0
    identity = Catalog.open(place.store).record.identity
    assert is_imported(identity)
    assert identity.encoder["reindexed"] is True
    assert identity.encoder["fingerprint"] is None


def test_a_build_goes_on_and_encodes_nothing_again(place: Place) -> None:
    before = contents(place.store)
    lose(place.store, "*.index", "plan-*")
    assert run(place.store, "--reindex") == 0
    place.build()  # tries the broken one again, and nothing else
    after = contents(place.store)
    tars = {name for name in before if name.endswith(".tar")}
    assert {name: after[name] for name in tars} == {name: before[name] for name in tars}
    assert {name for name in after if name.endswith(".tar")} == tars


def test_the_newer_of_two_entries_of_a_key_counts(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-000000.tar", own_members("a", embedding(1)))
    write_tar(tmp_path / "train-000010.tar", own_members("a", embedding(2)))
    reindex(str(tmp_path))
    np.testing.assert_array_equal(stored(tmp_path, "train")["a"], embedding(2))


def test_a_whole_store_is_left_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place.store)
    assert run(place.store, "--reindex") == 2
    assert "nothing to do" in capsys.readouterr().err
    assert contents(place.store) == before


def test_what_was_replaced_and_stays_for_its_readers_does_not_count_again(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    options = BuildOptions(splits=("train", "val"), device=torch.device("cpu"), overwrite=True)
    build(load_config(place.config, ["shardwriter.keep_replaced_days=7"]), place.store, options)
    plans = Catalog.open(place.store).record.plans
    assert len(list(place.store.glob("plan-*"))) > len(plans)
    assert run(place.store, "--reindex") == 2
    assert "there is nothing to do" in capsys.readouterr().err
    assert Catalog.open(place.store).record.plans == plans


def test_tars_of_two_identities_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "one", [("a", embedding(1), {})], identity={"name": "one"})
    write_store(tmp_path / "two", [("b", embedding(2), {})], identity={"name": "two"})
    (tmp_path / "two/plan-000.parquet").rename(tmp_path / "one/plan-001.parquet")
    (tmp_path / "two/train-000000.tar").rename(tmp_path / "one/train-000001.tar")
    with pytest.raises(StoreError, match=r"plan-001\.parquet speak of embeddings that were made differently"):
        reindex(str(tmp_path / "one"))


Change = Callable[[Path], object]
VALUES = embedding(1)
UNFIT: Mapping[str, Change] = {
    "name of the tar": lambda at: write_tar(at / "shard-0.tar", own_members("a", VALUES)),
    "PAX": lambda at: write_tar(
        at / "train-000000.tar", own_members("a" * 70 + "é" * 20, VALUES), format=tarfile.PAX_FORMAT
    ),
    "member names": lambda at: write_tar(at / "train-000000.tar", {"a.npy": npy(VALUES), "a.json": b"{}"}),
    "no json": lambda at: write_tar(at / "train-000000.tar", {"a.embedding.npy": npy(VALUES)}),
    "header length": lambda at: write_tar(
        at / "train-000000.tar", {"a.embedding.npy": npy(VALUES)[:8] + _longer(VALUES), "a.json": b"{}"}
    ),
    "header version": lambda at: write_tar(
        at / "train-000000.tar", {"a.embedding.npy": npy(VALUES, version=(2, 0)), "a.json": b"{}"}
    ),
    "column by column": lambda at: write_tar(
        at / "train-000000.tar", {"a.embedding.npy": npy(np.asfortranarray(VALUES)), "a.json": b"{}"}
    ),
    "big-endian": lambda at: write_tar(at / "train-000000.tar", own_members("a", VALUES.astype(">f2"))),
    "dotted keys": lambda at: write_tar(
        at / "train-000000.tar",
        {"a.1.npy": npy(VALUES), "a.1.json": b"{}", "a.2.npy": npy(embedding(2)), "a.2.json": b"{}"},
    ),
    "mixed dtypes": lambda at: write_tar(
        at / "train-000000.tar", {**own_members("a", VALUES), **own_members("b", embedding(2, dtype="float32"))}
    ),
    "other files": lambda at: write_tar(
        at / "train-000000.tar", {**own_members("a", VALUES), "b.jpg": b"x", "LICENSE": b""}
    ),
    "not finite": lambda at: write_tar(
        at / "train-000000.tar", {**own_members("a", VALUES), **own_members("b", np.full((6, 2), np.nan, np.float16))}
    ),
    "key": lambda at: write_tar(at / "train-000000.tar", own_members("sub/a", VALUES)),
    "folder in it": lambda at: _with_folder(write_tar(at / "train-000000.tar", own_members("a", VALUES))),
}
FIRST_KEYS = {"PAX": None, "dotted keys": "a%2E1", "key": "sub%2Fa"}


def _longer(values: npt.NDArray[Any]) -> bytes:
    """An npy from its header's length on, whose values begin at byte 256."""
    text = f"{{'descr': '{values.dtype.str}', 'fortran_order': False, 'shape': {values.shape}, }}"
    return (246).to_bytes(2, "little") + text.ljust(245).encode() + b"\n" + values.tobytes()


def _with_folder(path: Path) -> None:
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        archive.addfile(info)


@pytest.mark.parametrize("unfit", UNFIT)
def test_what_is_not_as_a_stores_own_is_written_anew(unfit: str, tmp_path: Path) -> None:
    UNFIT[unfit](tmp_path / "theirs")
    before = {path.name: path.read_bytes() for path in (tmp_path / "theirs").glob("*.tar")}
    with pytest.raises(StoreError, match="--into"):
        reindex(str(tmp_path / "theirs"))
    store = reindex(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "theirs").glob("*.tar")} == before
    assert run(store, "--verify") == 0
    found = stored(store, "train")
    key = FIRST_KEYS.get(unfit, "a") or next(iter(found))
    np.testing.assert_array_equal(found[key], VALUES.astype(found[key].dtype))


def test_foreign_tars_become_a_store_split_by_split(tmp_path: Path) -> None:
    for split, numbers in {"train": range(4), "valid": range(4, 6)}.items():
        members = {f"utt{number}.lips.npy": npy(embedding(number, dtype="float32")) for number in numbers}
        write_tar(tmp_path / f"{split}-00.tar", {**members, "utt0.jpg": b""} if split == "train" else members)
    store = reindex(f"{tmp_path}/{{train,valid}}-00.tar", str(tmp_path / "store"))
    found = {
        key: values[:, :frames].numpy()
        for split in ("train", "val")
        for batch in ShardedEmbeddings(store, split, batch_size=3)
        for key, values, frames in zip(batch.keys, batch.embedding, batch.frames, strict=True)
    }
    assert found.keys() == {f"utt{number}" for number in range(6)}
    for number in range(6):
        np.testing.assert_array_equal(found[f"utt{number}"], embedding(number, dtype="float32"))
    assert set(stored(store, "val")) == {"utt4", "utt5"}


def test_embeddings_that_lie_the_other_way_are_turned(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {f"{number}.npy": npy(embedding(number).T[None]) for number in range(3)})
    found = stored(reindex(str(tmp_path / "x.tar"), str(tmp_path / "store")), "train")
    for number in range(3):
        np.testing.assert_array_equal(found[str(number)], embedding(number))


def test_what_cannot_be_stored_is_recorded_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    trap, objects = traps(tmp_path / "unpickled")
    members = {
        "good.npy": npy(embedding(0)),
        "good.pyd": trap,
        "flat.npy": npy(np.zeros(4, np.float32)),
        "objects.npy": objects,
        "two.a.npy": npy(embedding(1)),
        "two.b.npy": npy(embedding(1)),
        "bare.json": b"{}",
        "torn.npy": npy(embedding(2))[:-1],
        "text.npy": npy(embedding(3)),
        "text.json": b"{",
    }
    store = reindex(str(write_tar(tmp_path / "x.tar", members)), str(tmp_path / "store"))
    assert set(stored(store, "train")) == {"good"}
    failures = Catalog.open(store).split("train").failures
    assert failures.keys() == {"flat", "objects", "two", "bare", "torn", "text"}
    assert "never unpickled" in failures["objects"]
    assert not any(str(tmp_path) in reason for reason in failures.values())
    assert "pyd (1)" in caplog.text
    assert "6 samples could not be stored" in caplog.text
    assert not (tmp_path / "unpickled").exists()
    _, document = run_json(capsys, store)
    assert document["splits"]["train"]["failed"] == 6


def test_audio_lists_of_foreign_samples_are_kept_and_broken_ones_fail(tmp_path: Path) -> None:
    audio = {"mixture": "m.wav", "source": "s.wav", "speaker": 1, "num_samples": 640}
    broken = {**audio, "num_samples": "many"}
    members = {**own_members("a", embedding(0), audio=[audio]), **own_members("b", embedding(1), audio=[broken])}
    store = reindex(str(write_tar(tmp_path / "x.tar", members)), str(tmp_path / "store"), str(tmp_path))
    manifest = Catalog.open(store).manifest("train")
    assert [example.mixture for example in manifest.examples] == ["m.wav"]
    assert "num_samples" in Catalog.open(store).split("train").failures["b"]


def test_two_samples_of_one_key_are_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_tar(tmp_path / f"{name}.tar", {"a.npy": npy(embedding(0))})
    with pytest.raises(StoreError, match="both have a sample 'a'"):
        reindex(f"{tmp_path}/{{x,y}}.tar", str(tmp_path / "store"))


@pytest.mark.parametrize("kept", [2048, 1536, 100])
def test_a_cut_tar_is_refused(kept: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-000000.tar", {"a.npy": npy(np.zeros((8, 64), np.float16))})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match=r"train-000000\.tar"):
        reindex(str(tmp_path), str(tmp_path / "store"))


@pytest.mark.parametrize("given", ["pipe:touch {}/ran", "{{pipe:touch {}/ran,x}}", "http://localhost:1/x.tar"])
def test_only_local_tars_are_reindexed(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(given.format(tmp_path), "--reindex", "--into", tmp_path / "store") == 2
    assert "expected a path" in (err := capsys.readouterr().err) or "local" in err
    assert not (tmp_path / "ran").exists()


def test_an_interrupted_reindexing_never_lets_a_build_delete_tars(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its files store.json names a plan that is not there, which everything refuses to open."""
    tars = {path.name for path in place.store.glob("*.tar")}
    lose(place.store, "*.index", "store.json")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for at in ("shardwriter.inspect.adopt.write_index", "shardwriter.inspect.adopt.write_plan"):
        monkeypatch.setattr(at, stop)
        with pytest.raises(KeyboardInterrupt):
            reindex(str(place.store))
        with pytest.raises(StoreError):
            place.build()
        monkeypatch.undo()
    assert {path.name for path in place.store.glob("*.tar")} == tars
    reindex(str(place.store))
    place.build()
    assert tars <= {path.name for path in place.store.glob("*.tar")}


def test_into_needs_reindex_and_an_empty_folder(place: Place, tmp_path: Path) -> None:
    assert run(place.store, "--into", tmp_path / "new") == 2
    assert run(place.store, "--reindex", "--into", place.store) == 2


@pytest.mark.parametrize("into", [False, True])
def test_nothing_behind_a_damaged_header_is_lost_without_a_word(tmp_path: Path, into: bool) -> None:
    members = {name: content for key in "abc" for name, content in own_members(key, embedding(1)).items()}
    path = write_tar(tmp_path / "old" / "train-000000.tar", members)
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[offset + 148 : offset + 156] = b"damaged!"  # its checksum
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"train-000000.tar: cannot be read to its end .*at byte {offset:,}"):
        reindex(str(path.parent), str(tmp_path / "new") if into else None)
    assert not (tmp_path / "new" / "store.json").exists()


def test_an_utterance_that_was_encoded_twice_is_read_once(tmp_path: Path) -> None:
    for number, keys in enumerate(("ab", "bc")):
        members = {}
        for key in keys:
            members |= own_members(key, embedding(number))
        write_tar(tmp_path / f"train-00000{number}.tar", members)
    reindex(str(tmp_path))
    read = [(batch.keys[0], batch.embedding[0].numpy()) for batch in ShardedEmbeddings(tmp_path, batch_size=1)]
    assert sorted(key for key, _ in read) == ["a", "b", "c"]
    np.testing.assert_array_equal(dict(read)["b"], embedding(1))


def test_tars_of_two_stores_do_not_take_each_others_identity(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_store(tmp_path / name, [(name, embedding(1), {})], identity={"name": name, "fingerprint": name})
    with pytest.raises(StoreError, match="not made alike"):
        reindex(str(tmp_path / "{one,two}" / "train-000000.tar"), str(tmp_path / "new"))


def test_one_key_in_two_folders_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tar(tmp_path / name / "train-000000.tar", own_members("a", embedding(1)))
    with pytest.raises(StoreError, match="both have a sample 'a'"):
        reindex(str(tmp_path / "{one,two}" / "train-000000.tar"), str(tmp_path / "new"))


def test_an_interrupted_reindex_into_a_folder_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_tar(tmp_path / "old" / "x.tar", own_members("a", embedding(1)))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shardwriter.inspect.rewrite.write_plan", stop)
        with pytest.raises(KeyboardInterrupt):
            reindex(str(old), str(tmp_path / "new"))
    reindex(str(old), str(tmp_path / "new"))
    assert stored(tmp_path / "new", "train").keys() == {"a"}


def test_forgotten_failures_are_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    lose(place.store, "val*.index", "train.index")
    assert run(place.store, "--reindex") == 0
    assert "1 utterances are recorded as failed; build-shards will take them for new" in capsys.readouterr().err
