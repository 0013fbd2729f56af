"""Utterances of one speaker or of one video, as their names tell: groups of which no two are mixed with each other.

Apart from the manifest, which asks nothing of names."""

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iianet.config.utterance_names import Whose, utterance_pattern
from iianet.errors import ManifestError
from iianet.wording import counted, printable
from shardwriter.corpus.manifest_data import ROWS_AT_A_TIME, Manifest

NAMED = 3
"""Names that an error gives."""


def groups_of(manifest: Manifest, whose: Whose, names: str) -> npt.NDArray[np.int64]:
    """Number the groups of a manifest's utterances.

    Args:
        manifest: Of the split.
        whose: What the utterances of a group share.
        names: As the config's `utterance_names`.

    Returns:
        Group of each utterance, `(utterances,)`, by number in the order in which they are met.

    Raises:
        ManifestError: Some names do not tell.
    """
    mouths = manifest.utterances.column("mouth")
    found = pa.chunked_array(_values(mouths, utterance_pattern(names), whose), type=pa.string())
    if found.null_count:
        silent = mouths.filter(found.is_null().combine_chunks()).slice(0, NAMED).to_pylist()
        raise ManifestError(
            f"{manifest.split}: the names of {counted(found.null_count, 'utterance')} of {len(mouths):,} do not tell "
            f"the {whose}, e.g. {', '.join(printable(path, keep='') for path in silent)}; expected "
            f"names as utterance_names says ({names}). Correct datamodule.data_config.utterance_names, which may be a "
            f"regular expression with the group (?P<{whose}>...), or set mix_apart: null"
        )
    return np.asarray(found.combine_chunks().dictionary_encode().indices, dtype=np.int64)


def _values(mouths: pa.Array, pattern: re.Pattern[str], whose: Whose) -> Iterator[pa.Array]:
    """What the paths of some mouths tell, part by part; null where one does not."""
    for start in range(0, len(mouths), ROWS_AT_A_TIME):
        paths = mouths.slice(start, ROWS_AT_A_TIME).to_pylist()
        matches = (pattern.search(path.removesuffix(".npz")) for path in paths)
        yield pa.array([match and match[whose] for match in matches], type=pa.string())
