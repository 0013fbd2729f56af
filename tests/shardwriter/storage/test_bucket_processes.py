"""Several processes of one machine build into a bucket."""

from pathlib import Path

import pytest
from helpers.bucket import PREFIX, URL, bucket
from helpers.commands import run_main
from helpers.corpus import Corpus
from helpers.s3 import S3Server

from shardwriter import build_cli, inspect_cli


@pytest.mark.slow
def test_processes_publish_what_they_encode_into_one_bucket(
    s3: S3Server, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--conf_dir", corpus.config_file, "--data_split", "train", "--device", "cpu", "--utterances_per_shard", 1]
    with bucket(s3, tmp_path / "cache") as server:
        outcome = run_main(build_cli.main, [*words, "--shards", URL, "--num_processes", 2], capsys)
        assert outcome.code == 0, outcome.err
        assert "5 utterances in 5 shards" in outcome.out
        assert run_main(build_cli.main, [*words, "--shards", tmp_path / "folder"], capsys).code == 0
        names = [name for name in server.names(PREFIX) if not name.startswith("README")]
        assert len([name for name in names if name.endswith(".tar")]) == 5
        for name in names:
            assert server.read(f"{PREFIX}/{name}") == (tmp_path / "folder" / name).read_bytes(), name
        shown = run_main(inspect_cli.main, [URL, "--verify"], capsys)
        assert shown.code == 0, shown.out
        assert not list((tmp_path / "cache").rglob("staging/*.tar"))
