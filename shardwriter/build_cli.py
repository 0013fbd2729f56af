"""The command build-shards."""

if __name__ == "__main__":  # `python -m`, before the imports, as in iianet_cli/entry.py
    from iianet.interruption import main_of

    main_of("shardwriter.build_cli")()

import argparse
import logging
from collections.abc import Callable
from itertools import chain

import pyarrow as pa
import torch
from tabulate import tabulate

from iianet.command_line import (
    SOME_FAILED,
    Parser,
    add_config_flags,
    at_least_one,
    at_least_zero,
    command,
    config_overrides,
)
from iianet.config.schema import Config, load_config
from iianet.encoder.kernels import PRECISIONS
from iianet.errors import ConfigError, FeatureStoreError
from iianet.interruption import terminable
from iianet.launch import Launch, choose_device, choose_devices
from iianet.paths import expand_word
from iianet.terminal import say
from iianet.wording import counted, nearest
from shardwriter.build.build import Build, prepare
from shardwriter.build.check import Finding, check, show
from shardwriter.build.compact import Compaction, abandon
from shardwriter.build.log_file import log_file
from shardwriter.build.options import BuildOptions
from shardwriter.execute.executor import Executor, OneProcess
from shardwriter.execute.operation import Operation, run_operation
from shardwriter.execute.processes import Processes
from shardwriter.execute.ranks import run_as_rank
from shardwriter.execute.ray_cluster import RayCluster
from shardwriter.format.names import SPLITS, STORED_DTYPES
from shardwriter.storage.folder import Folder
from shardwriter.storage.locate import Cache, open_storage
from shardwriter.storage.storage import Storage
from shardwriter.store.snapshot import read_record

ALL_STORED = 0
ENCODING_FLAGS = (
    *("overwrite", "limit", "verify_sources", "retry_failed", "import_embeddings", "check"),
    *("dtype", "views", "audio", "encoder_precision", "batch_size", "num_workers"),
)
"""Flags that say how to encode, which --compact does not. --device is ignored: people keep it in their commands."""
TWO_STORES = "Old and new shards lie side by side until it is done."
NOTHING_TO_COMPACT = "Nothing to do: no embedding is superseded, and all shards are full."

logger = logging.getLogger(__name__)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Encode each utterance's mouth video once and write the embeddings into tar shards. Run again, it "
        "resumes: missing, new and changed utterances are encoded. Exit codes: 0 all stored; 3 finished, but some "
        "failed or an --overwrite still lacks splits; 2 could not start or continue; 130 and 143 stopped by SIGINT and "
        "SIGTERM, with every published shard whole.",
    )
    add_config_flags(parser)
    parser.add_argument(
        "--data_split",
        type=_splits,
        default=SPLITS,
        metavar="SPLIT",
        help="train, val or test, some of them with commas between, or all (default)",
    )
    parser.add_argument(
        "--device",
        help="cpu, cuda:N, some of them with commas between, or cuda for all GPUs (default: the first GPU where there "
        "is one)",
    )
    parser.add_argument(
        "--num_processes",
        type=at_least_one,
        metavar="N",
        help="processes on each device (default: 1), mainly useful on CPUs",
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
        "--shards",
        type=expand_word,
        metavar="STORE",
        help="store folder, or its URL, such as s3://bucket/prefix (default: the config's)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="build everything again; the old store stays in use until then"
    )
    parser.add_argument("--batch_size", type=at_least_one, metavar="N", help="clips encoded together")
    parser.add_argument("--num_workers", type=at_least_one, metavar="N", help="threads that read npz, in each process")
    parser.add_argument(
        "--encoder_precision",
        choices=list(PRECISIONS),
        help="arithmetic of the encoder (default: the store's, or float32); bf16 is faster on devices that have it, "
        "and later additions to the store use it too",
    )
    parser.add_argument("--dtype", choices=STORED_DTYPES, help="of the stored embeddings (default: float16)")
    parser.add_argument(
        "--views",
        type=at_least_zero,
        metavar="K",
        help="store K random crops and flips of each training utterance as well",
    )
    parser.add_argument(
        "--audio",
        choices=["path", "embed"],
        help="say where an utterance's wavs lie (default), or store them in the shards; changed wavs are not noticed",
    )
    parser.add_argument("--utterances_per_shard", type=at_least_one, metavar="N", help="utterances in each new shard")
    parser.add_argument(
        "--limit", type=at_least_one, metavar="N", help="only the first N utterances of each split, in hash order"
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
        help="delete the unfinished output of an interrupted --overwrite or --compact",
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


def _run(argv: list[str], prog: str) -> int:
    arguments = _parser(prog).read(argv)
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())  # gives freed tables back to the system; Arrow's own keeps them
    try:
        return _run_asked(arguments)
    finally:
        pa.set_memory_pool(before)


