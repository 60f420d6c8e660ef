"""Helpers shared by the backbones: one list of config keys for a net and its wrappers, and initialisation."""

import inspect
from collections.abc import Callable, Sequence
from typing import TypeVar, get_type_hints

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def takes_options_of(inner: type[nn.Module], without: Sequence[str] = ()) -> Callable[[type[Net]], type[Net]]:
    """Spell out a constructor's `**options` as the parameters of `inner`, which it hands on, but for some.

    Configs are checked against the constructor's signature: so every key has one type, bound and default.
    """

    def spell_out(outer: type[Net]) -> type[Net]:
        init = outer.__init__
        own = [p for p in inspect.signature(init).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {parameter.name for parameter in own}
        more = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(inner).parameters.values()
            if parameter.name not in taken and parameter.name not in without
        ]
        init.__annotations__ = {
            **get_type_hints(inner.__init__, include_extras=True),
            **get_type_hints(init, include_extras=True),
        }
        init.__signature__ = inspect.Signature(own + more)  # type: ignore[attr-defined]
        return outer

    return spell_out


@torch.no_grad()
def halve_parameters(module: nn.Module) -> None:
    """Multiply every parameter by one half, as published models were trained from."""
    for parameter in module.parameters():
        parameter.mul_(0.5)
