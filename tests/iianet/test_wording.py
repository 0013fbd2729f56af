import pytest

from iianet.wording import duration, nearest, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
        ("\x07\x00\r", r"\x07\x00\r"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        ("嘴部视频 é Ω", "嘴部视频 é Ω"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_name_that_pretends_to_be_a_line_of_ours_stays_on_its_line() -> None:
    assert printable("key\nINFO: all is well", keep="") == r"key\nINFO: all is well"


@pytest.mark.parametrize(("seconds", "words"), [(5.2, "5 s"), (240, "4 min"), (3 * 3600 + 300, "3 h 05 min")])
def test_times_are_told_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_one_name_that_begins_so_is_the_nearest() -> None:
    assert nearest("bf16", ["32-true", "bf16-mixed", "16-mixed"]) == "bf16-mixed"
    assert nearest("--conf", ["--conf_dir", "--device"]) == "--conf_dir"
    assert nearest("", ["a"]) is None
    assert nearest("xyz", ["bf16-mixed"]) is None
