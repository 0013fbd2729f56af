"""inspect-shards: the table, one sample, JSON, and how it ends."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.builds import build_store, index, interrupt_build, opened, plans, tar
from helpers.inspection import BROKEN, FRAMES, STORED, Place, run, run_json

from shardwriter import open_store, write_store
from shardwriter.build.compact import Compaction
from shardwriter.format.names import EMBEDDING_MEMBER, parse_plan_name
from shardwriter.storage.folder import Folder
from shardwriter.store.transaction import open_transaction

SPLIT_KEYS = {"planned_shards", "shards", "utterances", "examples", "frames", "bytes", "failed", "missing", "stale"}
IDENTITY_KEYS = {"encoder", "precision", "preprocessing", "dtype", "dim", "fps", "audio"}


def test_the_table_has_a_row_for_each_split(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made.store) == 0
    table = capsys.readouterr().out.partition("\n\n")[0]
    rows = {line.split()[0]: line.split() for line in table.splitlines()}
    assert rows["train"][1:5] == ["3", "of", "3", "4"]
    assert rows["train"][-1] == "1"  # failed
    assert rows["val"][1:5] == ["1", "of", "1", "2"]


def test_random_weights_stand_out(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run(made.store)
    assert "RANDOM weights from seed 0" in capsys.readouterr().out


def test_failed_utterances_are_listed_with_path_and_reason(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run(made.store)
    assert f"train mouths/{BROKEN}.npz: not a complete npz" in capsys.readouterr().out


def test_json_has_exactly_the_promised_keys(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run_json(capsys, made.store)
    assert code == 0
    assert set(document) == {"store", "splits", "problems"}
    assert set(document["store"]) == {"path", "data_root", "plans", *IDENTITY_KEYS}
    assert list(document["splits"]) == ["train", "val"]
    for counts in document["splits"].values():
        assert set(counts) == SPLIT_KEYS


def test_json_has_the_numbers_of_what_was_built(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    document = run_json(capsys, made.store)[1]
    train = document["splits"]["train"]
    tars = sum(path.stat().st_size for path in made.store.glob("train-*.tar"))
    frames = sum(FRAMES["train"].values()) - FRAMES["train"][BROKEN]
    assert train == {
        "planned_shards": 3, "shards": 3, "utterances": STORED["train"], "examples": 8, "frames": frames, "bytes": tars,
        "failed": 1,
        "missing": None, "stale": None,
    }  # fmt: skip
    assert document["store"]["data_root"] == str(made.root)
    assert document["store"]["plans"] == plans(made.store)


def test_an_unfinished_store_says_how_to_resume(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    index(place.store, "train", 1).unlink()
    (place.store / "train.index").unlink()  # as a build does before it writes a shard
    assert run(place.store) == 0
    out = capsys.readouterr().out
    assert "train: 1 of 3 planned shards is not complete" in out
    assert f"To resume: build-shards --conf_dir CONFIG --shards {place.store}" in out


def test_a_lost_index_is_a_problem_as_a_lost_tar_is(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    lost = index(place.store, "train", 1)
    lost.unlink()
    code, document = run_json(capsys, place.store)
    assert code == 1
    (said,) = document["problems"]
    assert said.startswith(f"{lost.name}: is gone, though {lost.stem}.tar is there") and "put it back, or write" in said


@pytest.mark.parametrize("packs", [0, 4])
def test_an_overwrite_in_progress_is_shown(place: Place, packs: int, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("shardwriter.batch_size=1", "shardwriter.num_workers=1")
    before = run_json(capsys, place.store)[1]
    interrupt_build(place.corpus, place.store, *settings, packs=packs, splits=("train", "val"), overwrite=True)
    name = opened(place.store).record.pending
    assert name is not None
    done = len(list(place.store.glob(f"*-{parse_plan_name(name)}-*.index")))
    assert bool(done) == bool(packs)
    assert run_json(capsys, place.store) == (0, before)
    assert run(place.store) == 0
    out = capsys.readouterr().out
    assert f"{name}: an --overwrite is in progress and has {done} of 4 shards; this store stays in use" in out
    assert f"To resume: build-shards --conf_dir CONFIG --shards {place.store}" in out


def test_a_compaction_in_progress_is_shown(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Folder(place.store)
    with open_transaction(storage) as transaction:
        Compaction(storage=storage, utterances_per_shard=3).begin(transaction)
    assert run(place.store) == 0
    out = capsys.readouterr().out
    name = opened(place.store).record.pending
    assert f"{name}: a --compact is in progress and has 0 of 3 shards; this store stays in use" in out
    command = f"build-shards --conf_dir CONFIG --shards {place.store}"
    assert f"To resume: {command} --compact; to abandon it: --abandon instead" in out


def test_replaced_shards_that_stay_are_shown(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    [replaced] = plans(place.store)
    keep = "shardwriter.keep_replaced_days=7"
    build_store(place.corpus, place.store, keep, splits=("train", "val"), overwrite=True)
    code, document = run_json(capsys, place.store, "--verify")
    assert (code, document["notes"], document["store"]["plans"]) == (0, [], plans(place.store))
    assert run(place.store) == 0
    out = capsys.readouterr().out
    assert re.search(rf"{replaced}: was replaced \(20.*\), and its 4 shards stay while they may be read", out)


def test_a_lost_tar_is_a_problem(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(place.store, "val")
    path.unlink()
    code, document = run_json(capsys, place.store)
    assert code == 1
    assert document["problems"][0].startswith(f"{path.name}: is gone")
    assert document["splits"]["val"]["utterances"] == 0


def test_an_unreadable_index_leaves_the_other_splits_to_be_seen(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.store / "val.index").unlink()
    path = index(place.store, "val")
    path.write_bytes(b"junk")
    code, document = run_json(capsys, place.store)
    assert code == 1
    assert list(document["splits"]) == ["train"]
    assert f"{path.name}: not an index" in document["problems"][0]


@pytest.mark.parametrize("given", ["cat%2Etwo", "cat.two"])
def test_a_sample_is_found_by_key_and_by_name(made: Place, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run_json(capsys, made.store, "--key", given)
    [sample] = document["samples"]
    assert code == 0
    assert (sample["key"], sample["utterance"], sample["split"]) == ("cat%2Etwo", "cat.two", "train")
    assert (sample["shape"], sample["dtype"], sample["frames"], sample["seconds"]) == ([512, 5], "float16", 5, 0.2)
    assert sample["min"] <= sample["mean"] <= sample["max"]
    assert sample["metadata"]["mouth"] == "mouths/cat.two.npz"
    place = sample["members"][EMBEDDING_MEMBER]
    content = (made.store / f"{sample['shard']}.tar").read_bytes()[place["offset"] :][: place["size"]]
    assert content.startswith(b"\x93NUMPY")


def test_a_sample_is_shown_to_people(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made.store, "--key", "ann") == 0
    out = capsys.readouterr().out
    assert "(512, 4)" in out
    assert '"mouth": "mouths/ann.npz"' in out


def test_a_failed_sample_shows_its_reason(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made.store, "--key", BROKEN) == 1
    assert "is not stored: not a complete npz" in capsys.readouterr().out


def test_an_unknown_key_names_the_nearest(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made.store, "--key", "bobb") == 1
    assert "has no such utterance or mixture; did you mean bob?" in capsys.readouterr().out


def test_a_planned_key_that_is_not_stored_yet_is_no_unknown_one(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    index(place.store, "val").unlink()
    assert run(place.store, "--key", "fay") == 1
    assert "is planned for val but not stored yet" in capsys.readouterr().out


def test_a_store_of_somebodys_own_embeddings_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedding = np.zeros((8, 3), dtype=np.float32)
    write_store(tmp_path / "own", [("a.b", embedding, {"speaker": 7})], identity={"name": "mine", "layer": 3})
    assert run(tmp_path / "own", "--verify") == 0
    assert "mine, layer 3" in capsys.readouterr().out
    code, document = run_json(capsys, tmp_path / "own", "--key", "a.b")
    assert code == 0
    assert document["samples"][0]["metadata"] == {"speaker": 7}
    assert run_json(capsys, tmp_path / "own")[1]["splits"]["train"]["examples"] == 0


def test_no_store_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not a store" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recheck", "2"], "--recheck: needs --against"),
        (["--recheck", "0", "--against", "conf.yml"], "expected a whole number above 0"),
        (["--set", "exp.exp_name=x"], "--set: needs --against"),
        (["--plot", "picture.txt"], "--plot picture.txt: expected a file name"),
        (["--against", "nowhere.yml"], "nowhere.yml"),
    ],
)
def test_useless_flags_are_exit_code_2(
    made: Place, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made.store, *words) == 2
    assert message in capsys.readouterr().err


def test_json_to_programs_is_all_of_stdout_even_with_warnings(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    tar(place.store, "val").unlink()
    run(place.store, "--verify", "--json")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"]
    assert "WARNING" in captured.err


def test_the_name_of_a_mixture_gives_its_sources(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    [[mixture, *_], *_] = json.loads(made.corpus.list_file("val", "mix").read_text())
    for name in (mixture, Path(mixture).name, Path(mixture).stem):
        code, document = run_json(capsys, made.store, "--key", name)
        assert code == 0
        found = {sample["key"] for sample in document["samples"]}
        assert found == {"fay", "gus"}
        assert all(
            any(Path(example["mixture"]).stem == Path(mixture).stem for example in sample["metadata"]["audio"])
            for sample in document["samples"]
        )


def test_a_config_in_place_of_a_store_is_exit_code_2(made: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made.config) == 2
    said = capsys.readouterr().err
    assert f"error: {made.config}: neither a store nor a tar that can be read" in said
    assert "a config goes to --against CONFIG" in said


def test_one_sample_is_shown_without_counting_all_of_them(
    made: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardwriter.inspect_cli.summarise", lambda *_: pytest.fail("counts the whole store"))
    code, document = run_json(capsys, made.store, "--key", "fay")
    assert code == 0 and set(document) == {"samples", "problems"}


def test_a_lost_shard_of_write_store_is_not_for_build_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "own", [("a", np.zeros((8, 3), np.float32), {})])
    tar(tmp_path / "own", "train").unlink()
    assert run(tmp_path / "own") == 1
    said = capsys.readouterr()
    assert "so its utterances count as missing; put it back, or give write_store the same samples again" in said.out
    assert "its 1 utterances count as missing. Put it back, or give write_store the same samples again" in said.err
    assert "run build-shards" not in (said.out + said.err).lower()


def test_a_damaged_index_of_write_store_is_not_for_build_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [("a", np.zeros((8, 3), np.float32), {})]
    store = tmp_path / "own"
    write_store(store, samples)
    path = index(store, "train")
    (store / "train.index").unlink()
    path.write_bytes(b"junk")
    assert run(store, "--verify") == 1
    said = capsys.readouterr().out
    assert f"{path}: not an index of this format (4 bytes that do not end as a Parquet file of ours does)" in said
    assert "Put back what was there, or delete it and give write_store the same samples again" in said
    assert f"To fix it, delete these and give write_store the same samples again:\n  {path}" in said
    assert "run build-shards" not in said
    path.unlink()
    write_store(store, samples)
    np.testing.assert_array_equal(open_store(store)["a"].embedding, samples[0][1])


def test_a_store_without_audio_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "store", [("ann", np.zeros((8, 3), np.float16), {})])
    assert run(tmp_path / "store") == 0
    assert "none: no sample has wavs" in capsys.readouterr().out
