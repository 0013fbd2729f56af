"""write_store: a store of any embeddings."""

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.builds import CPU, build_store, contents, opened, plans, quick_encoder, samples, stored, tar
from helpers.corpus import make_corpus

from iianet.errors import StoreError
from loaders.embeddings.sharded_embeddings import ShardedEmbeddings
from shardwriter import build_cli, open_store, write_store
from shardwriter.build.compact import Compaction
from shardwriter.build.write_store import Sample
from shardwriter.execute.executor import OneProcess
from shardwriter.execute.operation import run_operation
from shardwriter.format.names import escape_key, parse_plan_name
from shardwriter.format.sample import quantize
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.verify import verify
from shardwriter.storage.folder import Folder
from shardwriter.store.transaction import Transaction

DIM = 4


def make_samples(count: int, start: int = 0, dtype: str = "float16") -> Iterator[Sample]:
    rng = np.random.default_rng(start)
    for number in range(start, start + count):
        yield f"clip.{number}", rng.normal(size=(DIM, 2 + number % 3)).astype(dtype), {"number": number}


def test_store_reads_back_through_sharded_embeddings(tmp_path: Path) -> None:
    assert write_store(tmp_path, make_samples(7), utterances_per_shard=3) == 7
    expected = {name: embedding for name, embedding, _ in make_samples(7)}
    found: dict[str, Any] = {}
    for batch in ShardedEmbeddings(tmp_path, batch_size=2):
        for key, embedding, frames in zip(batch.keys, batch.embedding, batch.frames, strict=True):
            assert key not in found
            found[key] = embedding[:, :frames].numpy()
            assert not embedding[:, frames:].any()
    assert found.keys() == expected.keys()
    for key, embedding in expected.items():
        np.testing.assert_array_equal(found[key], embedding)


def test_store_reads_back_through_webdataset(tmp_path: Path) -> None:
    write_store(tmp_path, make_samples(7), utterances_per_shard=3)
    found = samples(tmp_path, "train")
    assert len(found) == 7
    for sample, (name, embedding, metadata) in zip(found, make_samples(7), strict=True):
        assert (sample["__key__"], sample["json"]) == (escape_key(name), metadata)
        np.testing.assert_array_equal(sample["embedding.npy"], embedding)


