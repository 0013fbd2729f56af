"""The corpus manifest: which utterances and examples there are, in which order, and what is wrong with a bad one."""

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.corpus import KINDS, Corpus, edit_list, edit_lists, make_corpus, make_frames, write_mouth

from iianet.errors import ManifestError
from shardwriter.corpus.manifest import Manifest, load_manifests
from shardwriter.format.names import hash_position


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus")


def load(corpus: Corpus, split: str = "train", *overrides: str) -> Manifest:
    return load_manifests(corpus.config(*overrides))[split]


def test_utterance_is_one_mouth_and_serves_all_its_examples(corpus: Corpus) -> None:
    manifest = load(corpus)
    assert {utterance.key for utterance in manifest.utterances} == set(corpus.names["train"])
    assert len(manifest.examples) == 2 * len(corpus.rows("train", "mix"))
    served = np.bincount(manifest.utterance_of_example())
    assert sorted(served.tolist()) == [1, 1, 2, 2, 2, 2]


def test_examples_say_what_the_lists_say(corpus: Corpus) -> None:
    manifest = load(corpus)
    found = {(manifest.utterances[example.utterance].mouth, *vars(example).values()) for example in manifest.examples}
    lists = [corpus.rows("train", kind) for kind in KINDS]
    asked = {
        (mouth, corpus_index(manifest, mouth), mix[0], wav, speaker, num_samples)
        for mix, *sources in zip(*lists, strict=True)
        for speaker, (wav, mouth, num_samples) in enumerate(sources, start=1)
    }
    assert found == asked


def corpus_index(manifest: Manifest, mouth: str) -> int:
    return [utterance.mouth for utterance in manifest.utterances].index(mouth)


def test_utterances_lie_in_hash_order_whatever_the_order_of_the_lists(corpus: Corpus) -> None:
    before = load(corpus)
    keys = [utterance.key for utterance in before.utterances]
    assert keys == sorted(keys, key=hash_position) != sorted(keys)
    assert before.utterance_of_example().tolist() == sorted(before.utterance_of_example())
    edit_lists(corpus, "train", lambda rows: rows[::-1])
    after = load(corpus)
    assert after.utterances == before.utterances
    assert set(after.examples) == set(before.examples)


def test_digest_does_not_depend_on_folders(tmp_path: Path) -> None:
    here, there = make_corpus(tmp_path / "a"), make_corpus(tmp_path / "b/c/d", absolute=True)
    assert load(here).digest() == load(there).digest()


@pytest.mark.parametrize("change", ["num_samples", "speaker", "mixture", "mouth", "fewer"])
def test_digest_tells_which_examples_there_are(corpus: Corpus, change: str) -> None:
    before = load(corpus).digest()
    if change == "num_samples":
        for kind in KINDS:
            edit_list(corpus, "train", kind, lambda rows: rows[0].__setitem__(-1, 1000))
    elif change == "speaker":
        one, other = corpus.rows("train", "s1"), corpus.rows("train", "s2")
        edit_list(corpus, "train", "s1", lambda _: other)
        edit_list(corpus, "train", "s2", lambda _: one)
    elif change == "mixture":
        edit_list(corpus, "train", "mix", lambda rows: rows[0].__setitem__(0, "audio/tr/mix/other.wav"))
    elif change == "mouth":
        edit_list(corpus, "train", "s1", lambda rows: rows[0].__setitem__(1, "mouths/other.npz"))
    else:
        edit_lists(corpus, "train", lambda rows: rows[1:])
    assert load(corpus).digest() != before


def test_absolute_and_relative_paths_give_the_same_manifest(tmp_path: Path) -> None:
    relative = make_corpus(tmp_path / "relative")
    absolute = make_corpus(tmp_path / "absolute", absolute=True)
    assert Path(absolute.rows("train", "mix")[0][0]).is_absolute()
    assert not Path(relative.rows("train", "mix")[0][0]).is_absolute()
    for split in ("train", "val", "test"):
        one, other = load(relative, split), load(absolute, split)
        assert (one.utterances, one.examples) == (other.utterances, other.examples)
        assert (one.data_root, other.data_root) == (relative.root, absolute.root)
        assert all((other.data_root / utterance.mouth).is_file() for utterance in other.utterances)


def test_data_root_is_the_configs_else_the_stores_else_the_common_ancestor(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "one/two", absolute=True)
    config = corpus.config()
    assert load_manifests(config)["train"].data_root == corpus.root
    recorded = load_manifests(config, recorded_root=str(tmp_path))["train"]
    assert recorded.data_root == tmp_path
    assert recorded.utterances[0].mouth.startswith("one/two/mouths/")
    config = corpus.config(f"datamodule.data_config.data_root={tmp_path / 'one'}")
    assert load_manifests(config, recorded_root=str(tmp_path))["train"].data_root == tmp_path / "one"


