"""Going on from checkpoints that the original stable-audio-tools wrote.

Its optimisers number the parameters of a network in the order of its own code, frozen ones included, which never get a
state. The order is that of the names in the checkpoint, so states find their parameters by name.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

STAMP = "stable_audio_tools"  # the key under which a checkpoint of ours holds what only ours has


def is_foreign(checkpoint: Mapping[str, Any]) -> bool:
    """Did another program write it?"""
    return STAMP not in checkpoint


def fitted_optimizers(checkpoint: Mapping[str, Any], module: nn.Module) -> list[dict[str, Any]]:
    """The optimiser states with the numbers that the parameters of `module` have here."""
    networks = {name: _names(checkpoint["state_dict"], name, child) for name, child in module.named_children()}
    made = []
    for state in checkpoint.get("optimizer_states", ()):
        numbered = sum(len(group["params"]) for group in state["param_groups"])
        name = next((name for name, names in networks.items() if len(names) == numbered), None)
        if name is None:
            logger.warning("an optimiser of the checkpoint has %d parameters, as no network here has", numbered)
            made.append(dict(state))
            continue
        here = [own for own, p in module.get_submodule(name).named_parameters() if p.requires_grad]
        made.append(renumbered(state, networks.pop(name), here))
    return made


def renumbered(state: Mapping[str, Any], there: Sequence[str], here: Sequence[str]) -> dict[str, Any]:
    """A state whose numbers are places in `there`, as one group whose numbers are places in `here`."""
    place = {name: index for index, name in enumerate(there)}
    entries = {number: state["state"][place[name]] for number, name in enumerate(here) if place[name] in state["state"]}
    group = {**state["param_groups"][0], "params": list(range(len(here)))}
    return {"state": entries, "param_groups": [group]}


def _names(stored: Mapping[str, Any], network: str, child: nn.Module) -> list[str]:
    """The parameters of a network in the order of the checkpoint."""
    own = {name for name, _ in child.named_parameters()}
    prefix = f"{network}."
    names = [name.removeprefix(prefix) for name in stored if name.startswith(prefix)]
    return [name for name in names if name in own]
