"""JSON out of files is bounded, and sealed with a digest of itself."""

import json

import pytest

from shardwriter.format.document import MOST_BYTES, parse_object, refuse_broken_seal, seal, take, take_count

FACTS = {"name": "ü", "count": 3, "nested": {"b": [1, 2.5, None], "a": True}}


def test_sealed_facts_read_back() -> None:
    found = parse_object(seal(FACTS))
    refuse_broken_seal(found)
    assert {name: found[name] for name in FACTS} == FACTS and len(found) == len(FACTS) + 1


def test_a_path_that_is_no_utf8_reads_back() -> None:
    found = parse_object(seal({"path": "caf\udce9"}))
    refuse_broken_seal(found)
    assert found["path"] == "caf\udce9"


def test_the_seal_is_of_what_the_facts_say_not_of_how_they_are_laid_out() -> None:
    turned = json.dumps(dict(reversed(parse_object(seal(FACTS)).items())), indent=7).encode()
    refuse_broken_seal(parse_object(turned))


@pytest.mark.parametrize("change", [{"count": 4}, {"nested": {}}, {"more": 1}, {"digest": None}, {"count": 3.0}])
def test_facts_that_were_changed_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(
        ValueError, match=r"^its digest is \w{32}, and it says .* damaged, or changed by something else"
    ):
        refuse_broken_seal({**parse_object(seal(FACTS)), **change})


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": NaN}',
        b"[1]",
        b"\xff",
        b"",
        b" " * (MOST_BYTES + 1),
    ],
    ids=["lists", "objects", "digits", "constant", "no object", "no text", "empty", "too long"],
)
def test_what_is_no_bounded_object_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        parse_object(content)


def test_values_are_taken_as_what_they_must_be() -> None:
    assert (take(FACTS, "name", str), take(FACTS, "nested", dict), take_count(FACTS, "count")) == (
        "ü",
        FACTS["nested"],
        3,
    )
    with pytest.raises(ValueError, match=r"^name is 'ü' \(str\); expected a list"):
        take(FACTS, "name", list)
    with pytest.raises(ValueError, match=r"^other is missing; expected text"):
        take(FACTS, "other", str)


@pytest.mark.parametrize("value", [-1, 2**60, True, 1.0, "1", None])
def test_a_count_is_an_integer_that_can_be(value: object) -> None:
    with pytest.raises(ValueError, match=r"^count is .*; expected an integer from 0"):
        take_count({"count": value}, "count")