def test_data_root_does_not_depend_on_the_splits_asked_for(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "one", absolute=True)
    edit_list(corpus, "train", "mix", lambda rows: rows[0].__setitem__(0, str(tmp_path / "other/mix.wav")))
    assert load_manifests(corpus.config(), ["val"])["val"].data_root == tmp_path
    assert load_manifests(corpus.config())["val"].data_root == tmp_path


def test_relative_paths_start_at_the_working_directory_by_default(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus.root)
    assert load(corpus, "train", "datamodule.data_config.data_root=null").data_root == corpus.root


def test_path_out_of_data_root_is_kept(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", absolute=True)
    manifest = load(corpus, "train", f"datamodule.data_config.data_root={tmp_path / 'elsewhere'}")
    assert manifest.utterances[0].mouth.startswith("../corpus/mouths/")
    assert manifest.utterances[0].key in corpus.names["train"]


def clash(corpus: Corpus) -> tuple[Path, Path]:
    """Give two npz in two folders one stem."""
    paths = [corpus.root / "mouths" / folder / "same.npz" for folder in ("a", "b")]
    for path in paths:
        write_mouth(path, make_frames(2))
    for kind, path in zip(("s1", "s2"), paths, strict=True):
        name = str(path.relative_to(corpus.root))
        edit_list(corpus, "train", kind, lambda rows, name=name: rows[0].__setitem__(1, name))
    return paths[0], paths[1]


def test_two_npz_with_one_key_are_an_error_that_names_both_and_the_cure(corpus: Corpus) -> None:
    one, other = clash(corpus)
    with pytest.raises(ManifestError, match=re.escape(f"{one} and {other} have one key, 'same'")) as caught:
        load(corpus)
    assert "key_from: path" in str(caught.value)


def test_key_from_path_tells_two_npz_of_one_name_apart(corpus: Corpus) -> None:
    clash(corpus)
    manifest = load(corpus, "train", "datamodule.data_config.key_from=path")
    keys = {utterance.key for utterance in manifest.utterances}
    assert {"mouths%2Fa%2Fsame", "mouths%2Fb%2Fsame"} < keys
    assert {utterance.name for utterance in manifest.utterances} > {"mouths/a/same", "mouths/b/same"}


def test_key_from_path_needs_a_data_root(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, absolute=True)
    with pytest.raises(ManifestError, match=r"give datamodule\.data_config\.data_root or --data_root"):
        load(corpus, "train", "datamodule.data_config.key_from=path")


def test_key_from_path_refuses_an_npz_out_of_data_root(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", absolute=True)
    root = f"datamodule.data_config.data_root={tmp_path / 'elsewhere'}"
    with pytest.raises(ManifestError, match="lies outside data_root"):
        load(corpus, "train", "datamodule.data_config.key_from=path", root)


def test_lists_of_unequal_length_are_an_error_with_the_lengths(corpus: Corpus) -> None:
    edit_list(corpus, "train", "s2", lambda rows: rows[:-1])
    with pytest.raises(ManifestError, match=r"tr: the lists differ in length.*'s1.json': 5, 's2.json': 4"):
        load(corpus)


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("mix", ["a.wav"], "[wav, num_samples]"),
        ("mix", ["a.wav", "100"], "[wav, num_samples]"),
        ("mix", ["a.wav", 100.0], "[wav, num_samples]"),
        ("mix", ["a.wav", True], "[wav, num_samples]"),
        ("mix", "a.wav", "[wav, num_samples]"),
        ("s1", ["a.wav", 100], "[wav, mouth_npz, num_samples]"),
        ("s2", ["a.wav", None, 100], "[wav, mouth_npz, num_samples]"),
        ("s2", {"wav": "a.wav"}, "[wav, mouth_npz, num_samples]"),
    ],
)
def test_entry_of_other_types_is_named(corpus: Corpus, kind: str, row: object, expected: str) -> None:
    path = edit_list(corpus, "train", kind, lambda rows: rows.__setitem__(3, row))
    with pytest.raises(ManifestError, match=re.escape(f"{path}: entry 3 is {row!r}; expected {expected}")):
        load(corpus)


@pytest.mark.parametrize("text", ["", "[[1,", "not json", "\udcff"])
def test_invalid_json_is_named(corpus: Corpus, text: str) -> None:
    path = corpus.list_file("val", "s1")
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ManifestError, match=re.escape(f"{path}: not JSON")):
        load(corpus)


def test_json_that_is_no_list_is_named(corpus: Corpus) -> None:
    path = edit_list(corpus, "train", "mix", lambda rows: {"rows": rows})
    with pytest.raises(ManifestError, match=re.escape(f"{path}: holds a dict; expected a list of [wav, num_samples]")):
        load(corpus)