@pytest.mark.parametrize("given", ["float16", "float32"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_embeddings_may_be_stored_in_another_dtype(tmp_path: Path, given: str, dtype: str) -> None:
    write_store(tmp_path, make_samples(5, dtype=given), dtype=dtype, utterances_per_shard=2)
    assert opened(tmp_path).record.identity.dtype == dtype
    for sample, (_, embedding, _) in zip(samples(tmp_path, "train"), make_samples(5, dtype=given), strict=True):
        found = sample["embedding.npy"]
        assert found.dtype == dtype and ("scale.npy" in sample) == (dtype == "int8")
        if dtype == "int8":
            np.testing.assert_array_equal(found, quantize(embedding.astype(np.float32))[0])
        else:
            np.testing.assert_array_equal(found, embedding.astype(dtype))
    expected = {escape_key(name): embedding for name, embedding, _ in make_samples(5, dtype=given)}
    found = stored(tmp_path, "train")
    assert found.keys() == expected.keys()
    for key, embedding in found.items():
        np.testing.assert_allclose(embedding, expected[key], atol=0.02)


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="dtype 'int4'; expected one of float16, float32, int8"):
        write_store(tmp_path, make_samples(2), dtype="int4")
    assert not list(tmp_path.glob("*.tar"))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_value_that_another_dtype_cannot_hold_is_named(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(StoreError, match=f"'big' is not finite in {dtype}"):
        write_store(tmp_path, [("big", np.full((DIM, 2), 1e5, np.float32), {})], dtype=dtype)


def test_plan_says_which_name_each_key_stands_for(tmp_path: Path) -> None:
    write_store(tmp_path, make_samples(3))
    table = opened(tmp_path).planned_rows("train")
    assert table["utterance"].to_pylist() == ["clip.0", "clip.1", "clip.2"]
    assert table["key"].to_pylist() == ["clip%2E0", "clip%2E1", "clip%2E2"]


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        write_store(tmp_path / folder, make_samples(5), utterances_per_shard=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert len(contents(tmp_path / "one")) == 1 + 2 * 3


def test_further_split_joins_the_store(tmp_path: Path) -> None:
    identity = {"name": "mine", "version": 3}
    write_store(tmp_path, make_samples(3), identity=identity)
    before = contents(tmp_path)
    write_store(tmp_path, make_samples(2, start=10), split="val", identity=identity)
    assert before.items() < contents(tmp_path).items()
    snapshot = opened(tmp_path)
    assert snapshot.splits == ["train", "val"]
    assert dict(snapshot.identity.encoder) == identity
    assert len(stored(tmp_path, "train")) == 3 and len(stored(tmp_path, "val")) == 2
    card = (tmp_path / "README.md").read_text()
    for split, plan in zip(("train", "val"), plans(tmp_path), strict=True):
        assert f"- {split}-{parse_plan_name(plan)}-*.tar\n" in card


def test_samples_are_streamed(tmp_path: Path) -> None:
    def watched() -> Iterator[Sample]:
        for number, sample in enumerate(make_samples(6)):
            assert len(list(tmp_path.glob(".tmp-shard-*"))) >= (number - 1) // 2
            yield sample

    write_store(tmp_path, watched(), utterances_per_shard=2)


def replaced(number: int, name: str | None = None, embedding: Any = None) -> Iterator[Sample]:
    """Four good samples, of which one is another."""
    for index, sample in enumerate(make_samples(4)):
        yield (
            (sample[0] if name is None else name, sample[1] if embedding is None else embedding, {})
            if index == number
            else sample
        )


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (3, {"name": "clip.1"}, "'clip.1' comes twice; keys must be unique"),
        (2, {"embedding": np.zeros((DIM + 1, 3), np.float16)}, r"'clip.2' is \(5, 3\) float16; expected \(4, frames\)"),
        (2, {"embedding": np.zeros((3, DIM), np.float16)}, r"'clip.2' is \(3, 4\) .*first sample; is it transposed\?"),
        (2, {"embedding": np.zeros(DIM, np.float16)}, r"'clip.2' is \(4,\) float16"),
        (2, {"embedding": np.zeros((DIM, 3, 1), np.float16)}, r"'clip.2' is \(4, 3, 1\)"),
        (2, {"embedding": np.zeros((DIM, 3), np.float32)}, r"'clip.2' is \(4, 3\) float32; expected .* float16"),
        (2, {"embedding": np.zeros((DIM, 0), np.float16)}, r"'clip.2' is \(4, 0\)"),
        (0, {"embedding": np.zeros(DIM, np.float16)}, r"'clip.0' is \(4,\)"),
        (0, {"embedding": np.zeros((), np.float16)}, r"'clip.0' is \(\) float16"),
        (
            0,
            {"embedding": np.zeros((DIM, 2), np.float64)},
            r"'clip.0' is \(4, 2\) float64; expected \(dim, frames\) float16 or float32",
        ),
        (
            0,
            {"embedding": np.zeros((DIM, 2), np.int8)},
            r"'clip.0' is \(4, 2\) int8; expected \(dim, frames\) float16 or float32",
        ),
        (1, {"embedding": [[0.0]] * DIM}, r"'clip.1' is a list; expected a NumPy array"),
        (1, {"embedding": np.full((DIM, 2), np.nan, np.float16)}, "'clip.1' is not finite"),
        (1, {"embedding": np.full((DIM, 2), np.inf, np.float16)}, "'clip.1' is not finite"),
    ],
)
def test_bad_sample_is_named_and_nothing_of_its_split_is_stored(
    tmp_path: Path, number: int, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        write_store(tmp_path, replaced(number, **change), utterances_per_shard=2)
    assert not [path.name for path in tmp_path.iterdir() if path.name != ".lock"]
    assert write_store(tmp_path, make_samples(4), utterances_per_shard=2) == 4
    assert len(stored(tmp_path, "train")) == 4


def test_a_file_that_the_samples_lack_is_not_blamed_on_the_store(tmp_path: Path) -> None:
    def lacking() -> Iterator[Sample]:
        yield from make_samples(2)
        (tmp_path / "gone.npy").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        write_store(tmp_path / "store", lacking(), utterances_per_shard=1)
    assert not list((tmp_path / "store").glob("*.tar")) and not list((tmp_path / "store").glob(".tmp-*"))


@pytest.mark.parametrize("where", ["shard_writer.ShardWriter._append", "files.move_into_place"])
def test_a_full_disk_is_named_with_the_cure(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"shardwriter.format.{where}", refuse)
    with pytest.raises(StoreError, match=r"/store: cannot be written \(No space left on device\)\. .*make room"):
        write_store(tmp_path / "store", make_samples(2))


def test_no_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no samples for split 'train'"):
        write_store(tmp_path, [])


def test_unknown_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="split 'dev'; expected one of train, val, test"):
        write_store(tmp_path, make_samples(2), split="dev")


def test_samples_are_added_to_those_of_an_earlier_call(tmp_path: Path) -> None:
    assert write_store(tmp_path, make_samples(4), utterances_per_shard=3) == 4
    before = contents(tmp_path)
    assert write_store(tmp_path, make_samples(4, start=10), utterances_per_shard=3) == 4
    kept = {name: content for name, content in before.items() if name.endswith((".tar", ".parquet"))}
    assert kept.items() < contents(tmp_path).items()
    assert list(open_store(tmp_path)) == [f"clip.{n}" for n in (0, 1, 2, 3, 10, 11, 12, 13)]
    check(tmp_path)


def test_what_is_stored_already_is_not_written_again(tmp_path: Path) -> None:
    samples = [("a", np.ones((DIM, 2), np.float16), {"n": 1}), ("b/c", np.ones((DIM, 3), np.float16), {})]
    write_store(tmp_path, samples)
    before = contents(tmp_path)
    assert write_store(tmp_path, samples) == 0
    assert contents(tmp_path) == before
    assert write_store(tmp_path, [*samples, ("d", np.ones((DIM, 2), np.float16), {})]) == 1
    assert list(open_store(tmp_path)) == ["a", "b/c", "d"]


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_a_sample_that_differs_takes_the_place_of_the_older_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: str | None
) -> None:
    write_store(tmp_path, [(key, np.ones((DIM, 2), np.float16), {"n": 1}) for key in "abc"], dtype=dtype)
    again = [("a", np.zeros((DIM, 2), np.float16), {"n": 1}), ("b", np.ones((DIM, 2), np.float16), {"n": 2})]
    assert write_store(tmp_path, [*again, ("c", np.ones((DIM, 2), np.float16), {"n": 1})], dtype=dtype) == 2
    assert "2 samples take the place of older ones of the same keys, which differ" in caplog.text
    split = open_store(tmp_path)
    assert len(split) == 3 and not split["a"].embedding.any() and split["b"].metadata == {"n": 2}
    found = {key: batch for batch in ShardedEmbeddings(tmp_path, batch_size=1) for key in batch.keys}
    assert found.keys() == set("abc") and not found["a"].embedding.any() and found["b"].metadata == [{"n": 2}]
    check(tmp_path)


