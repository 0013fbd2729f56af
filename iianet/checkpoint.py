"""Published weights: the only file that knows the parameter names of JusperLee/IIANet.

Published forms, all read by `load_published`:

    encoder     {"model_state_dict": {"frontend3D.0.weight": ..., "trunk...": ..., "tcn...": dropped}}
    separator   {"model_name", "state_dict": {"sm...": ...}, "model_args", "infos"}    best_model.pth
                {"state_dict": {"audio_model.sm...": ..., "video_model...": dropped}}  Lightning checkpoint
    both        a plain state dict, with or without the prefix "module." of DataParallel

and a checkpoint of train.py, {"state_dict": {"model.separator...": ...}, "settings": {...}}, whose names are ours.

Our name becomes the published one by replacing the parts listed in the tables below; the way back is read off the
network itself, so that the two cannot drift apart. An encoder whose files have names of its own brings a
`PublishedForm`.
"""

import json
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from iianet.archive import refuse_damaged_archive
from iianet.encoder.video_encoder import VideoEncoder
from iianet.errors import WeightsError
from iianet.run_folder import replacing
from iianet.separator.model import IIANet

LIP_PARTS: Mapping[str, str] = {"front_end": "frontend3D"}
"""Parts of the names of every lip network of mpc001/Lipreading_using_Temporal_Convolutional_Networks, ours ->
published. A part is one or more whole words between dots."""

ENCODER_PARTS: Mapping[str, str] = {
    **LIP_PARTS,
    **{f"trunk.{block}": f"trunk.layer{block // 2 + 1}.{block % 2}" for block in range(8)},
    "norm1": "bn1",
    "norm2": "bn2",
    "act1": "relu1",
    "act2": "relu2",
    "shortcut": "downsample",
}
"""Parts of the encoder's names, ours -> published."""

SEPARATOR_PARTS: Mapping[str, str] = {
    "encoder_norm": "ln",
    "audio_bottleneck": "bottleneck",
    "video_bottleneck": "pre_v",
    "mask": "mask_net",
    "separator.audio_up": "sm.audio_blocks.0",
    "separator.audio_down": "sm.audio_blocks.1",
    "separator.video_up": "sm.video_blocks.0",
    "separator.video_down": "sm.video_blocks.1",
    "separator.video_gates": "sm.video_blocks.1.video_res",
    "separator.audio_reentry": "sm.InterA_B_A",
    "separator.video_reentry": "sm.InterA_B_V",
    "separator.fusion": "sm.InterA_T",
    # paths
    "widen.0": "proj_1x1",
    "widen.1": "proj_1x1.act",
    "scales": "spp_dw",
    "select": "loc_glo_fus",
    "merge": "last_layer",
    "narrow": "res_conv",
    # attention
    "local": "local_embedding",
    "gate": "global_act",
    "shift": "global_embedding",
    # fusion
    "audio_gate": "M_wav",
    "video_gate": "M_video",
    "video_to_audio": "W_wav",
    "audio_to_video": "W_video",
    "refine_audio": "amlp",
    "refine_video": "vmlp",
    "attend": "attn",
    "feed_forward": "mlp",
    "feed_forward.widen": "mlp.fc1",
    "feed_forward.depthwise": "mlp.dwconv",
    "feed_forward.narrow": "mlp.fc2",
}
"""Parts of the separator's names, ours -> published. Where two begin at the same word, the longer one wins."""

NETWORK = "model."
"""Prefix of the separator's tensors in a checkpoint of train.py."""
PARALLEL = "module."
"""Prefix that torch's DataParallel puts before each name."""

PUBLISHED_SEPARATORS = (
    "best_model.pth of the releases v1.0.0 and v1.0.1 at https://github.com/JusperLee/IIANet/releases"
)
"""Where trained separators are published, in words."""

MODEL_ARGS: Mapping[str, int] = {"n_src": 2}
"""What the reference writes beside its weights whatever the configuration, and never reads."""

NAMES_SHOWN = 5
"""Names per kind of fault in an error message."""

DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What torch.load raises on cut or altered files besides UnpicklingError, found by cutting and altering some."""


@dataclass(frozen=True, kw_only=True)
class PublishedForm:
    """How published files hold the weights of a network.

    Attributes:
        parts: Parts of the network's names, ours -> published.
        weights: Takes the network's tensors, by published name, out of the contents of a file.
        cure: What to do where a file does not fit, as a sentence without its point.
        other_cure: The same where it has none of the network's tensors; empty where that is `cure`, too.
    """

    parts: Mapping[str, str]
    weights: Callable[[Mapping[str, object]], dict[str, object]]
    cure: str
    other_cure: str = ""


def load_published(
    module: nn.Module,
    state_dict: Mapping[str, object],
    source: Path | str = "state dict",
    form: PublishedForm | None = None,
) -> None:
    """Fill a network with published weights, in any of the forms above, or in one of its own.

    Args:
        module: Network to fill; unchanged if anything does not fit.
        state_dict: Contents of a published file, or a plain state dict.
        source: Where it came from, for the error message.
        form: Form of its own; None for IIANet's two networks.

    Raises:
        WeightsError: Tensors are missing, surplus or misshapen. `num_batches_tracked` may be missing.
    """
    form = form or _form_of(module)
    found, expected = form.weights(state_dict), _by_published_name(module, form.parts)
    if any(name.startswith(NETWORK) for name in found):
        published = {f"{NETWORK}{ours}": name for name, (ours, _) in expected.items()}
        found = {published.get(name, name): value for name, value in found.items()}
    faults = list(_faults(found, {name: _shape(value) for name, (_, value) in expected.items()}))
    if faults:
        name, is_other = type(module).__name__, form.other_cure and expected.keys().isdisjoint(found)
        cure = form.other_cure if is_other else form.cure
        raise WeightsError(f"{source}: does not fit {name}: {'; '.join(faults)}. To fix it, {cure}")
    renamed = {ours: found.get(name, value) for name, (ours, value) in expected.items()}
    module.load_state_dict(renamed)


def export_published(module: nn.Module, form: PublishedForm | None = None) -> dict[str, Tensor]:
    """Copies of a network's weights on the CPU, under their published names; `form` as in `load_published`."""
    parts = (form or _form_of(module)).parts
    return {name: value.detach().cpu().clone() for name, (_, value) in _by_published_name(module, parts).items()}


def read_checkpoint(path: Path) -> dict[str, object]:
    """Contents of a file that torch.save wrote, on the CPU.

    Raises:
        WeightsError: The file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; give the path of an existing one")
    try:
        # A published best_model.pth records torch.__version__, which is no plain str; figures may be NumPy's numbers.
        with path.open("rb") as stream, torch.serialization.safe_globals([TorchVersion, *_numpy_values()]):
            refuse_damaged_archive(stream, path)
            contents = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: not a weights file ({path.stat().st_size:,} bytes); expected tensors and plain values written by "
            "torch.save. Download it again; if it holds other objects too, and you trust where it comes from, load it "
            "with weights_only=False and save its state dict alone"
        ) from error
    except DAMAGE as error:
        raise WeightsError(
            f"{path}: cannot be read ({path.stat().st_size:,} bytes, {type(error).__name__}: {error}); expected a file "
            "written by torch.save: copy or download it again"
        ) from error
    if not isinstance(contents, dict):
        raise WeightsError(
            f"{path}: holds a {type(contents).__name__}; expected a dict: give a checkpoint or state dict"
        )
    return contents


def recorded_settings(contents: Mapping[str, object]) -> dict[str, Any]:
    """What a file of train.py, a checkpoint or a best_model.pth, records of its config, by dotted key; else nothing."""
    infos = contents.get("infos", contents)
    texts = infos.get("settings") if isinstance(infos, Mapping) else None
    if not isinstance(texts, Mapping):
        return {}
    try:
        return {str(key): json.loads(text) for key, text in texts.items()}
    except (TypeError, ValueError):  # settings of another program: no part of them is a record of ours
        return {}


def save_best_model(path: Path, model: IIANet, versions: Mapping[str, str], settings: Mapping[str, str]) -> None:
    """Write a best_model.pth that the reference's `BaseAVModel.from_pretrain` opens; whole or not at all.

    Args:
        path: File to write or replace; its folder exists.
        model: Trained separator.
        versions: Software name -> version, for the record.
        settings: What to record of the config, as JSON texts by dotted key.

    Raises:
        TrainingError: The file cannot be written.
    """
    contents = {
        "model_name": "IIANet",
        "state_dict": export_published(model),
        "model_args": dict(MODEL_ARGS),
        # str() turns torch's own version type into a plain string, which every reader may load.
        "infos": {
            "software_versions": {name: str(version) for name, version in versions.items()},
            "settings": dict(settings),
        },
    }
    with replacing(path) as stream:
        torch.save(contents, stream)


def _form_of(module: nn.Module) -> PublishedForm:
    """The form of one of IIANet's two networks."""
    assert isinstance(module, VideoEncoder | IIANet), f"{type(module).__name__} needs a form of its own"
    return ENCODER_FORM if isinstance(module, VideoEncoder) else SEPARATOR_FORM


