"""Names of mixtures are read and written as the published ones are."""

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shardwriter.prepare.mixture_name import Utterances, mixture_name, parse_mixture_name, snr_text

VIDEO = st.text(string.ascii_letters + string.digits + "_-", min_size=11, max_size=11)
FIVE = st.text(string.digits, min_size=5, max_size=5)
PART = st.text(string.ascii_letters + string.digits + "-.", min_size=1, max_size=20)
NAMES = {
    "lrs2": st.builds(lambda video, clip: f"{video}_{clip}", PART, PART),
    "lrs3": st.builds(lambda video, clip: f"{video}_{clip}", VIDEO, FIVE),
    "vox2": st.builds(lambda speaker, video, clip: f"id{speaker}_{video}_{clip}", FIVE, VIDEO, FIVE),
}


@pytest.mark.parametrize(
    ("corpus", "name", "first", "second"),
    [
        (
            "lrs2",
            "6330311066473698535_00011_0.53084_6339356267468615354_00010_-0.53084.wav",
            "6330311066473698535_00011",
            "6339356267468615354_00010",
        ),
        ("lrs2", "g03_lbax4n_0.29_g04_lbbc2a_-0.29.wav", "g03_lbax4n", "g04_lbbc2a"),
        ("lrs2", "1_2_3_4_5_-3.wav", "1_2", "4_5"),
        ("lrs3", "gZpcTVqpaPw_50001_2.1607_3GFG6Cvy9HQ_50005_-2.1607.wav", "gZpcTVqpaPw_50001", "3GFG6Cvy9HQ_50005"),
        ("lrs3", "g_-cTVq_aPw_50001_-1e-05_3GFG6Cvy9H__50005_1e-05.wav", "g_-cTVq_aPw_50001", "3GFG6Cvy9H__50005"),
        ("lrs3", "ab_-2_cdefg_50001_0_3GFG6Cvy9HQ_50005_0.wav", "ab_-2_cdefg_50001", "3GFG6Cvy9HQ_50005"),
        (
            "vox2",
            "id00017_01dfn2spqyE_00001_2.1607_id00018_5_-_abcdefg_00005_-2.1607.wav",
            "id00017_01dfn2spqyE_00001",
            "id00018_5_-_abcdefg_00005",
        ),
        (
            "vox2",  # an id that looks like a level, and as if another name began in it
            "id00017__15_id00018_00001_-3_id00018__-3_id12345_00005_3.wav",
            "id00017__15_id00018_00001",
            "id00018__-3_id12345_00005",
        ),
    ],
)
def test_published_names_are_read(corpus: str, name: str, first: str, second: str) -> None:
    assert parse_mixture_name(name, corpus) == (first, second)


@pytest.mark.parametrize(
    ("corpus", "name"),
    [
        ("lrs2", "a_b_1_c_d_-1.flac"),
        ("lrs2", "a_b_1_c_d_-1"),
        ("lrs2", "a_b_c_d.wav"),
        ("lrs2", "a_b_1_c_d.wav"),
        ("lrs2", "a_b_x_c_d_-1.wav"),
        ("lrs2", "a_b_1_c_d_-1_e.wav"),
        ("lrs2", "a_b_c_1_d_e_-1.wav"),
        ("lrs2", "_b_1_c_d_-1.wav"),
        ("lrs2", "a_b_1_c_d_nan.wav"),
        ("lrs2", ".wav"),
        ("vox2", "id00017_01dfn2spqyE_000011_1_id00018_01dfn2spqyE_00001_-1.wav"),  # a pattern found in it would do
        ("vox2", "x_id00017_01dfn2spqyE_00001_1_id00018_01dfn2spqyE_00001_-1.wav"),
        ("vox2", "id00017_01dfn2spqy_00001_1_id00018_01dfn2spqyE_00001_-1.wav"),
        ("vox2", "id00017_01dfn2spqyE_00001_1_id00018_01dfn2spqyE_00001_-1_mix.wav"),
        ("vox2", "a_b_1_c_d_-1.wav"),
    ],
)
def test_other_names_are_not(corpus: str, name: str) -> None:
    assert parse_mixture_name(name, corpus) is None


@pytest.mark.parametrize(
    ("last", "expected"),
    [("-2", ("a_b_1_ccccc_d", "e_f")), ("-1", ("a_b", "ccccc_d_2_e_f")), ("-5", None), ("2", None)],
)
def test_a_name_of_two_meanings_is_read_by_its_opposite_levels_or_not_at_all(
    last: str, expected: tuple[str, str] | None
) -> None:
    assert parse_mixture_name(f"a_b_1_ccccc_d_2_e_f_{last}.wav", "lrs3") == expected


@pytest.mark.parametrize("corpus", list(NAMES))
@given(data=st.data(), snr=st.floats(-10, 10).map(lambda snr: round(snr, 5)))
def test_a_name_that_is_made_is_read_again(corpus: str, data: st.DataObject, snr: float) -> None:
    utterances = Utterances(data.draw(NAMES[corpus]), data.draw(NAMES[corpus]))
    assume(corpus != "lrs3" or snr != 0)
    assert parse_mixture_name(mixture_name(utterances, snr, -snr), corpus) == utterances


@pytest.mark.parametrize(
    ("snr", "text"),
    [
        (2.16068, "2.1607"),
        (-4.17358, "-4.1736"),
        (0.14921, "0.14921"),
        (-0.53084, "-0.53084"),
        (1.5, "1.5"),
        (12.34567, "12.3457"),
        (-12.34567, "-12.3457"),
        (9.99999, "10"),
        (0.00001234567, "1.2346e-05"),
        (3.0, "3"),
        (-0.0, "0"),
        (-10.0, "-10"),
    ],
)
def test_levels_are_written_as_matlab_writes_them(snr: float, text: str) -> None:
    """As num2str gave them, but for the sign of nothing."""
    assert snr_text(snr) == text