def test_samples_of_a_damaged_tar_are_written_again(tmp_path: Path) -> None:
    samples = [(key, np.ones((DIM, 2), np.float16), {}) for key in "ab"]
    write_store(tmp_path, samples)
    damaged = tar(tmp_path, "train")
    content = bytearray(damaged.read_bytes())
    content[700] ^= 1
    damaged.write_bytes(bytes(content))
    assert write_store(tmp_path, samples) == 2
    assert {key: sample.embedding.tolist() for key, sample in open_store(tmp_path).items()} == {
        key: embedding.tolist() for key, embedding, _ in samples
    }


def check(store: Path) -> None:
    """Every byte is as the indexes say."""
    assert not verify(InspectedStore.open(Folder(store))).problems


@pytest.mark.parametrize(
    ("kind", "change"),
    [("dtype", {}), ("fps", {"fps": 30}), ("encoder", {"identity": {"name": "another"}})],
)
def test_split_of_another_identity_is_refused(tmp_path: Path, kind: str, change: dict[str, Any]) -> None:
    write_store(tmp_path, make_samples(2), identity={"name": "one"})
    others = make_samples(2, dtype="float32" if kind == "dtype" else "float16")
    said = rf"a store has one identity, .*\({kind}[^)]* here, .* there\). Give them the store's"
    for split in ("train", "val"):
        with pytest.raises(StoreError, match=said):
            write_store(tmp_path, others, split=split, **{"identity": {"name": "one"}, **change})
    assert opened(tmp_path).splits == ["train"] and len(open_store(tmp_path)) == 2