def _run_asked(arguments: argparse.Namespace) -> int:
    if arguments.check and not (arguments.abandon or arguments.compact):
        return _run_check(arguments)
    config, storage, options = _request(arguments)
    if arguments.abandon:
        return _run_abandon(config, storage, options, arguments)
    if arguments.compact:
        return _run_compact(config, storage, options, arguments)
    if arguments.dry_run:
        return _dry_run(config, storage, options)
    return _run_build(config, storage, options)


def _run_check(arguments: argparse.Namespace) -> int:
    """Show what would hinder a build; one wrong flag hides nothing else."""
    findings = []
    try:
        _choose_executor(arguments)
    except ConfigError as error:
        findings.append(Finding(what="device", found="", problem=str(error)))
        arguments.device, arguments.executor, arguments.ray_address = "cpu", "local", None
    try:
        found = check(*_request(arguments))
    except FeatureStoreError as error:
        found = [Finding(what="config and flags", found="", problem=str(error))]
    findings += [finding for finding in found if not findings or finding.what != "device"]
    say(show(findings))
    return 2 if any(finding.problem for finding in findings) else 0


def _run_build(config: Config, storage: Storage, options: BuildOptions) -> int:
    made = prepare(config, storage, options)
    with log_file(storage, f"-rank{options.rank.number}" if options.rank else "") as log:
        if not _operate(made, storage, options, lambda: _what_is_left(made)):
            return ALL_STORED
        report = made.report
        for failure in chain.from_iterable(report.failed.values()):
            logger.debug("not stored: %s %s: %s: %s", *failure)
        say("\n".join([*report.lines(), f"store: {storage.name}", f"log:   {log}"]))
    return SOME_FAILED if report.any_failed or report.waiting else ALL_STORED


def _operate(operation: Operation, storage: Storage, options: BuildOptions, what_is_left: Callable[[], str]) -> bool:
    """Run an operation, alone or as a rank. Returns whether its report is that of all.

    Only the last rank answers for what failed: torchrun ends them all where one fails.
    """
    rank = options.rank
    with terminable():
        try:
            if rank is None:
                run_operation(operation, storage, options.runner)
                return True
            assert isinstance(storage, Folder)  # others were refused
            if run_as_rank(operation, storage, options.runner, rank):
                return True
        except KeyboardInterrupt:
            say(f"\nStopped. {what_is_left()}\nstore: {storage.name}")
            raise
    say(f"rank {rank.number} of {rank.world_size} is done; the last one to finish sums up")
    return False


def _what_is_left(made: Build) -> str:
    """What a signal left of a build."""
    report, left = made.report, made.unpublished()
    return (
        f"Published: {counted(report.shards, 'shard')}, {report.stored_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.1f} s. Left: {counted(len(left), 'shard')} with "
        f"{counted(sum(len(task.rows) for task in left), 'utterance')}; what was encoded of these is lost. Every "
        "published shard is whole, and the same command resumes."
    )


def _refuse_other_flags(arguments: argparse.Namespace, rank: Launch | None) -> None:
    """Raise ConfigError where --compact or --abandon is given flags that they would ignore."""
    given = {name: getattr(arguments, name) for name in ENCODING_FLAGS}
    others = [name for name, value in given.items() if value is not None and value is not False]
    others += [f"data_split {','.join(arguments.data_split)}"] if arguments.data_split != SPLITS else []
    ignored = ("compact", "dry_run", "utterances_per_shard", "num_processes") if arguments.abandon else ()
    others += [name for name in ignored if getattr(arguments, name)]
    if others or (arguments.abandon and (rank or arguments.executor != "local")):
        what = f"--{others[0]}" if others else f"ranks (this is {rank.words})" if rank else "--executor ray"
        does = (
            "--abandon: deletes what is unfinished" if arguments.abandon else "--compact: copies a whole store as it is"
        )
        raise ConfigError(f"{does}, without {what}; leave that out")


def _run_abandon(config: Config, storage: Storage, options: BuildOptions, arguments: argparse.Namespace) -> int:
    _refuse_other_flags(arguments, options.rank)
    with terminable():
        name = abandon(storage, config.shardwriter.keep_replaced_days)
    done = f"Abandoned: {name}" if name else "Nothing to abandon: no --overwrite or --compact is in progress"
    say(f"{done}\nstore: {storage.name}")
    return ALL_STORED


def _run_compact(config: Config, storage: Storage, options: BuildOptions, arguments: argparse.Namespace) -> int:
    _refuse_other_flags(arguments, options.rank)
    read_record(storage)  # says that there is no store, before a folder is made for it
    settings = config.shardwriter
    work = Compaction(
        storage=storage,
        utterances_per_shard=settings.utterances_per_shard,
        keep_replaced_days=settings.keep_replaced_days,
    )
    if arguments.dry_run:
        report = work.survey()
        say("\n".join([*report.lines(), TWO_STORES] if report else [NOTHING_TO_COMPACT]))
        say(f"\nNothing was written to {storage.name}.")
        return ALL_STORED
    if not _operate(work, storage, options, lambda: "The store is whole, and the same command resumes."):
        return ALL_STORED
    say("\n".join([*(work.report.lines() if work.report else [NOTHING_TO_COMPACT]), f"store: {storage.name}"]))
    return ALL_STORED