@pytest.mark.parametrize("kind", ["mix", "s1", "s2"])
def test_missing_list_is_named_with_the_cure(corpus: Corpus, kind: str) -> None:
    path = corpus.list_file("test", kind)
    path.unlink()
    with pytest.raises(ManifestError, match=re.escape(f"{path}: cannot be read")) as caught:
        load(corpus)
    assert "test_dir" in str(caught.value)


def test_split_that_is_not_asked_for_may_be_missing(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, {"train": 2})
    assert list(load_manifests(corpus.config(), ["train"])) == ["train"]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def test_a_mixture_of_another_length_than_its_sources_is_left_out_and_counted(
    corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    before = load(corpus)
    edit_list(corpus, "train", "s2", lambda rows: rows[2].__setitem__(-1, 77))
    wav = corpus.rows("train", "s2")[2][0]
    manifest = load(corpus)
    assert len(manifest.examples) == len(before.examples) - 2
    assert corpus.rows("train", "mix")[2][0] not in manifest.examples.column("mixture").to_pylist()
    (message,) = warnings_of(caplog)
    assert message.startswith("train: 1 of 5 mixtures left out: different in length")
    assert f"{corpus.list_file('train', 'mix').parent}: entry 2: " in message and f"{wav} has 77" in message


def test_lists_whose_entries_do_not_belong_together_are_refused(corpus: Corpus) -> None:
    edit_list(corpus, "train", "s2", lambda rows: [[*row[:-1], 77] for row in rows])
    expected = r"train: 5 of 5 mixtures left out: different in length from their sources; entry i of .* must be one .*"
    with pytest.raises(ManifestError, match=rf"{expected}tr: entry 0: .*has 77.*Make the lists again"):
        load(corpus)


@pytest.mark.parametrize("escaped", [True, False])
def test_a_name_that_is_not_utf_8_leaves_out_its_mixture_alone(
    corpus: Corpus, caplog: pytest.LogCaptureFixture, escaped: bool
) -> None:
    path = edit_list(corpus, "train", "s1", lambda rows: rows[1].__setitem__(0, "audio/caf\udce9.wav"))
    if not escaped:
        path.write_bytes(path.read_bytes().replace(b"\\udce9", b"\xe9"))
    assert len(load(corpus).examples) == 8
    (message,) = warnings_of(caplog)
    assert "1 of 5 mixtures left out: with names that are not UTF-8; rename the files" in message
    assert r"entry 1: " in message and r"audio/caf\udce9.wav" in message and message.isascii()


@pytest.mark.parametrize("mouth", ["", "mouths/"])
def test_a_mixture_without_a_mouth_is_left_out(corpus: Corpus, caplog: pytest.LogCaptureFixture, mouth: str) -> None:
    edit_list(corpus, "train", "s1", lambda rows: rows[1].__setitem__(1, mouth))
    assert len(load(corpus).examples) == 8
    assert "1 of 5 mixtures left out: without a mouth" in warnings_of(caplog)[0]


def test_what_is_left_out_is_said_again_where_the_parsed_manifest_is_kept(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardwriter.corpus.cache.SMALLEST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    edit_list(corpus, "train", "s2", lambda rows: rows[2].__setitem__(-1, 77))
    first, again = load(corpus).left_out, load(corpus).left_out
    assert list(first) == list(again) and len(again) == 1
    said = warnings_of(caplog)
    assert len(said) == 2 and said[0] == said[1]


def test_a_user_without_a_home_reads_the_lists_each_time(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardwriter.corpus.cache.SMALLEST", 0)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(corpus.root)
    assert len(load(corpus).utterances) == 6
    assert not (corpus.root / "~").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_lists_with_a_byte_order_mark_or_in_utf_16_are_read(corpus: Corpus, encoding: str) -> None:
    before = load(corpus)
    for kind in KINDS:
        path = corpus.list_file("train", kind)
        path.write_bytes(path.read_text().encode(encoding))
    assert load(corpus).digest() == before.digest()


@pytest.mark.parametrize(("text", "why"), [("[" * 100_000, "nest|recursion"), (f'[["a", {"1" * 5000}]]', "digits")])
def test_a_list_that_python_s_parser_cannot_take_is_named(corpus: Corpus, text: str, why: str) -> None:
    path = corpus.list_file("train", "mix")
    path.write_text(text)
    with pytest.raises(ManifestError, match=rf"mix.json: not JSON \(.*({why})"):
        load(corpus)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_that_is_a_fifo_is_not_waited_for(corpus: Corpus, kind: str) -> None:
    path = corpus.list_file("train", kind)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(
        ManifestError, match=rf"{kind}.json: cannot be read \(a folder, a FIFO or a device; expected a regular file\)"
    ):
        load(corpus)


def test_more_samples_than_there_can_be_are_refused(corpus: Corpus) -> None:
    path = edit_list(corpus, "train", "mix", lambda rows: rows[3].__setitem__(-1, 10**30))
    with pytest.raises(ManifestError, match=rf"{path}: entry 3 is .*expected \[wav, num_samples\]"):
        load(corpus)


def test_paths_of_windows_are_refused_with_the_cure(corpus: Corpus) -> None:
    path = edit_list(corpus, "train", "s1", lambda rows: rows[1].__setitem__(1, r"D:\corpus\mouths\a.npz"))
    with pytest.raises(ManifestError, match=rf"{path}: entry 1 is .*backslashes of Windows.*Write / for each"):
        load(corpus)


def test_a_backslash_in_a_name_of_this_machine_is_a_character(corpus: Corpus) -> None:
    edit_list(corpus, "train", "s1", lambda rows: rows[1].__setitem__(1, r"mouths/a\b.npz"))
    assert r"a%5Cb" in load(corpus).utterances.column("key").to_pylist()


def test_whole_and_relative_paths_together_need_a_data_root(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", absolute=True)
    edit_list(corpus, "train", "mix", lambda rows: rows[0].__setitem__(0, "audio/tr/mix/a.wav"))
    with pytest.raises(
        ManifestError, match=r"whole paths \(in /.*\) and some by relative ones \(in audio/tr/mix\).*--data_root"
    ):
        load(corpus)
    assert load(corpus, "train", f"datamodule.data_config.data_root={corpus.root}").data_root == corpus.root
    assert load_manifests(corpus.config(), recorded_root=str(corpus.root))["train"].data_root == corpus.root


@pytest.mark.parametrize("absolute", [False, True])
def test_relative_paths_that_two_corpora_share_draw_a_warning_with_the_root_that_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, absolute: bool
) -> None:
    one = make_corpus(tmp_path / "one", absolute=absolute)
    other = make_corpus(tmp_path / "other", absolute=absolute)
    edit_lists(other, "train", lambda rows: rows[:1])
    both = f"[{one.root}/json/tr, {other.root}/json/tr]"
    settings = (f"datamodule.data_config.train_dir={both}", "datamodule.data_config.key_from=path")
    load(one, "train", *settings, f"datamodule.data_config.data_root={tmp_path if absolute else one.root}")
    expected = (
        rf"train: the lists of {one.root}/json/tr and {other.root}/json/tr name 3 wavs alike, by relative paths "
        rf"\(e\.g\. audio/tr/mix/\S+\.wav\), which all start at {one.root}, so one file .* with whole paths"
    )
    assert bool(re.search(expected, caplog.text)) is not absolute
    assert ("wavs alike" in caplog.text) is not absolute


def test_a_data_root_that_is_not_utf_8_is_refused(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/data/caf\udce9"))
    with pytest.raises(ManifestError, match=r"/data/caf\\udce9: data_root has a name that is not UTF-8; rename"):
        load(corpus, "train", "datamodule.data_config.data_root=null")


def test_a_mixture_listed_twice_draws_a_warning_with_count_and_name(
    corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    edit_lists(corpus, "train", lambda rows: [*rows, rows[1], rows[1], rows[2]])
    load(corpus)
    (message,) = warnings_of(caplog)
    assert "2 mixtures listed more than once, which count as often in training (e.g. " in message
    assert corpus.rows("train", "mix")[1][0] in message


def test_a_mixture_of_one_mouth_with_itself_draws_a_warning(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    mouth = corpus.rows("train", "s1")[1][1]
    edit_list(corpus, "train", "s2", lambda rows: rows[1].__setitem__(1, mouth))
    load(corpus)
    (message,) = warnings_of(caplog)
    assert "1 mixture of one mouth with itself" in message and corpus.rows("train", "mix")[1][0] in message


def test_utterance_in_two_splits_draws_a_warning(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    load(corpus)
    assert not caplog.records
    mouth = corpus.rows("train", "s1")[0][1]
    edit_list(corpus, "val", "s1", lambda rows: rows[0].__setitem__(1, mouth))
    load(corpus)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "1 utterances are in more than one split (tr_000 is in train and val)" in record.getMessage()


def test_sources_named_otherwise_than_their_mixture_draw_a_warning(
    corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    edit_list(corpus, "train", "s1", lambda rows: rows[0].__setitem__(0, "audio/tr/s1/other.wav"))
    load(corpus)
    (record,) = caplog.records
    assert "1 sources are named otherwise than their mixture" in record.getMessage()


def test_split_without_mixtures_has_no_utterances(tmp_path: Path) -> None:
    manifest = load(make_corpus(tmp_path, {"train": 2, "val": 0, "test": 0}), "val")
    assert (list(manifest.utterances), list(manifest.examples)) == ([], [])
