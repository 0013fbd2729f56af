"""Flags that the commands of the separator share: the trained one, the device, which store they read, or raw mouths."""

import argparse
import json

PREFIX = "datamodule.data_config"


def add_checkpoint_flag(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint, which must be given."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="trained separator: a best_model.pth or .ckpt of train.py, or a published best_model.pth",
    )


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add --device, as iianet.launch.choose_device reads it."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU where there is one)")


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    """Add --trust_imported."""
    parser.add_argument(
        "--trust_imported",
        action="store_true",
        help="use embeddings whose encoder is not recorded (imported, or made by others) as if the config's had made "
        "them",
    )


def add_data_flags(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add --shards and the flags that go with it.

    Args:
        parser: Parser to add them to.
        verb: What the command does with the data, for the help.
    """
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--shards",
        action="append",
        metavar="STORE",
        help=f"{verb} from this store, a folder or a URL such as s3://bucket/prefix, or from tars by path, pattern or "
        "URL; from several where it is given several times",
    )
    source.add_argument("--no_shards", action="store_true", help=f"{verb} from raw mouths, whatever the config says")
    parser.add_argument(
        "--use_precomputed_embeddings", action="store_true", help=f"{verb} from the stores that the config names"
    )
    parser.add_argument(
        "--on_missing",
        choices=["encode", "skip", "error"],
        help="what to do with utterances missing from the store: encode them on the fly (default), skip them, or stop",
    )
    add_trust_flag(parser)


def data_overrides(arguments: argparse.Namespace) -> list[str]:
    """Overrides that these flags stand for. --shards and --no_shards win over the config's mode."""
    overrides = []
    if arguments.shards is not None:
        stores = arguments.shards[0] if len(arguments.shards) == 1 else arguments.shards
        overrides.append(f"{PREFIX}.shards={json.dumps(stores)}")
    if arguments.shards is not None or arguments.use_precomputed_embeddings:
        overrides.append(f"{PREFIX}.use_precomputed_embeddings=true")
    if arguments.no_shards:
        overrides += [f"{PREFIX}.use_precomputed_embeddings=false", f"{PREFIX}.build_missing=false"]
    if arguments.trust_imported:
        overrides.append(f"{PREFIX}.trust_imported=true")
    if arguments.on_missing is not None:
        overrides.append(f"{PREFIX}.on_missing={arguments.on_missing}")
    return overrides