def test_samples_of_another_dim_than_the_store_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path, make_samples(2))
    with pytest.raises(StoreError, match=r"another \(dim: 5 here, 4 there\)"):
        write_store(tmp_path, [("a", np.ones((5, 2), np.float16), {})])


def test_a_store_of_build_shards_is_left_alone(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 2, "val": 2, "test": 2})
    build_store(corpus, tmp_path / "store")
    with pytest.raises(StoreError, match=r"was written by build-shards, so write_store cannot add .* another folder"):
        write_store(tmp_path / "store", make_samples(2))


@pytest.mark.parametrize("flags", [(), ("--import_embeddings",), ("--check",)])
def test_build_shards_leaves_it_alone_and_never_advises_to_destroy_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Sequence[str]
) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 2, "val": 2, "test": 2})
    write_store(tmp_path / "store", make_samples(4))
    before = contents(tmp_path / "store")
    words = ["--conf_dir", corpus.config_file, "--shards", tmp_path / "store", "--device", "cpu", *flags]
    with quick_encoder(), pytest.raises(SystemExit) as stop:
        build_cli.main(list(map(str, words)))
    said = "".join(capsys.readouterr())
    assert stop.value.code == 2
    assert "written by write_store" in said and "choose another --shards folder" in said
    assert "--overwrite" not in said
    assert contents(tmp_path / "store") == before


ONE = np.zeros((DIM, 3), np.float16)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([("a", ONE)], r"sample 0 is 2 elements; expected \(key, embedding, metadata\) for each utterance; {} where"),
        ([("a", ONE, {}), ONE], "sample 1 is a ndarray; expected"),
        ({"a": ONE}, "sample 0 is a str; expected"),
        (7, r"samples is a int; expected \(key, embedding, metadata\)"),
        ([(3, ONE, {})], "the key of sample 0 is 3; expected a str"),
        ([("\udcff", ONE, {})], r"the key '\\udcff' cannot be written in UTF-8; give another"),
        ([("a", ONE, None)], "'a': its metadata is not a JSON object .* expected a dict of what JSON can hold"),
        ([("a", ONE, [1])], "'a': its metadata is not a JSON object"),
        ([("a", ONE, {1: 2})], "'a': its metadata would come back as {\"1\": 2}; expected a dict .* str keys"),
        ([("a", ONE, {"x": (1, 2)})], "'a': its metadata would come back as"),
        ([("a", ONE, {"x": "\udcff"})], "'a': its metadata is not a JSON object .*surrogates"),
        ([("a", ONE, {"x": np.float32(1)})], "'a': its metadata is not a JSON object .*float32"),
    ],
)
def test_wrong_samples_are_refused_in_a_sentence(tmp_path: Path, samples: Any, said: str) -> None:
    with pytest.raises(StoreError, match=f"{tmp_path}: {said}"):
        write_store(tmp_path, samples)
    assert not (tmp_path / "store.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"utterances_per_shard": 2.5}, "utterances_per_shard is 2.5; expected a whole number"),
        ({"fps": 0}, "fps is 0; expected a number above 0"),
        ({"fps": float("nan")}, "fps is nan; expected a number above 0"),
        ({"fps": "25"}, "fps is '25'; expected a number above 0"),
        ({"fps": 2e6}, "fps is 2000000.0; expected a number above 0, and below 1,000,000"),
        ({"identity": {"n": "\udc80"}}, ".*surrogates not allowed"),
        ({"identity": {"x": object()}}, "identity is .*; expected a dict that JSON can hold"),
        ({"identity": 7}, "identity is 7; expected a dict that JSON can hold"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(StoreError, match=f"{tmp_path}: {said}"):
        write_store(tmp_path, make_samples(2), **arguments)


def stop_after(count: int) -> Iterator[Sample]:
    yield from make_samples(count)
    raise KeyboardInterrupt


def test_interrupted_split_is_written_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path, stop_after(5), utterances_per_shard=2)
    assert not list(tmp_path.glob(".tmp-*"))
    write_store(tmp_path, make_samples(6, start=100), utterances_per_shard=2)
    assert [sample["__key__"] for sample in samples(tmp_path, "train")] == [f"clip%2E{n}" for n in range(100, 106)]


def test_interrupted_split_leaves_no_shard_to_a_shorter_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path, stop_after(5), utterances_per_shard=2)
    write_store(tmp_path, make_samples(2, start=100), utterances_per_shard=2)
    assert [sample["__key__"] for sample in samples(tmp_path, "train")] == ["clip%2E100", "clip%2E101"]


