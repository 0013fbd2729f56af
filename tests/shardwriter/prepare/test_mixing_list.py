"""Lists of mixtures are read, and what is no list is refused with its line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iianet.errors import ManifestError
from shardwriter.prepare.mixing_list import Pair, read_mixing_list

AUDIO = Path("/audio")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mix_2_spk_tr.scp"


def test_lines_are_mixtures(path: Path) -> None:
    path.write_text("val/a_1.wav 2.16068 b_2.wav -2.16068\r\n\n  /whole/c_3.wav\t-0.5 d_4.wav 0.5\n")
    assert read_mixing_list(path, AUDIO) == [
        Pair(
            name="a_1_2.1607_b_2_-2.1607.wav",
            wavs=(AUDIO / "val/a_1.wav", AUDIO / "b_2.wav"),
            snrs=(2.16068, -2.16068),
        ),
        Pair(name="c_3_-0.5_d_4_0.5.wav", wavs=(Path("/whole/c_3.wav"), AUDIO / "d_4.wav"), snrs=(-0.5, 0.5)),
    ]


def test_whole_paths_of_another_machine_start_at_audio(path: Path) -> None:
    path.write_text("/data2/me/raw/val/a_1.wav 1 b_2.wav -1\n")
    (pair,) = read_mixing_list(path, AUDIO, "/data2/me/raw/")
    assert pair.wavs == (AUDIO / "val/a_1.wav", AUDIO / "b_2.wav")
    with pytest.raises(ManifestError, match=r"line 1: /data2/me/raw/val/a_1.wav lies outside /data2/you"):
        read_mixing_list(path, AUDIO, "/data2/you")


def test_a_line_that_is_there_twice_is_one_mixture(path: Path) -> None:
    path.write_text("a_1.wav 1 b_2.wav -1\n" * 2)
    assert len(read_mixing_list(path, AUDIO)) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.wav 1 b.wav", "found 3 words, 'a.wav 1 b.wav'; expected `wav1 snr1 wav2 snr2`"),
        ("a.wav 1 b.wav -1 c.wav 0", "found 6 words"),
        ("1 a.wav -1 b.wav", "found 'a.wav' as a level; expected a number of decibels, from -100 to 100"),
        ("a.wav nan b.wav -1", "found 'nan' as a level"),
        ("a.wav 1 b.wav -inf", "found '-inf' as a level"),
        ("a.wav 1e3 b.wav -1", "found '1e3' as a level"),
        ("a.wav 1_0 b.wav -1", "found '1_0' as a level"),
        ("a\0.wav 1 b.wav -1", "found a path with a zero byte"),
        ("x/a_1.wav 2 b_2.wav -2", "a_1_2_b_2_-2.wav is the name of an earlier line's mixture too"),
        ("a_1.wav 2.000001 b_2.wav -2", "a_1_2_b_2_-2.wav is the name of an earlier line's mixture too"),
    ],
)
def test_a_line_that_is_no_mixture_is_refused_with_its_number(path: Path, line: str, said: str) -> None:
    path.write_text(f"a_1.wav 2 b_2.wav -2\n\n{line}\n")
    with pytest.raises(ManifestError) as caught:
        read_mixing_list(path, AUDIO)
    assert str(caught.value).startswith(f"{path}: line 3: {said}")


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_list_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ManifestError, match="has no line"):
        read_mixing_list(path, AUDIO)


def test_a_list_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(ManifestError, match=r"mix_2_spk_tr.scp: cannot be read \(No such file"):
        read_mixing_list(path, AUDIO)


@given(
    st.lists(
        st.sampled_from([b"a.wav", b" ", b"\n", b"1", b"-1", b"\xff", b"\0", b"/", b"..", b"_", b"e5"]), max_size=30
    )
)
def test_any_bytes_are_a_list_or_are_refused(tmp_path_factory: pytest.TempPathFactory, words: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.scp"
    path.write_bytes(b"a_1.wav 1 b_2.wav -1\n" + b"".join(words))
    try:
        pairs = read_mixing_list(path, AUDIO)
    except ManifestError as error:
        assert str(error).startswith(f"{path}: line ")
    else:
        assert len({pair.name for pair in pairs}) == len(pairs)
