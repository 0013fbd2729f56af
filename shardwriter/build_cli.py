"""The command build-shards."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from tabulate import tabulate

from iianet.command_line import add_config_flags, add_version_flag, config_overrides, run_command
from iianet.config.schema import Config, load_config
from iianet.encoder.kernels import PRECISIONS
from iianet.errors import ConfigError, FeatureStoreError, StoreError
from iianet.interruption import terminable
from shardwriter.build.abandon import abandon
from shardwriter.build.build import prepare
from shardwriter.build.check import check
from shardwriter.build.compact import Compaction
from shardwriter.build.options import BuildOptions
from shardwriter.build.words import show, show_stopped, totals
from shardwriter.execute.devices import choose_device, choose_devices
from shardwriter.execute.executor import Executor, OwnProcess
from shardwriter.execute.processes import Processes
from shardwriter.execute.rank import Rank
from shardwriter.execute.rank_build import build_as_rank
from shardwriter.execute.ray_cluster import RayCluster
from shardwriter.format.names import LOG_FOLDER, SPLITS, STORED_DTYPES
from shardwriter.storage.building_place import place_to_build
from shardwriter.storage.locate import Cache, is_remote, store_folder
from shardwriter.storage.mirror import store_name

ALL_STORED = 0
SOME_FAILED = 3
NOT_WITH_COMPACT = (
    *("overwrite", "limit", "verify_sources", "retry_failed", "import_embeddings", "check"),
    *("dtype", "views", "audio", "encoder_precision", "num_processes", "batch_size", "num_workers"),
)
"""What says how to encode: --compact copies what there is. --device alone is let be, for most commands bear it."""
TWO_STORES = "Old and new shards lie beside each other until it is done."
NOTHING_TO_COMPACT = "Nothing to do: no embedding is superseded, and all shards are full."

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    sys.exit(run_command(_run, argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="build-shards",
        description="Encode each utterance's mouth video once and write the embeddings into tar shards. Run again, it "
        "continues: missing, new and changed utterances are encoded. Exit codes: 0 all stored; 3 finished, but some "
        "failed or an --overwrite still lacks splits; 2 could not start or go on; 130 and 143 stopped by SIGINT and "
        "SIGTERM, with every published shard whole. Flags may be written with - or _.",
    )
    add_version_flag(parser)
    add_config_flags(parser)
    parser.add_argument("--data_split", choices=[*SPLITS, "all"], default="all", help="split to build (default: all)")
    parser.add_argument(
        "--device",
        help="cpu, cuda:N, some of them with commas between, or cuda for all GPUs (default: the first GPU where there "
        "is one)",
    )
    parser.add_argument(
        "--num_processes", type=int, metavar="N", help="processes on each device (default: 1), for processors above all"
    )
    parser.add_argument(
        "--executor",
        choices=["local", "ray"],
        default="local",
        help="who encodes: processes of this machine (default), or a Ray cluster whose nodes share the folders",
    )
    parser.add_argument(
        "--ray_address", metavar="ADDRESS", help="of the Ray cluster; auto is the one on this machine (default: any)"
    )
    parser.add_argument(
        "--shards", metavar="STORE", help="store folder, or its URL, such as s3://bucket/prefix (default: the config's)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="build everything anew; the old store serves until then"
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="clips encoded together")
    parser.add_argument("--num_workers", type=int, metavar="N", help="threads that read npz, in each process")
    parser.add_argument(
        "--encoder_precision",
        choices=list(PRECISIONS),
        help="arithmetic of the encoder (default: the store's, or float32); bf16 is quicker where a device has it",
    )
    parser.add_argument("--dtype", choices=STORED_DTYPES, help="of the stored embeddings (default: float16)")
    parser.add_argument(
        "--views", type=int, metavar="K", help="store K random crops and flips of each training utterance as well"
    )
    parser.add_argument(
        "--audio",
        choices=["path", "embed"],
        help="say where an utterance's wavs lie (default), or store them in the shards; changed wavs are not noticed",
    )
    parser.add_argument("--utterances_per_shard", type=int, metavar="N", help="utterances in each new shard")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N utterances of each split, in hash order"
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="encode nothing, but copy the newest embedding of each utterance into new, full shards, and delete the "
        "old ones once nobody reads them",
    )
    parser.add_argument(
        "--abandon",
        action="store_true",
        help="delete what an --overwrite or --compact has written that was begun and is not complete",
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be encoded; write nothing")
    parser.add_argument(
        "--verify_sources", action="store_true", help="digest every npz, not only those that look changed"
    )
    parser.add_argument(
        "--import_embeddings",
        action="store_true",
        help="take the xxx_embedding.npz that an earlier tool left beside each xxx.npz, instead of encoding",
    )
    parser.add_argument("--retry_failed", action="store_true", help="try failed utterances again, changed or not")
    parser.add_argument(
        "--check", action="store_true", help="check config, weights, device, data and disk; write nothing"
    )
    return parser


def _run(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    try:
        config, word, options = _request(arguments)
    except FeatureStoreError as error:
        if not arguments.check:
            raise
        print(tabulate([("config and flags", "what to do", str(error))], tablefmt="plain"))
        return error.exit_code
    cache = Cache.of(config.datamodule.data_config)
    if arguments.compact or arguments.abandon:
        _refuse_other_flags(arguments)
        return (_run_abandon if arguments.abandon else _run_compact)(config, word, cache, arguments)
    if arguments.check:
        return check(config, store_folder(word, cache), options)
    if arguments.dry_run:
        return _dry_run(config, store_folder(word, cache), options)
    rank = Rank.from_environment()
    if rank is not None:
        return _run_rank(config, store_folder(word, cache), options, rank)
    with place_to_build(word, cache) as (store, outlet):
        return _build(config, store, replace(options, outlet=outlet))


def _refuse_other_flags(arguments: argparse.Namespace) -> None:
    """Raise ConfigError where --compact or --abandon is given flags that they would ignore."""
    given = {name: getattr(arguments, name) for name in NOT_WITH_COMPACT}
    others = [name for name, value in given.items() if value is not None and value is not False]
    others += [f"data_split {arguments.data_split}"] if arguments.data_split != "all" else []
    ignored = ("compact", "dry_run", "utterances_per_shard") if arguments.abandon else ()
    others += [name for name in ignored if getattr(arguments, name)]
    if others or arguments.executor != "local" or Rank.from_environment():
        what = f"--{others[0]}" if others else "ranks, or --executor ray"
        does = "--abandon: deletes what was begun" if arguments.abandon else "--compact: copies a whole store as it is"
        raise ConfigError(f"{does}, in one process, without {what}; leave that out")


def _run_abandon(config: Config, word: str, cache: Cache, _arguments: argparse.Namespace) -> int:
    with place_to_build(word, cache) as (store, outlet), terminable():
        names = abandon(store, outlet, config.shardwriter.keep_replaced_days)
        print(f"given up: {', '.join(names) or 'nothing, for nothing was begun'}\nstore: {store_name(store)}")
    return ALL_STORED


def _run_compact(config: Config, word: str, cache: Cache, arguments: argparse.Namespace) -> int:
    size, keep = config.shardwriter.utterances_per_shard, config.shardwriter.keep_replaced_days
    if arguments.dry_run:
        report = Compaction(store=store_folder(word, cache), utterances_per_shard=size).survey()
        print("\n".join([*report.lines(), TWO_STORES] if report else [NOTHING_TO_COMPACT]))
        print(f"\nNothing was written to {store_name(store_folder(word, cache))}.")
        return ALL_STORED
    with place_to_build(word, cache) as (store, outlet), terminable():
        work = Compaction(store=store, utterances_per_shard=size, outlet=outlet, keep_replaced_days=keep)
        try:
            report = work.run()
        except KeyboardInterrupt:
            print(f"\nStopped. The store is whole, and the same command goes on.\nstore: {store_name(store)}")
            raise
        print("\n".join([*(report.lines() if report else [NOTHING_TO_COMPACT]), f"store: {store_name(store)}"]))
    return ALL_STORED


def _build(config: Config, store: Path, options: BuildOptions) -> int:
    ready = prepare(config, store, options)
    with _log_file(store) as log:
        try:
            with terminable():
                report = ready.run()
        except KeyboardInterrupt:
            show_stopped(ready)
            raise
        show(store, report, log)
    return SOME_FAILED if report.any_failed or report.waiting else ALL_STORED


def _run_rank(config: Config, store: Path, options: BuildOptions, rank: Rank) -> int:
    """Build with the other ranks. Only the last one answers for what failed: torchrun ends them all where one fails."""
    with _log_file(store, f"-rank{rank.number}") as log, terminable():
        report, is_last = build_as_rank(config, store, options, rank)
        if is_last:
            show(store, report, log)
            return SOME_FAILED if report.any_failed or report.waiting else ALL_STORED
        print(f"rank {rank.number} of {rank.world_size}: {totals(report)}; others go on, and the last one sums up")
    return ALL_STORED


def _request(arguments: argparse.Namespace) -> tuple[Config, str, BuildOptions]:
    """What the command line asks for, and of which store. Raises FeatureStoreError where config or flags are wrong."""
    config = load_config(arguments.conf_dir, [*config_overrides(arguments), *_shardwriter_overrides(arguments)])
    device, executor = _choose_executor(arguments)
    options = BuildOptions(
        splits=SPLITS if arguments.data_split == "all" else (arguments.data_split,),
        device=device,
        executor=executor,
        dtype=arguments.dtype,
        audio=arguments.audio,
        overwrite=arguments.overwrite,
        limit=_positive("--limit", arguments.limit),
        verify_sources=arguments.verify_sources,
        retry_failed=arguments.retry_failed,
        import_embeddings=arguments.import_embeddings,
    )
    word = _store_word(config, arguments.shards)
    if is_remote(word) and (Rank.from_environment() or arguments.executor == "ray"):
        raise ConfigError(
            f"--shards {word}: ranks and Ray need a folder that all of them share; build into one, then copy it there, "
            "or start one build-shards, with --device cuda for all GPUs of its machine"
        )
    return config, word, options


def _choose_executor(arguments: argparse.Namespace) -> tuple[torch.device, Executor]:
    """The device of this process, and who runs the tasks."""
    rank = Rank.from_environment()
    num_processes = _positive("--num_processes", arguments.num_processes)
    if arguments.executor == "local":
        if arguments.ray_address is not None:
            raise ConfigError(f"--ray_address {arguments.ray_address}: is for --executor ray, which was not asked for")
        devices = choose_devices(arguments.device, num_processes or 1, rank)
        return devices[0], OwnProcess() if len(devices) == 1 else Processes(devices)
    if rank is not None:
        raise ConfigError(
            f"--executor ray as rank {rank.number} of {rank.job}: Ray starts the processes itself, so start the "
            "command once, without torchrun or srun"
        )
    if arguments.device not in (None, "cpu", "cuda"):
        raise ConfigError(f"--device {arguments.device}: with --executor ray, cpu or cuda; Ray chooses which")
    own = "cpu" if arguments.device == "cpu" else None  # the cluster may have GPUs and this machine none
    cluster = RayCluster(address=arguments.ray_address, device=arguments.device, num_actors=num_processes)
    return choose_device(own), cluster


def _shardwriter_overrides(arguments: argparse.Namespace) -> list[str]:
    names = ("batch_size", "num_workers", "utterances_per_shard", "dtype", "views", "audio")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    precision = arguments.encoder_precision
    encoder = [f"videonet.videonet_config.precision={precision}"] if precision else []
    return [*encoder, *(f"shardwriter.{name}={value}" for name, value in given.items())]


def _positive(flag: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ConfigError(f"{flag} {value}: expected a whole number above 0")
    return value


def _store_word(config: Config, given: str | None) -> str:
    """The store that is asked for, or that the config names."""
    folder = given or config.datamodule.data_config.shards
    if folder is None:
        raise ConfigError("no store: give --shards STORE or set datamodule.data_config.shards in the config")
    if isinstance(folder, list):
        raise ConfigError(
            f"datamodule.data_config.shards names {len(folder)} stores, and one is built at a time; say which: --shards"
        )
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path}: is a file; a store is a folder")
    return folder


@contextmanager
def _log_file(store: Path, ending: str = "") -> Iterator[Path]:
    folder = store / LOG_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"build-{datetime.now():%Y%m%d-%H%M%S-%f}{ending}.log"
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{store}: cannot be written ({error.strerror}); choose another --shards folder") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("shardwriter")
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG)  # the file keeps every utterance, the terminal what matters
    try:
        yield path
    except BaseException:
        logger.debug("stopped", exc_info=True)
        sys.stderr.write(f"log: {path}\n")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def _dry_run(config: Config, store: Path, options: BuildOptions) -> int:
    work = prepare(config, store, options).survey()
    rows = [
        (split, len(item.new), len(item.changed), len(item.retried), len(item.resumed), len(item.manifest.utterances))
        for split, item in work.items()
    ]
    print(tabulate(rows, headers=["split", "new", "changed", "retried", "begun before", "of utterances"]))
    print(f"\nNothing was written to {store_name(store)}.")
    return ALL_STORED


if __name__ == "__main__":
    main()
