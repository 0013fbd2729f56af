"""The optimizer and scheduler sections: a class of torch by name, and arguments checked against its signature.

Names and kinds of arguments are checked here, when the config is read; their ranges by torch, when it builds the class.
Building one here as well would check those too, but loads torch's compiler: three seconds and 70 MB for each command.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator
from torch.optim import lr_scheduler

from iianet.config.fields import NotNegative, Section, read_exponents
from iianet.config.problems import raise_problems
from iianet.wording import did_you_mean, show

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    kind.__name__.lower(): kind
    for kind in (
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.SGD,
        torch.optim.RMSprop,
        torch.optim.RAdam,
        torch.optim.NAdam,
        torch.optim.Adamax,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.ASGD,
    )
}
"""Lower-case name -> class."""

SCHEDULERS: dict[str, type[lr_scheduler.LRScheduler]] = {
    kind.__name__: kind
    for kind in (
        lr_scheduler.ConstantLR,
        lr_scheduler.CosineAnnealingLR,
        lr_scheduler.CosineAnnealingWarmRestarts,
        lr_scheduler.CyclicLR,
        lr_scheduler.ExponentialLR,
        lr_scheduler.LinearLR,
        lr_scheduler.MultiStepLR,
        lr_scheduler.OneCycleLR,
        lr_scheduler.PolynomialLR,
        lr_scheduler.ReduceLROnPlateau,
        lr_scheduler.StepLR,
    )
}
"""Name -> class, of those whose arguments YAML can hold."""

Argument = Annotated[Any, BeforeValidator(read_exponents)]
"""A value of a torch argument, as YAML gives it."""


class OptimizerSection(Section):
    """A class of torch.optim; further keys are arguments of that class, such as `betas` or `momentum`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Argument]

    optim_name: str = "adam"
    lr: NotNegative = 0.001
    weight_decay: NotNegative = 0.0

    @field_validator("optim_name")
    @classmethod
    def _known_name(cls, value: str) -> str:
        if value.lower() not in OPTIMIZERS:
            raise ValueError(f"found {show(value)}, expected an optimizer{did_you_mean(value, OPTIMIZERS)}")
        return value

    @model_validator(mode="after")
    def _known_arguments(self) -> "OptimizerSection":
        raise_problems(_problems(self.optimizer_class, self.arguments, others=["optim_name"]))
        return self

    @property
    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        """The class that `optim_name` names."""
        return OPTIMIZERS[self.optim_name.lower()]

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `optimizer_class`: all but the parameters."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, **self.__pydantic_extra__}


class SchedulerSection(Section):
    """A class of torch.optim.lr_scheduler, or null for a constant learning rate."""

    sche_name: str | None = "ReduceLROnPlateau"
    sche_config: dict[str, Argument] = Field(default_factory=dict)
    """Keyword arguments of the scheduler; without effect where `sche_name` is null."""

    @field_validator("sche_name")
    @classmethod
    def _known_name(cls, value: str | None) -> str | None:
        if value is not None and value not in SCHEDULERS:
            raise ValueError(f"found {show(value)}, expected a scheduler or null{did_you_mean(value, SCHEDULERS)}")
        return value

    @field_validator("sche_config", mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _known_arguments(self) -> "SchedulerSection":
        if self.scheduler_class is not None:
            problems = _problems(self.scheduler_class, self.sche_config)
            raise_problems({f"sche_config.{key}": problem for key, problem in problems.items()})
        return self

    @property
    def scheduler_class(self) -> type[lr_scheduler.LRScheduler] | None:
        """The class that `sche_name` names, None where it is null."""
        return None if self.sche_name is None else SCHEDULERS[self.sche_name]


def _problems(kind: type, arguments: Mapping[str, Any], others: Iterable[str] = ()) -> dict[str, str]:
    """What is wrong with the keyword arguments of a torch class.

    Args:
        kind: The class; its first parameter, what it works on, is not the config's to give.
        arguments: Keyword arguments as the config gives them.
        others: Keys of the section which are no arguments, for the nearest name.

    Returns:
        Argument -> problem.
    """
    _, *parameters = inspect.signature(kind).parameters.values()
    by_name = {parameter.name: parameter for parameter in parameters}
    problems = {
        name: f"missing; {kind.__name__} needs it"
        for name, parameter in by_name.items()
        if parameter.default is parameter.empty and name not in arguments
    }
    for name, value in arguments.items():
        if name not in by_name:
            meant = did_you_mean(name, [*by_name, *others])
            problems[name] = f"unknown key: {kind.__name__} takes no such argument{meant}"
        elif not _fits(value, by_name[name]):
            problems[name] = f"found {show(value)}, expected what {kind.__name__} takes: {_annotation(by_name[name])}"
    return problems


def _fits(value: Any, parameter: inspect.Parameter) -> bool:
    """Whether a value is of the kind of a parameter's default; a parameter without a default takes numbers."""
    default = parameter.default
    if isinstance(default, bool | str):
        return type(value) is type(default)
    if default is None:
        return value is None or isinstance(value, int | float)  # bool is an int, and stands for itself here
    if not isinstance(value, list):
        return _is_number(value) and not isinstance(default, tuple)
    several = any(word in _annotation(parameter) for word in ("tuple", "list", "Iterable"))
    return several and all(map(_is_number, value)) and (not isinstance(default, tuple) or len(value) == len(default))


def _annotation(parameter: inspect.Parameter) -> str:
    found = parameter.annotation
    return found if isinstance(found, str) else inspect.formatannotation(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
