"""A run's config with the keys of JusperLee/IIANet alone, which its test.py passes on as arguments of its classes.

Facts: its configs/*.yml and test.py. A key that its classes do not take ends it with a TypeError.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from iianet.config.fields import several
from iianet.config.schema import Config

REFERENCE_FILE = "conf_reference.yml"
"""Name of the file, beside a run's conf.yml."""
VIDEO_MODEL = "ResNetVideoModel"
"""The one encoder that it knows."""
VIDEO_KEYS = ("pretrain",)
LOSS_KEYS = ("pit_from", "threshold_byloss")
TRAINING_KEYS = ("system", "gpus", "parallel", "epochs", "early_stop")
FOLDER_KEYS = ("train_dir", "valid_dir", "test_dir")
DATA_KEYS = (
    *FOLDER_KEYS,
    "n_src",
    "sample_rate",
    "segment",
    "normalize_audio",
    "batch_size",
    "num_workers",
    "pin_memory",
    "persistent_workers",
)
DYNAMIC, STATIC = "AVSpeechDyanmicDataModule", "AVSpeechDataModule"
"""How it names the two ways of mixing."""


def reference_config(config: Config) -> str | None:
    """YAML text of the nearest config that the reference opens; None where it has no such encoder.

    Comments at its head say what that config cannot express.
    """
    if config.videonet.videonet_name != VIDEO_MODEL:
        return None
    values = config.model_dump()
    data, training = values["datamodule"]["data_config"], values["training"]
    for part in values["loss"].values():
        part["config"] = _only(part["config"], LOSS_KEYS)
    videonet = _only(values["videonet"]["videonet_config"], VIDEO_KEYS)
    published = {
        "audionet": values["audionet"],
        "videonet": {**values["videonet"], "videonet_config": videonet},
        "loss": values["loss"],
        "training": {**_only(training, TRAINING_KEYS), "gpus": training["gpus"] or [0]},
        "optimizer": values["optimizer"],
        "scheduler": values["scheduler"],
        "datamodule": {
            "data_name": DYNAMIC if config.datamodule.dynamic_mixing else STATIC,
            "data_config": {**_only(data, DATA_KEYS), **{key: several(data[key])[0] for key in FOLDER_KEYS}},
        },
        "exp": values["exp"],
        "main_args": {},
    }
    head = "".join(f"# {line}\n" for line in (*_HEAD, *_differences(config)))
    return head + yaml.safe_dump(published, sort_keys=False, allow_unicode=True)


_HEAD = (
    "The config of this run for JusperLee/IIANet: python test.py --conf_dir FILE. It looks for best_model.pth in",
    "Experiments/checkpoint/EXP_NAME below the folder that it is started in, where relative paths start too.",
    "It shows the encoder as many of the 88 rows of each mouth as a segment has frames, 50 for 2 s.",
)


def _differences(config: Config) -> Iterator[str]:
    """What the reference cannot be told, or is told otherwise, a line each."""
    data, training = config.datamodule.data_config, config.training
    if not training.gpus:
        yield f"training.gpus is {_shown(training.gpus)} here, and it needs a GPU: the first one is named."
    for key in FOLDER_KEYS:
        folders = several(getattr(data, key))
        if len(folders) > 1:
            yield f"datamodule.data_config.{key} is {_shown(folders)} here, and it takes one folder: the first."
    if data.data_root is not None:
        yield f"The paths in the lists start at {_shown(data.data_root)}; its own are absolute, or start where it does."
    if config.videonet.videonet_config.pretrain is None:
        yield "videonet.videonet_config.pretrain is null: it draws other random weights, and its figures mean nothing."


def _only(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: values[key] for key in keys}


def _shown(value: object) -> str:
    """A value on one line, as YAML has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=False).split("\n")[0]
