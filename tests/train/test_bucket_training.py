"""Training from a store in a bucket, while the network fails; equal to training from its folder."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bucket import ATTEMPTS, PREFIX, URL, bucket
from helpers.builds import tar
from helpers.corpus import Corpus
from helpers.runs import EPOCHS, build_store, losses, run, run_recorded
from helpers.s3 import Fault, S3Server
from torch.utils.data import DataLoader

from loaders.embeddings.sharded_embeddings import ShardedEmbeddings
from shardwriter.storage.folder import Folder
from shardwriter.storage.storage import Storage
from shardwriter.store.snapshot import Snapshot

PLACE = "datamodule.data_config"
QUICK = (*EPOCHS, "--set", f"{PLACE}.num_workers=0")
LOST = r"train-\w{10}-000002.tar"
"""A shard that cannot be had, as a regular expression."""
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
def server(s3: S3Server, here: Path, folder: Path) -> Iterator[S3Server]:
    """A bucket that holds the store."""
    with bucket(s3, here / "cache", read_timeout=1) as running:
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith("."):
                running.write(f"{PREFIX}/{path.name}", path.read_bytes())
        running.requests.clear()
        yield running


def tars(here: Path) -> list[Path]:
    """Copies of tars in the cache."""
    return [path for path in (here / "cache").rglob("*.tar") if path.parent.name != "locks"]


def downloads(server: S3Server) -> list[str]:
    """Tars that were downloaded, in order."""
    return [path for method, path in server.requests if method == "GET" and path.endswith(".tar")]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_ends_with_the_losses_of_the_folder_and_downloads_each_shard_once(
    workers: int, corpus: Corpus, here: Path, server: S3Server, expected: list[tuple[float, float]]
) -> None:
    assert run(corpus, "--shards", URL, *EPOCHS, "--set", f"{PLACE}.num_workers={workers}")[0] == 0
    assert losses() == expected
    gets = downloads(server)
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
    gets = downloads(server)
    assert len(gets) == len(set(gets)) == 9


@pytest.mark.parametrize(
    "fault", ["500", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("cut", "close", "hang"))]
)
def test_faults_that_pass_change_nothing(
    fault: Fault, corpus: Corpus, server: S3Server, expected: list[tuple[float, float]]
) -> None:
    for ending in (r"train-\w{10}-000000.tar", r"train-\w{10}-000003.tar", r"val-\w{10}-000001.tar"):
        server.fail("GET", ending, fault, times=2)
    server.fail("GET", "parquet", fault)
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    assert losses() == expected
    assert not [rule for rule in server.rules if rule.times]


@pytest.mark.parametrize("fault", ["500", pytest.param("close", marks=pytest.mark.slow)])
def test_faults_that_last_end_training_with_the_name_of_the_object(
    fault: Fault, corpus: Corpus, server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail("GET", LOST, fault, times=10_000)
    assert run(corpus, "--shards", URL, *QUICK)[0] in WITHIN
    said = capsys.readouterr().err
    assert re.search(rf"error: {URL}/{LOST}: cannot be read after {ATTEMPTS} attempts", said)
    assert "testing-secret" not in said


@pytest.mark.slow
def test_faults_that_last_end_training_with_workers_too(corpus: Corpus, here: Path, server: S3Server) -> None:
    server.fail("GET", LOST, "500", times=10_000)
    words = ("--shards", URL, *EPOCHS, "--set", f"{PLACE}.num_workers=2")
    done = run_recorded(corpus, *words, record=here / "record")
    assert done.returncode in WITHIN
    assert re.search(rf"error: {URL}/{LOST}: cannot be read after 5 attempts", done.stderr)


def test_the_cache_keeps_to_its_limit_and_training_is_the_same(
    corpus: Corpus, here: Path, server: S3Server, folder: Path, expected: list[tuple[float, float]]
) -> None:
    sizes = [record.tar_size for record in Snapshot.open(Folder(folder)).split("train").shards]
    limit = 2 * max(sizes)
    assert run(corpus, "--shards", URL, *QUICK, "--set", f"{PLACE}.cache_gb={limit / 1e9}")[0] == 0
    assert losses() == expected
    assert 0 < sum(path.stat().st_size for path in tars(here)) <= limit + 3 * max(sizes)  # those that came at once
    gets = downloads(server)
    assert len(gets) > len(set(gets))  # what was let go had to come again


def test_a_damaged_copy_counts_as_missing_and_is_fetched_anew_by_the_next_run(
    corpus: Corpus,
    here: Path,
    server: S3Server,
    expected: list[tuple[float, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    for path in tars(here):
        if path.name.startswith("train-") and "-000004." in path.name:
            path.write_bytes(bytes(path.stat().st_size))
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    assert losses() == [pytest.approx(row, rel=1e-4) for row in expected]
    assert "The copy in the cache is deleted; the next run downloads it again" in capsys.readouterr().err
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    assert losses() == expected


def test_what_a_bucket_lacks_is_encoded(
    corpus: Corpus,
    server: S3Server,
    folder: Path,
    expected: list[tuple[float, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = tar(folder, "train", 1).name
    server.delete(f"{PREFIX}/{name}")
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    assert losses() == [pytest.approx(row, rel=1e-4) for row in expected]
    assert f"{URL}/{name} is gone" in capsys.readouterr().err


def test_an_object_that_goes_away_while_training_is_named_and_counts_as_missing(
    corpus: Corpus,
    here: Path,
    server: S3Server,
    folder: Path,
    expected: list[tuple[float, float]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, name = Snapshot.open, tar(folder, "train", 1).name

    def open_then_lose(storage: Storage, *, hold: bool = True) -> Snapshot:
        snapshot = opened(storage, hold=hold)
        server.delete(f"{PREFIX}/{name}")
        return snapshot

    monkeypatch.setattr(Snapshot, "open", open_then_lose)
    assert run(corpus, "--shards", URL, *QUICK)[0] == 0
    assert losses() == [pytest.approx(row, rel=1e-4) for row in expected]
    assert f"{URL}/{name}: is gone; it was there when the store was opened" in capsys.readouterr().err


def test_build_missing_says_that_it_needs_a_folder(
    corpus: Corpus, server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", URL, "--build_missing")[0] == 2
    assert "add what is missing with build-shards" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("workers", "start"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_sharded_embeddings_read_a_url_in_workers_of_any_kind(
    workers: int, start: str | None, server: S3Server, folder: Path
) -> None:
    near, far = (ShardedEmbeddings(place, batch_size=2) for place in (folder, URL))
    loader = DataLoader(far, batch_size=None, num_workers=workers, multiprocessing_context=start)
    pairs = list(zip(near, loader, strict=True))
    assert len(pairs) == 3
    for ours, theirs in pairs:
        assert ours.keys == theirs.keys
        assert (ours.embedding == theirs.embedding).all()
    assert len(downloads(server)) == len(set(downloads(server))) == 6