def _by_published_name(module: nn.Module, parts: Mapping[str, str]) -> dict[str, tuple[str, Tensor]]:
    """A network's state dict as published name -> (our name, tensor)."""
    alternatives = "|".join(re.escape(part) for part in sorted(parts, key=len, reverse=True))
    pattern = re.compile(rf"(?<![^.])({alternatives})(?![^.])")
    state = module.state_dict()
    named = {pattern.sub(lambda match: parts[match[1]], name): (name, value) for name, value in state.items()}
    assert len(named) == len(state), "two parameters share a published name"
    return named


def lip_weights(contents: Mapping[str, object]) -> dict[str, object]:
    """The tensors of a file of lip-reading weights, by published name, without those of its temporal network."""
    weights = _unwrap(contents, "model_state_dict")
    return {name: value for name, value in weights.items() if "tcn" not in name}


def separator_weights(contents: Mapping[str, object]) -> dict[str, object]:
    """The tensors of a separator's file, in any of the forms above, by published name; of train.py's, by our own."""
    weights = _unwrap(contents, "state_dict")
    if any(name.startswith("audio_model.") for name in weights):
        weights = {name: value for name, value in weights.items() if not name.startswith("video_model.")}
    return {name.removeprefix("audio_model."): value for name, value in weights.items()}


def _unwrap(contents: Mapping[str, object], key: str) -> dict[str, object]:
    inner = contents.get(key, contents)
    weights = inner if isinstance(inner, Mapping) else contents
    named = {str(name): value for name, value in weights.items()}
    if named and all(name.startswith(PARALLEL) for name in named):
        return {name.removeprefix(PARALLEL): value for name, value in named.items()}
    return named


def _numpy_values() -> list[Any]:
    """What torch needs to read single numbers of NumPy: their function, and the types of numbers that it may make."""
    numbers = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    function = np.float64().__reduce__()[0]
    names = [(function, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # before NumPy 2, and since
    return [*names, np.dtype, *(type(np.dtype(number)) for number in numbers)]


def _faults(found: Mapping[str, object], expected: Mapping[str, str]) -> Iterator[str]:
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in found and not _may_miss(name)]
    surplus = [f"{name} {_shape(value)}" for name, value in found.items() if name not in expected]
    misshapen = [
        f"{name} found {_shape(found[name])} expected {shape}"
        for name, shape in expected.items()
        if name in found and _shape(found[name]) != shape
    ]
    for kind, names in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen)):
        if names:
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            yield f"{len(names)} {kind} ({', '.join(names[:NAMES_SHOWN])}{more})"


def _may_miss(name: str) -> bool:
    return name.endswith("num_batches_tracked")  # counts training steps; not used in eval mode, absent in old files


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


ENCODER_FORM = PublishedForm(
    parts=ENCODER_PARTS,
    weights=lip_weights,
    cure="give published lip-reading weights, a file with 'model_state_dict' of ResNetVideoModel (ResNet-18, PReLU) "
    "such as lrw_resnet18_mstcn_adamw_s3.pth.tar",
)
SEPARATOR_FORM = PublishedForm(
    parts=SEPARATOR_PARTS,
    weights=separator_weights,
    cure="build IIANet with the audionet_config of these weights, or give weights trained with yours",
    other_cure=f"give a separator: a best_model.pth or checkpoint of train.py, or {PUBLISHED_SEPARATORS}",
)