def _request(arguments: argparse.Namespace) -> tuple[Config, Storage, BuildOptions]:
    """What the command line asks for, and of which store. Raises FeatureStoreError where config or flags are wrong."""
    config = load_config(arguments.conf_dir, [*config_overrides(arguments), *_shardwriter_overrides(arguments)])
    device, executor, rank = _choose_executor(arguments)
    options = BuildOptions(
        splits=arguments.data_split,
        device=device,
        executor=executor,
        rank=rank,
        dtype=arguments.dtype,
        audio=arguments.audio,
        overwrite=arguments.overwrite,
        limit=arguments.limit,
        verify_sources=arguments.verify_sources,
        retry_failed=arguments.retry_failed,
        import_embeddings=arguments.import_embeddings,
    )
    storage = open_storage(_store_word(config, arguments.shards), Cache.of(config.datamodule.data_config))
    if not isinstance(storage, Folder) and (rank or arguments.executor == "ray"):
        raise ConfigError(
            f"--shards {storage.name}: ranks and Ray need a folder that all of them share; build into one, then copy "
            "it there, or start one build-shards, with --device cuda for all GPUs of its machine"
            + (f". This is {rank.words}" if rank else "")
        )
    return config, storage, options


def _choose_executor(arguments: argparse.Namespace) -> tuple[torch.device, Executor, Launch | None]:
    """The device of this process, who runs the tasks, and which of several ranks this is."""
    launch = Launch.from_environment()
    rank = launch if launch is not None and launch.world_size > 1 else None
    num_processes = arguments.num_processes
    if arguments.executor == "local":
        if arguments.ray_address is not None:
            raise ConfigError(f"--ray_address {arguments.ray_address}: is for --executor ray, which was not asked for")
        devices = choose_devices(arguments.device, num_processes or 1, rank)
        return devices[0], OneProcess(devices[0]) if len(devices) == 1 else Processes(devices), rank
    if rank is not None:
        raise ConfigError(
            "--executor ray: Ray starts the processes itself, so start the command once, without torchrun or srun; "
            f"this is {rank.words}"
        )
    if arguments.device not in (None, "cpu", "cuda"):
        raise ConfigError(f"--device {arguments.device}: with --executor ray, cpu or cuda; Ray chooses which")
    own = "cpu" if arguments.device == "cpu" else None  # the cluster may have GPUs and this machine none
    cluster = RayCluster(address=arguments.ray_address, device=arguments.device, num_actors=num_processes)
    return choose_device(own), cluster, None


def _shardwriter_overrides(arguments: argparse.Namespace) -> list[str]:
    names = ("batch_size", "num_workers", "utterances_per_shard", "views")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    precision = arguments.encoder_precision
    encoder = [f"videonet.videonet_config.precision={precision}"] if precision else []
    return [*encoder, *(f"shardwriter.{name}={value}" for name, value in given.items())]


def _splits(text: str) -> tuple[str, ...]:
    """Read --data_split; a split's name as the config's keys have it, valid, is welcome."""
    words = [{"valid": "val"}.get(word, word) for word in text.split(",")]
    for word in words:
        if word not in (*SPLITS, "all"):
            near = nearest(word, SPLITS)
            meant = f"; did you mean {near}?" if near else ""
            raise argparse.ArgumentTypeError(f"found {word!r}, expected all, or some of {', '.join(SPLITS)}{meant}")
    return tuple(split for split in SPLITS if split in words or "all" in words)


def _store_word(config: Config, given: str | None) -> str:
    """The store that is asked for, or that the config names."""
    folder = given or config.datamodule.data_config.shards
    if folder is None:
        raise ConfigError("no store: give --shards STORE or set datamodule.data_config.shards in the config")
    if isinstance(folder, list):
        raise ConfigError(
            f"datamodule.data_config.shards names {len(folder)} stores, and one is built at a time; say which: --shards"
        )
    return folder


def _dry_run(config: Config, storage: Storage, options: BuildOptions) -> int:
    found = prepare(config, storage, options).survey()
    rows = [(split, *item.counts.values(), len(item.manifest.utterances)) for split, item in found.items()]
    say(tabulate(rows, headers=["split", "new", "changed", "retried", "unfinished", "total"]))
    say(f"\nNothing was written to {storage.name}.")
    return ALL_STORED


main = command(_run, "build-shards")
"""Start the command."""
