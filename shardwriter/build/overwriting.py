"""What --overwrite must take care of."""

import logging
from pathlib import Path

from iianet.errors import ConfigError
from shardwriter.build.options import BuildOptions
from shardwriter.format.names import parse_view_split
from shardwriter.storage.mirror import store_name
from shardwriter.store.catalog import splits_of
from shardwriter.store.generation import Generations

logger = logging.getLogger(__name__)


def refuse_partial_overwrite(store: Path, generations: Generations, options: BuildOptions) -> None:
    """Raise ConfigError where an --overwrite is asked for less than what the store holds."""
    stored = {parse_view_split(split)[0] for split in splits_of(generations.active)}
    left_out = stored.difference(options.splits)
    if left_out or options.limit is not None:
        asked = f"--limit {options.limit}" if options.limit is not None else f"without {', '.join(sorted(left_out))}"
        raise ConfigError(
            f"{store_name(store)}: --overwrite replaces the whole store, so that it keeps one identity, but was asked "
            f"{asked}. Give --data_split all and no --limit, or another --shards folder."
        )


def warn_of_dropped_views(store: Path, held: int, asked: int) -> None:
    """Say that an --overwrite makes fewer views than there are."""
    if held > asked:
        logger.warning(
            "%s: has %d augmented views of each training utterance, and --overwrite makes %d, as asked; --views %d "
            "would keep them all",
            store_name(store),
            held,
            asked,
            held,
        )
