"""Which words of --shards are streams, and which of their shards train and which validate.

A word is a tar by path, brace pattern or URL. Those with `val` and no `train` in their last part validate; where there
are none, validation shards are named as the others, with `val` instead of `train`.
"""

from collections.abc import Sequence

from iianet.config.data_section import DataConfig
from iianet.errors import ConfigError, StoreError
from loaders.stream import expand_all
from shardwriter.storage.tar_urls import is_tars

TRAIN, VAL = "train", "val"


def is_stream(word: str) -> bool:
    """Whether what --shards names is read as a stream: tars by path, pattern or URL, and no store's folder."""
    return is_tars(word)


def stream_words(options: DataConfig) -> list[str]:
    """What is to be streamed; nothing where training reads stores or raw mouths.

    Raises:
        ConfigError: Stores are named beside it, or are to be built.
    """
    named = [options.shards] if isinstance(options.shards, str) else options.shards or []
    streams = [word for word in named if is_stream(word)] if options.use_precomputed_embeddings else []
    if streams and (streams != named or options.build_missing):
        raise ConfigError(
            f"--shards {streams[0]}: tars are read as a stream, beside which there can be no store's folder, and "
            "nothing is built; make a store of them with inspect-shards --reindex"
        )
    return streams


def split_shards(words: Sequence[str]) -> dict[str, list[str]]:
    """The shards of train and val.

    Raises:
        ConfigError: None are named for one of them.
        StoreError: One is missing or refused.
    """
    named = {split: [word for word in words if _split_of(word) == split] for split in (TRAIN, VAL)}
    if not named[TRAIN]:
        raise ConfigError(f"--shards {' '.join(words)}: names shards for validation alone; name some to train from")
    if named[VAL]:
        return {split: expand_all(own) for split, own in named.items()}
    training = expand_all(named[TRAIN])  # first, since it tells what is refused
    derived = [validation_word(word) for word in named[TRAIN]]
    try:
        return {TRAIN: training, VAL: expand_all(derived)}
    except StoreError as error:
        raise StoreError(f"{error}. If there are fewer shards to validate, name them by one more --shards") from error


def validation_word(word: str) -> str:
    """The word for the validation shards that belong to some training shards.

    Raises:
        ConfigError: There is no `train` in its last part.
    """
    head, slash, last = word.rpartition("/")
    if TRAIN not in last:
        raise ConfigError(
            f"--shards {word}: has no {TRAIN!r} in its last part, so the validation shards cannot be told from it; "
            f"rename them, or name those too, by one more --shards, with {VAL!r} in theirs"
        )
    return f"{head}{slash}{last.replace(TRAIN, VAL, 1)}"


def _split_of(word: str) -> str:
    last = word.rpartition("/")[2]
    return VAL if VAL in last and TRAIN not in last else TRAIN
