"""The dataset card of a store: for people, and for Hugging Face datasets, which opens the folder by it.

The configuration `default` is the splits themselves; each augmented view is one of its own, `view1`, `view2`, ...
"""

from collections.abc import Mapping, Sequence

from shardwriter.format.names import TAR_SUFFIX, parse_view_split
from shardwriter.format.record import Identity

MARK = "<!-- iianet-shards writes this file anew with each build; without this line it leaves it alone -->"
_EMBEDDING = "- `<key>.embedding.npy`: the embedding, a ({dim}, frames) {dtype} array at {fps:g} frames per second;\n"
_SCALE = "- `<key>.scale.npy`: a ({dim},) float32 array; multiply each row of the embedding by its scale;\n"
_METADATA = {
    "path": "- `<key>.json`: what it was made from, and which audio belongs to it.",
    "embed": "- `<key>.json`: what it was made from, and which audio belongs to it;\n"
    "- `<key>.audio.npy`: that audio at 16 kHz, a 1-D array of int16, int32 or float32: for each entry of the json\n"
    "  member's `audio` list, in its order, the `num_samples` samples of its source, then those of its mixture.",
}
_VIEWS = (
    "A view holds embeddings of random crops and flips of the same utterances: that of `<key>` in view 1 has the key\n"
    "`<key>@1`."
)


def card_text(identity: Identity, stored: Mapping[str, int], plans: Mapping[str, Sequence[str]]) -> str:
    """Text of the card.

    Args:
        identity: What the embeddings were made with.
        stored: Utterances stored, per split or view of one. One with none is left out: there is no tar to open.
        plans: Ids of the active plans that have tars of it, per split: they tell its tars from replaced ones.
    """
    counts = "\n".join(f"| {split} | {count:,} |" for split, count in stored.items())
    encoder = ", ".join(f"{name} {value}" for name, value in identity.encoder.items() if value is not None)
    return f"""---
configs:
{_configurations(stored, plans)}---

{MARK}

# Sharded embeddings

Any WebDataset reader opens the tar shards; `inspect-shards` shows them; `python train.py --shards` trains from them.
Each of their samples is

{_members(identity, stored)}

| split | utterances |
| --- | --- |
{counts}

Encoder: {encoder or "unknown"}.
"""


def is_written_by_us(content: bytes) -> bool:
    """Whether a card is ours to replace."""
    return MARK.encode() in content


def _configurations(stored: Mapping[str, int], plans: Mapping[str, Sequence[str]]) -> str:
    files: dict[str, list[str]] = {}
    for name, count in stored.items():
        split, view = parse_view_split(name)
        if count:
            shown = "validation" if split == "val" else split
            patterns = "".join(f"\n          - {name}-{plan}-*{TAR_SUFFIX}" for plan in plans[name])
            lines = f"      - split: {shown}\n        path:{patterns}\n"
            files.setdefault(f"view{view}" if view else "default", []).append(lines)
    return "".join(f"  - config_name: {name}\n    data_files:\n{''.join(lines)}" for name, lines in files.items())


def _members(identity: Identity, stored: Mapping[str, int]) -> str:
    embedding = _EMBEDDING + (_SCALE if identity.dtype == "int8" else "")
    text = embedding.format(dim=identity.dim, dtype=identity.dtype, fps=identity.fps) + _METADATA[identity.audio]
    if not any(parse_view_split(split)[1] for split in stored):
        return text
    no_audio = " Views hold no audio: it is that of the utterance itself." if identity.audio == "embed" else ""
    return f"{text}\n\n{_VIEWS}{no_audio}"