def test_shards_whose_record_was_never_published_are_kept(tmp_path: Path) -> None:
    write_store(tmp_path, make_samples(3))
    (tmp_path / "store.json").unlink()  # as if it had died just before publishing it
    with pytest.raises(StoreError, match="--reindex"):
        write_store(tmp_path, make_samples(3))
    assert len(samples(tmp_path, "train")) == 3


def test_shards_of_a_split_whose_plan_was_never_active_are_deleted_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path, make_samples(3))
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path, make_samples(5, start=50), split="val", utterances_per_shard=2)
    assert len(list(tmp_path.glob("val-*.tar"))) == 3
    assert opened(tmp_path).splits == ["train"]
    write_store(tmp_path, make_samples(2), split="val", utterances_per_shard=2)
    assert len(list(tmp_path.glob("val-*.tar"))) == 1
    assert len(contents(tmp_path)) == len(before) + 3
    assert len(stored(tmp_path, "val")) == 2


def test_the_first_split_is_written_anew_too_where_its_plan_was_never_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path, make_samples(5), utterances_per_shard=2)
    assert len(list(tmp_path.glob("train-*.index"))) == 3 and opened(tmp_path).splits == []
    assert write_store(tmp_path, make_samples(2, start=50)) == 2
    assert len(list(tmp_path.glob("train-*.index"))) == 1
    assert len(stored(tmp_path, "train")) == 2


def test_tars_of_others_are_never_deleted_and_never_counted(tmp_path: Path) -> None:
    (tmp_path / "train-000001.tar").write_bytes(b"another's")
    write_store(tmp_path, make_samples(3))
    assert (tmp_path / "train-000001.tar").read_bytes() == b"another's"
    assert len(stored(tmp_path, "train")) == 3
    assert "train-*" not in (tmp_path / "README.md").read_text()


def test_a_split_may_be_added_while_what_was_replaced_is_still_read(tmp_path: Path) -> None:
    write_store(tmp_path, make_samples(6), utterances_per_shard=2)
    reader = opened(tmp_path)
    old = {path.name for path in tmp_path.glob("*.tar")}
    run_operation(Compaction(storage=Folder(tmp_path), utterances_per_shard=100), Folder(tmp_path), OneProcess(CPU))
    assert opened(tmp_path).record.retired
    write_store(tmp_path, make_samples(3, start=50), split="val")
    assert old < {path.name for path in tmp_path.glob("*.tar")}
    assert len(stored(tmp_path, "train")) == 6 and len(stored(tmp_path, "val")) == 3
    assert reader.hold is not None


@pytest.mark.parametrize(
    ("metadata", "said"),
    [({"snr": float("nan")}, "not JSON"), ({"x": b""}, "not JSON"), ({"frames": 999}, "says frames 999")],
)
def test_metadata_that_verify_would_refuse_is_refused(tmp_path: Path, metadata: dict[str, object], said: str) -> None:
    embedding = np.zeros((4, 3), dtype=np.float16)
    with pytest.raises(StoreError, match=f"'ann': its metadata.*{said}|'ann': its metadata {said}"):
        write_store(tmp_path, [("ann", embedding, metadata)])


def test_identity_may_hold_tuples(tmp_path: Path) -> None:
    identity = {"crop": (88, 88)}
    write_store(tmp_path, make_samples(2), identity=identity)
    write_store(tmp_path, make_samples(2), split="val", identity=identity)


def test_empty_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="empty name"):
        write_store(tmp_path, replaced(1, name=""))


def test_shards_of_no_utterances_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="utterances_per_shard is 0; expected a whole number, at least 1"):
        write_store(tmp_path, make_samples(2), utterances_per_shard=0)


def test_first_sample_that_is_no_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"'clip\.0' is a list"):
        write_store(tmp_path, replaced(0, embedding=[[0.0]]))


def test_a_split_that_is_added_changes_nothing_else_of_the_record(tmp_path: Path) -> None:
    write_store(tmp_path, make_samples(3))
    before = replace(opened(tmp_path).record, data_root="/corpus")
    (tmp_path / "store.json").write_bytes(before.to_bytes())
    write_store(tmp_path, make_samples(3), split="val")
    after = opened(tmp_path).record
    assert after == replace(before, plans=after.plans)
    assert after.plans[:1] == before.plans and len(after.plans) == 2
