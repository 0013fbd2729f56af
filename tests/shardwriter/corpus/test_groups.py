"""Names of mouths tell the speaker or the video of their utterances."""

from pathlib import Path

import pyarrow as pa
import pytest

from iianet.config.utterance_names import Whose
from iianet.errors import ManifestError
from shardwriter.corpus import groups
from shardwriter.corpus.groups import groups_of
from shardwriter.corpus.manifest_data import EXAMPLE_SCHEMA, UTTERANCE_SCHEMA, Examples, Manifest, Utterances

A, B = "id00017", "id00018"
VOX2 = [
    f"{A}_01dfn2spqyE_00001",
    f"{B}_01dfn2spqyE_00002",  # the same video
    f"{A}___-_id00018_00003",  # a video whose name holds _ and - and the name of another speaker
    f"{A}_01dfn2spqyE_00004",
    f"{B}_5_-_abcdefg_00005",
]


def manifest_of(mouths: list[str]) -> Manifest:
    rows = dict.fromkeys(UTTERANCE_SCHEMA.names, mouths)
    return Manifest(
        split="train",
        data_root=Path("/data"),
        utterances=Utterances(pa.table(rows, schema=UTTERANCE_SCHEMA)),
        examples=Examples(EXAMPLE_SCHEMA.empty_table()),
    )


@pytest.mark.parametrize(
    ("whose", "names", "mouths", "expected"),
    [
        ("speaker", "vox2", VOX2, [0, 1, 0, 0, 1]),
        ("video", "vox2", VOX2, [0, 0, 1, 0, 2]),
        ("video", "lrs2", ["6330311066473698535_00011", "633_00011", "6330311066473698535_00012"], [0, 1, 0]),
        ("video", "lrs3", ["gZpcTVqpaPw_50001", "g_-cTVq_aPw_50001", "g_-cTVq_aPw_50002", "spk0_u1"], [0, 1, 1, 2]),
        ("speaker", r"(?P<speaker>[^/]+)/[^/]+$", ["a/one", "b/one", "x/a/two"], [0, 1, 0]),
        ("speaker", r"s(?P<speaker>\d+)", ["s1x", "s2x", "s1y"], [0, 1, 0]),
    ],
)
@pytest.mark.parametrize("folder", ["", "mouths/", "id00099_xxxxxxxxxxx_00001/"])
def test_names_are_grouped(whose: Whose, names: str, mouths: list[str], expected: list[int], folder: str) -> None:
    found = groups_of(manifest_of([f"{folder}{name}.npz" for name in mouths]), whose, names)
    assert found.tolist() == expected


def test_parts_of_a_manifest_share_their_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "ROWS_AT_A_TIME", 2)
    assert groups_of(manifest_of([f"{name}.npz" for name in VOX2]), "speaker", "vox2").tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("whose", "names", "mouth"),
    [
        ("speaker", "vox2", "id00017_01dfn2spqyE_00001_x"),
        ("speaker", "vox2", "xid00017_01dfn2spqyE_00001"),
        ("speaker", "vox2", "id00017_01dfn2spqy_00001"),
        ("speaker", "vox2", "id00017_01dfn2spqyE_00001\n"),
        ("video", "lrs2", "6330311066473698535_00011_1"),
        ("video", "lrs3", "word"),
        ("speaker", "(?P<speaker>a)?", "b"),
    ],
)
def test_names_that_do_not_tell_are_refused(whose: Whose, names: str, mouth: str) -> None:
    mouths = ["id00017_01dfn2spqyE_00001.npz", f"{mouth}.npz"]
    with pytest.raises(ManifestError, match=rf"of 2 do not tell the {whose}, e\.g\. .*mix_apart: null"):
        groups_of(manifest_of(mouths), whose, names)
