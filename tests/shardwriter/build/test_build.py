"""What a build stores."""

import json
import tarfile
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
import yaml
from helpers.builds import build_store, opened, quick_embedding, read_index, reasons, samples, stored
from helpers.corpus import Corpus, make_corpus

from shardwriter.build.report import BuildReport
from shardwriter.corpus.manifest import load_manifests
from shardwriter.format.names import SPLITS, hash_position

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, quick: None) -> tuple[Corpus, Path, BuildReport]:
    """A corpus, its store and how the build went, to read only."""
    corpus = make_corpus(tmp_path_factory.mktemp("shared"), {"train": 7, "val": 2, "test": 3})
    store = corpus.root / "store"
    return corpus, store, build_store(corpus, store)


def test_full_build_stores_every_utterance(shared: tuple[Corpus, Path, BuildReport]) -> None:
    corpus, store, report = shared
    assert report.stored == {"train": 7, "val": 2, "test": 3}
    assert not report.any_failed
    for split in SPLITS:
        found = stored(store, split)
        assert set(found) == set(corpus.names[split])
        for key, embedding in found.items():
            np.testing.assert_array_equal(embedding, quick_embedding(corpus.mouth(key)))


def test_report_counts_what_was_published(shared: tuple[Corpus, Path, BuildReport]) -> None:
    _, store, report = shared
    tars = list(store.glob("*.tar"))
    assert reasons(report, "train") == {"new": 7}
    assert (report.shards, report.stored_bytes) == (len(tars), sum(path.stat().st_size for path in tars))


def test_shards_are_cut_from_hash_order(shared: tuple[Corpus, Path, BuildReport]) -> None:
    _, store, _ = shared
    tars = sorted(store.glob("train-*.tar"))
    own = [[name.split(".")[0] for name in names_in(path)[::2]] for path in tars]
    assert [len(keys) for keys in own] == [3, 3, 1]
    keys = list(chain.from_iterable(own))
    assert keys == sorted(keys, key=hash_position)


def names_in(tar: Path) -> list[str]:
    with tarfile.open(tar) as archive:
        return archive.getnames()


def test_webdataset_reads_every_sample_back(shared: tuple[Corpus, Path, BuildReport]) -> None:
    corpus, store, _ = shared
    for split in SPLITS:
        manifest = load_manifests(corpus.config())[split]
        mouths = {utterance.key: utterance.mouth for utterance in manifest.utterances}
        found = samples(store, split)
        assert len(found) == len({sample["__key__"] for sample in found}) == len(mouths)
        for sample in found:
            key, metadata, embedding = sample["__key__"], sample["json"], sample["embedding.npy"]
            np.testing.assert_array_equal(embedding, quick_embedding(corpus.mouth(key)))
            digest = xxhash.xxh3_64_hexdigest(corpus.mouth(key).read_bytes())
            assert (metadata["utterance"], metadata["mouth"], metadata["fps"]) == (key, mouths[key], 25)
            assert (metadata["frames"], metadata["source_digest"]) == (embedding.shape[1], digest)


def test_json_member_lists_the_audio_of_its_utterance(shared: tuple[Corpus, Path, BuildReport]) -> None:
    corpus, store, _ = shared
    lists = [corpus.rows("train", kind) for kind in ("mix", "s1", "s2")]
    expected: dict[str, list[dict[str, Any]]] = {name: [] for name in corpus.names["train"]}
    for mix, *sources in zip(*lists, strict=True):
        for speaker, (wav, mouth, num_samples) in enumerate(sources, start=1):
            audio = {"mixture": mix[0], "source": wav, "speaker": speaker, "num_samples": num_samples}
            expected[Path(mouth).stem].append(audio)
    assert {sample["__key__"]: sample["json"]["audio"] for sample in samples(store, "train")} == expected


def test_card_names_the_tars_of_every_split_to_hugging_face(shared: tuple[Corpus, Path, BuildReport]) -> None:
    _, store, _ = shared
    empty, front_matter, text = (store / "README.md").read_text().split("---\n", 2)
    assert empty == "" and "| train | 7 |" in text
    (config,) = yaml.safe_load(front_matter)["configs"]
    patterns = {entry["split"]: entry["path"] for entry in config["data_files"]}
    assert list(patterns) == ["train", "validation", "test"]
    names = [path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()]
    for split, own in zip(patterns, SPLITS, strict=True):
        matched = {name for pattern in patterns[split] for name in names if fnmatch(name, pattern)}
        assert matched == {path.name for path in store.glob(f"{own}-*.tar")} != set()


def test_merged_index_says_what_the_shards_own_say(shared: tuple[Corpus, Path, BuildReport]) -> None:
    _, store, _ = shared
    merged, records = read_index(store / "train.index")
    assert len(records) == 3
    each = [read_index(store / f"{record.shard}.index") for record in records]
    assert merged.to_pylist() == [row for table, _ in each for row in table.to_pylist()]
    assert records == [record for _, own in each for record in own]


def test_store_names_no_folder_of_the_corpus_but_data_root(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "very-private", absolute=True)
    corpus.mouth("tr_001").unlink()
    corpus.mouth("tr_002").write_bytes(b"PK")
    np.savez(corpus.mouth("tr_003"), data=np.array([None]))
    store = tmp_path / "store"
    report = build_store(corpus, store)
    assert len(report.failed["train"]) == 3
    assert opened(store).record.data_root == str(corpus.root)
    searched = 0
    for path in (path for path in store.iterdir() if path.is_file()):
        text = path.read_bytes().decode(errors="replace")
        if path.name == "store.json":
            text = json.dumps({**json.loads(text), "data_root": None})
        elif path.suffix in (".index", ".parquet"):
            table = pq.read_table(path)
            text += str(table.to_pylist()) + str(table.schema.metadata)
        assert "very-private" not in text, path
        searched += 1
    assert searched >= 12
