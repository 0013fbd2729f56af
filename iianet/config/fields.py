"""What the sections are built of: their strict base class, the numbers they hold, and values that are fixed for now."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from iianet.errors import ConfigError
from iianet.paths import expand_word
from iianet.wording import show

EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
"""Numbers such as `1e-3` and `1.5e3`: YAML 1.1 wants a point and a signed exponent, and else reads text."""


class Section(BaseModel):
    """A mapping of a config file: frozen, with no other keys, and with no conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def read_exponents(value: Any) -> Any:
    """Turn text that is a number with an exponent into that number; lists item by item, all else as it is."""
    if isinstance(value, list):
        return [read_exponents(item) for item in value]
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    return value


def only(supported: int, reason: str) -> AfterValidator:
    """Refuse every value but the one supported, saying why and what to do."""

    def check(value: int) -> int:
        if value != supported:
            raise ValueError(f"found {value}, expected {supported}: {reason}")
        return value

    return AfterValidator(check)


def _count_or_share(value: Any) -> Any:
    number = read_exponents(value)
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return number
    if isinstance(number, float) and 0 < number <= 1:
        return number
    raise ValueError(f"found {show(value)}, expected a count of batches such as 100, or a share from above 0 to 1.0")


def _compilation(value: Any) -> Any:
    if isinstance(value, bool) or value == CUDA_GRAPHS:
        return value
    raise ValueError(f"found {show(value)}, expected true, false or {CUDA_GRAPHS}")


def _expanded(word: str) -> str:
    try:
        return expand_word(word)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _one_or_several(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"found {show(value)}, expected text that is not empty, or a list of such")
    return list(map(_expanded, names)) if isinstance(value, list) else _expanded(value)


def several(names: str | list[str]) -> list[str]:
    """The names of a key that takes one or a list."""
    return [names] if isinstance(names, str) else names


CUDA_GRAPHS = "cuda_graphs"
"""The value of training.compile for which a GPU also records what was compiled."""
LARGEST = 10**9
"""The largest integer that a key takes, unless it says otherwise; what is larger ends in errors of libraries."""
Count = Annotated[int, Field(gt=0, le=LARGEST)]
"""An integer above zero."""
Whole = Annotated[int, Field(ge=0, le=LARGEST)]
"""An integer from zero on."""
Few = Annotated[int, Field(ge=0, le=1000)]
"""An integer from zero on, of what costs a thread, a process or a shard each."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What random numbers follow from: an integer of 32 bits, as numpy takes it."""
Real = Annotated[float, BeforeValidator(read_exponents)]
"""A finite number; integers and exponents without a point are welcome."""
NotNegative = Annotated[Real, Field(ge=0)]
"""A finite number from zero on."""
Batches = Annotated[int | float, BeforeValidator(_count_or_share)]
"""A count of batches, or a share of all: 1 is one of them, 1.0 is all."""
Compilation = Annotated[bool | str, BeforeValidator(_compilation)]
"""Whether to compile; CUDA_GRAPHS is more than true."""
Name = Annotated[str, Field(min_length=1)]
"""Text that is not empty."""
PathName = Annotated[Name, AfterValidator(_expanded)]
"""A path; `~` and `$VAR` are expanded."""
PathNames = Annotated[str | list[str], BeforeValidator(_one_or_several)]
"""One path, or several in a list that is not empty."""
