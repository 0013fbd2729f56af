"""Training from a store in a bucket, while the network fails; equal to training from its folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.corpus import Corpus
from helpers.remote import PREFIX, URL, bucket
from helpers.runs import EPOCHS, build_store, losses, run, run_recorded
from helpers.s3 import Fault, S3Server

from loaders.sharded_embeddings import ShardedEmbeddings
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot

PLACE = "datamodule.data_config"
QUICK = (*EPOCHS, "--set", f"{PLACE}.num_workers=0")


WITHIN = (1, 2)
"""Exit codes of a shard that is found wrong while steps are made: 2 where it is before the first one."""


@pytest.fixture(scope="module")
def folder(corpus: Corpus) -> Path:
    """A store of shards of one utterance each."""
    return build_store(corpus, "small-shards", None, "shardwriter.utterances_per_shard=1")


@pytest.fixture(scope="module")
def expected(corpus: Corpus, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    """Losses of a run from the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("expected"))
        assert run(corpus, "--shards", folder, *QUICK)[0] == 0
        return losses()


@pytest.fixture
def server(here: Path, folder: Path) -> Iterator[S3Server]:
    """A bucket that holds the store."""
    with bucket(here / "cache", read_timeout=1) as running:
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith("."):
                running.write(f"{PREFIX}/{path.name}", path.read_bytes())
        running.requests.clear()
        yield running


def tars(here: Path) -> list[Path]:
    return list((here / "cache").rglob("*.tar"))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_ends_with_the_losses_of_the_folder_and_downloads_each_shard_once(
    workers: int, corpus: Corpus, here: Path, server: S3Server, expected: list[tuple[float, float]]
) -> None:
    assert run(corpus, "--shards", URL, *EPOCHS, "--set", f"{PLACE}.num_workers={workers}")[0] == 0
    assert losses() == expected
    gets = [path for method, path in server.requests if method == "GET" and path.endswith(".tar")]
    assert len(gets) == len(set(gets)) == 9


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_ranks_with_workers_share_one_cache(corpus: Corpus, here: Path, server: S3Server, folder: Path) -> None:
    settings = (*EPOCHS, "--set", f"{PLACE}.num_workers=1", f"{PLACE}.batch_size=1")
    found = []
    for name, store in (("near", folder), ("far", URL)):
        done = run_recorded(corpus, "--shards", store, *settings, record=here / name, ranks=2)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(losses())
    assert found[0] == found[1]
    gets = [path for method, path in server.requests if method == "GET" and path.endswith(".tar")]
    assert len(gets) == len(set(gets)) == 9


@pytest.mark.parametrize("fault", ["500", "cut", "close", "hang"])
def test_faults_that_pass_change_nothing(
    fault: Fault, corpus: Corpus, server: S3Server, expected: list[tuple[float, float]]
) -> None:
    for ending in ("train-000000.tar", "train-000003.tar", "val-000001.tar"):
        server.fail("GET", ending, fault, times=2)
    server.fail("GET", "plan-000.parquet", fault)
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    assert losses() == expected
    assert not [rule for rule in server.rules if rule.times]


@pytest.mark.parametrize(
    ("fault", "workers"), [("500", 0), ("500", 2), pytest.param("close", 0, marks=pytest.mark.slow)]
)
def test_faults_that_last_end_training_with_the_name_of_the_object(
    fault: Fault, workers: int, corpus: Corpus, server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail("GET", "train-000002.tar", fault, times=10_000)
    code, _ = run(corpus, "--shards", URL, *EPOCHS, "--set", f"{PLACE}.num_workers={workers}")
    assert code in WITHIN
    said = capsys.readouterr().err
    assert f"error: {URL}/train-000002.tar: cannot be read after 5 attempts" in said
    assert "testing-secret" not in said


def test_the_cache_keeps_to_its_limit_and_training_is_the_same(
    corpus: Corpus, here: Path, server: S3Server, folder: Path, expected: list[tuple[float, float]]
) -> None:
    sizes = [record.tar_size for record in Snapshot.open(Folder(folder)).split("train").shards]
    limit = 2 * max(sizes)
    assert run(corpus, "--shards", URL, *QUICK, "--set", f"{PLACE}.cache_gb={limit / 1e9}")[0] == 0
    assert losses() == expected
    assert 0 < sum(path.stat().st_size for path in tars(here)) <= limit + 3 * max(sizes)  # those that came at once
    gets = [path for method, path in server.requests if method == "GET" and path.endswith(".tar")]
    assert len(gets) > len(set(gets))  # what was let go had to come again


def test_a_damaged_copy_ends_training_and_is_fetched_anew_by_the_next(
    corpus: Corpus,
    here: Path,
    server: S3Server,
    expected: list[tuple[float, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    for path in tars(here):
        if "train-000004" in path.name:
            path.write_bytes(bytes(path.stat().st_size))
    assert run(corpus, "--shards", URL, *QUICK)[0] in WITHIN
    assert "The copy in the cache is deleted" in capsys.readouterr().err
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    assert losses() == expected


def test_what_a_bucket_lacks_is_encoded(
    corpus: Corpus, server: S3Server, expected: list[tuple[float, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    server.delete(f"{PREFIX}/train-000001.tar")
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    assert losses() == [pytest.approx(row, rel=1e-4) for row in expected]
    assert "train-000001.tar is gone" in capsys.readouterr().err


def test_an_object_that_goes_away_while_training_is_named(
    corpus: Corpus, server: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Catalog.open_to_read

    def open_then_lose(*words: object) -> Catalog:
        catalog = opened(*words)  # type: ignore[arg-type]
        server.delete(f"{PREFIX}/train-000001.tar")
        return catalog

    monkeypatch.setattr(Catalog, "open_to_read", open_then_lose)
    assert run(corpus, "--shards", URL, *QUICK)[0] in WITHIN
    assert f"{URL}/train-000001.tar: is gone" in capsys.readouterr().err


def test_build_missing_says_that_it_needs_a_folder(
    corpus: Corpus, server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", URL, "--build_missing")[0] == 2
    assert "add what is missing with build-shards" in capsys.readouterr().err


def test_sharded_embeddings_read_a_url(server: S3Server, folder: Path) -> None:
    near, far = (ShardedEmbeddings(place, batch_size=2) for place in (folder, URL))
    pairs = list(zip(near, far, strict=True))
    assert len(pairs) == 3
    for ours, theirs in pairs:
        assert ours.keys == theirs.keys
        assert (ours.embedding == theirs.embedding).all()
    assert [path for method, path in server.requests if method == "GET" and path.endswith(".tar")]
