"""How the names of utterances tell whose they are: by the corpora's own names, or by a user's regular expression.

lrs2    <video>_<clip>             6330311066473698535_00011, of BBC programmes: they tell no speaker
lrs3    <video>_<clip>             gZpcTVqpaPw_50001; the video is YouTube's, 11 characters, which may hold _ and -
vox2    <speaker>_<video>_<clip>   id00017_01dfn2spqyE_00001, the video as in lrs3
"""

import re
from typing import Literal

Whose = Literal["video", "speaker"]
"""What a name tells of an utterance: the video that it was cut from, or who speaks."""

NAMES = {
    "lrs2": r"(?P<video>[^/_]+)_[^/_]+",
    "lrs3": r"(?P<video>[A-Za-z0-9_-]{11}|[^/_]+)_[^/_]+",
    "vox2": r"(?P<speaker>id[0-9]{5})_(?P<video>[A-Za-z0-9_-]{11})_[0-9]{5}",
}
"""Corpus -> pattern of an utterance's whole name."""


def utterance_pattern(names: str) -> re.Pattern[str]:
    """The pattern to search for in the path of an utterance, without its suffix.

    Args:
        names: A corpus of `NAMES`, whose names are the last part of the path; or a regular expression.

    Raises:
        re.error: It is neither.
    """
    known = NAMES.get(names)
    return re.compile(names if known is None else rf"(?:^|/)(?:{known})\Z")


def names_problem(names: str | None, whose: Whose) -> str | None:
    """What is wrong with a pattern that is to tell the `whose` of utterances; None where nothing is."""
    choices = f"expected {', '.join(NAMES)} or a regular expression with the group (?P<{whose}>...)"
    if names is None:
        return f"missing; mix_apart: {whose} needs the names of utterances to tell the {whose}: {choices}"
    try:
        groups = utterance_pattern(names).groupindex
    except re.error as error:
        return f"found {names!r}, which is no regular expression ({error}); {choices}"
    if whose in groups:
        return None
    if names in NAMES:
        return f"found {names}, whose names tell the {' and the '.join(groups)} and no {whose}; set mix_apart: video"
    return f"found {names!r}, which has no group named {whose}; {choices}"
