"""Which encoders there are: the value of `videonet.videonet_name` -> class. An encoder is added here, by one line.

Configs, sources and stores carry the name and no class: a started process looks it up again.
"""

from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.protocol import Encoder
from iianet.encoder.shuffle_encoder import HalfShuffleEncoder, ShuffleEncoder
from iianet.errors import ConfigError
from iianet.wording import either, nearest, show

ENCODERS: dict[str, type[Encoder]] = {
    ClipEncoder.name: ClipEncoder,
    ShuffleEncoder.name: ShuffleEncoder,
    HalfShuffleEncoder.name: HalfShuffleEncoder,
}
"""Name -> class."""


def encoder_class(name: str) -> type[Encoder]:
    """The class of an encoder.

    Raises:
        ConfigError: No encoder has this name.
    """
    problem = encoder_problem(name)
    if problem is not None:
        raise ConfigError(f"videonet.videonet_name: {problem}")
    return ENCODERS[name]


def encoder_problem(name: str) -> str | None:
    """What is wrong with the name of an encoder: that no encoder has it; None where one has."""
    if name in ENCODERS:
        return None
    near = nearest(name, ENCODERS)
    meant = f"; did you mean {near}?" if near else ""
    return f"found {show(name)}, expected {either(sorted(ENCODERS))}{meant}"
