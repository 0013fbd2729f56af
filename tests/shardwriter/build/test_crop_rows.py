"""videonet.videonet_config.crop_rows: a store is of the rows that its encoder saw, and is refused to any other."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.builds import build_store, interrupt_build, opened, shards
from helpers.commands import run_main
from helpers.corpus import Corpus, make_corpus

from iianet.errors import ConfigError, StoreError
from shardwriter import build_cli, inspect_cli

pytestmark = pytest.mark.usefixtures("quick")

ROWS = "videonet.videonet_config.crop_rows"
FIFTY = f"{ROWS}=50"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus", {"train": 3, "val": 2, "test": 2}, frames=4)


def test_the_identity_says_how_many_rows_only_where_not_all_were_seen(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (("default", []), ("88", [f"{ROWS}=88"]), ("50", [FIFTY])):
        build_store(corpus, tmp_path / name, *words)
    default, whole, few = (opened(tmp_path / name) for name in ("default", "88", "50"))
    assert "crop_rows" not in (tmp_path / "default" / "store.json").read_text()
    assert whole.record.identity == default.record.identity
    assert whole.record.plans == default.record.plans != few.record.plans
    assert few.identity.preprocessing == {**whole.identity.preprocessing, "crop_rows": 50}
    assert [header.identity for header in few.active] == [few.identity]
    assert (default.identity.crop_rows, few.identity.crop_rows) == (88, 50)
    capsys.readouterr()
    assert "crop_rows 50" in run_main(inspect_cli.main, [tmp_path / "50"], capsys).out


@pytest.mark.parametrize(("made", "asked"), [(50, 88), (88, 50)])
def test_a_store_of_other_rows_is_refused_with_both_and_the_cure(
    corpus: Corpus, store: Path, made: int, asked: int
) -> None:
    build_store(corpus, store, f"{ROWS}={made}", splits=("val",))
    with pytest.raises(StoreError) as refused:
        build_store(corpus, store, f"{ROWS}={asked}")
    said = str(refused.value)
    assert f"(crop_rows: {asked} here, {made} there)" in said
    assert f"--set {ROWS}={made}" in said and "another --shards folder" in said and "--overwrite" in said
    build_store(corpus, store, f"{ROWS}={asked}", overwrite=True)
    assert opened(store).identity.crop_rows == asked
    build_store(corpus, store, f"{ROWS}={asked}")


def test_an_overwrite_with_other_rows_is_resumed_with_its_own_alone(corpus: Corpus, store: Path) -> None:
    build_store(corpus, store)
    interrupt_build(corpus, store, FIFTY, packs=1, overwrite=True)
    assert opened(store).identity.crop_rows == 88
    build_store(corpus, store)  # the active store, not the pending one
    assert opened(store).identity.crop_rows == 88
    report = build_store(corpus, store, FIFTY, overwrite=True)
    assert sum(counts["resumed"] for counts in report.planned.values()) > 0
    assert opened(store).identity.crop_rows == 50


def test_compacted_it_is_of_the_same_rows(corpus: Corpus, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_store(corpus, store, FIFTY, "shardwriter.utterances_per_shard=1", limit=1)
    build_store(corpus, store, FIFTY, "shardwriter.utterances_per_shard=1")
    words = ["--conf_dir", corpus.config_file, "--shards", store, "--compact", "--set", FIFTY]
    assert run_main(build_cli.main, words, capsys).code == 0
    assert opened(store).identity.crop_rows == 50
    assert len(shards(store, "train")) == 1


@pytest.mark.parametrize("flags", [(), ("--check",)])
def test_embeddings_of_an_earlier_tool_are_of_all_rows(
    corpus: Corpus, store: Path, flags: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = "--import_embeddings: the earlier tool encoded all 88 rows of the crop, and .*crop_rows is 50; set crop_rows"
    with pytest.raises(ConfigError, match=said):
        build_store(corpus, store, FIFTY, import_embeddings=True)
    words = ["--conf_dir", corpus.config_file, "--shards", store, "--import_embeddings", "--set", FIFTY, *flags]
    refused = run_main(build_cli.main, words, capsys)
    assert refused.code == 2 and "the earlier tool encoded all 88 rows" in refused.err + refused.out
    assert not store.exists()
