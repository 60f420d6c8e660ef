"""What older and related programs write differently, one named function each.

An upgrade changes names or shapes of `state` in place, never values that were learnt, and only where the model at hand
expects the other form. It returns how many tensors it touched; the report says which upgrades ran. Completions, which
run last, take over from the model what some programs do not store.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class Target:
    """The names and tensors of the model that is loaded into."""

    tensors: Mapping[str, Tensor]  # what its state dict holds
    parameters: frozenset[str]
    recomputed: frozenset[str]  # buffers that it makes itself and that files need not hold

    @classmethod
    def of(cls, model: nn.Module) -> "Target":
        tensors = model.state_dict(keep_vars=True)
        buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        parameters = frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))
        held = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        return cls(held, parameters, frozenset(buffers - set(held)))

    def lacks(self, state: State, name: str) -> bool:
        """The model has this tensor, the file does not."""
        return name in self.tensors and name not in state


def weight_norm_names(state: State, target: Target) -> int:
    """`parametrizations.weight.original0/1`, the names of torch's newer weight norm, and `weight_g/v`, both ways."""
    pairs = ((".parametrizations.weight.original0", ".weight_g"), (".parametrizations.weight.original1", ".weight_v"))
    changed = 0
    for ours, theirs in (*pairs, *((old, new) for new, old in pairs)):
        for name in [name for name in target.tensors if name.endswith(theirs)]:
            other = name[: -len(theirs)] + ours
            if target.lacks(state, name) and other in state and other not in target.tensors:
                state[name] = state.pop(other)
                changed += 1
    return changed


def weight_norm_removed_from_file(state: State, target: Target) -> int:
    """The file holds plain weights where the model holds gain and direction: w = |w| * w / |w|."""
    changed = 0
    for name in [name for name in target.tensors if name.endswith(".weight_v")]:
        stem = name[: -len("_v")]
        if target.lacks(state, name) and target.lacks(state, f"{stem}_g") and stem in state:
            weight = state.pop(stem)
            state[name], state[f"{stem}_g"] = weight, torch.norm_except_dim(weight, 2, 0)
            changed += 1
    return changed


def weight_norm_removed_from_model(state: State, target: Target) -> int:
    """The file holds gain and direction where the model's weight norm was removed."""
    changed = 0
    for name in [name for name in state if name.endswith(".weight_v")]:
        stem = name[: -len("_v")]
        if name not in target.tensors and target.lacks(state, stem) and f"{stem}_g" in state:
            direction, gain = state.pop(name), state.pop(f"{stem}_g")
            state[stem] = torch._weight_norm(direction.float(), gain.float(), 0).to(direction.dtype)
            changed += 1
    return changed


def one_element_flags(state: State, target: Target) -> int:
    """`_codebook.initted` and the counters of weight averaging: a scalar here, one element in a list there."""
    changed = 0
    for name in [name for name in state if name.endswith((".initted", "_ema.step"))]:
        expected = target.tensors.get(name)
        if expected is None or state[name].numel() != 1 or expected.numel() != 1:
            continue
        if state[name].shape != expected.shape or state[name].dtype != expected.dtype:
            state[name] = state[name].reshape(expected.shape).to(expected.dtype)
            changed += 1
    return changed


def constants_not_in_file(state: State, target: Target) -> int:
    """Buffers that no training changes, left out by some programs: rotary frequencies, the zero offset of norms."""
    changed = 0
    for name, own in target.tensors.items():
        constant = name.endswith((".inv_freq", ".beta")) and name not in target.parameters
        if constant and name not in state and not own.is_meta:
            state[name] = own.detach()
            changed += 1
    return changed


def constants_not_in_model(state: State, target: Target) -> int:
    """Buffers that the model makes itself, kept in files by older releases of some libraries."""
    names = (".position_ids", ".implicit_codebook", "._levels", "._basis", ".zero")
    surplus = [
        name
        for name in state
        if name not in target.tensors and (name in target.recomputed or name.endswith((*names, ".inv_freq")))
    ]
    for name in surplus:
        del state[name]
    return len(surplus)


def clap_parts_not_in_model(state: State, target: Target) -> int:
    """Some programs store the rest of CLAP beside a text encoder that was trained with the model."""
    owners = {name.split(".text_branch.")[0] for name in target.tensors if ".text_branch." in name}
    rest = ("text_transform.", "audio_transform.", "audio_projection.", "logit_scale_")
    prefixes = tuple(f"{owner}.{part}" for owner in owners for part in rest)
    surplus = [name for name in state if name.startswith(prefixes) and name not in target.tensors]
    for name in surplus:
        del state[name]
    return len(surplus)


def loss_module_names(state: State, target: Target) -> int:
    """friendly-stable-audio-tools calls the `loss_module` of a training checkpoint `auraloss_module`."""
    return _rename(state, target, lambda name: name.replace(".auraloss_module.", ".loss_module."))


def loss_weights_not_in_file(state: State, target: Target) -> int:
    """Weights of the losses come from the config; friendly-stable-audio-tools does not store them."""
    pattern = re.compile(r"(^|\.)losses\w*\.losses\.\d+\.weight$")
    absent = [name for name in target.tensors if pattern.search(name) and name not in state]
    for name in absent:
        if not target.tensors[name].is_meta:
            state[name] = target.tensors[name].detach()
    return len(absent)


def online_copy_in_averaging(state: State, target: Target) -> int:
    """Training checkpoints of autoencoders and language models store the online weights twice."""
    surplus = [name for name in state if "_ema.online_model." in name and name not in target.tensors]
    for name in surplus:
        del state[name]
    return len(surplus)


def names_with_one_part_too_many(state: State, target: Target) -> int:
    """Checkpoints of wrapped modules have a part inside some names (`encoder.inner.layers` for `encoder.layers`)."""
    renamed = 0
    for name in [name for name in state if name not in target.tensors]:
        parts = name.split(".")
        shorter = (".".join(parts[:cut] + parts[cut + 1 :]) for cut in range(1, len(parts)))
        found = next((other for other in shorter if target.lacks(state, other)), None)
        if found is not None and state[name].shape == target.tensors[found].shape:
            state[found] = state.pop(name)
            renamed += 1
    return renamed


Upgrade = Callable[[State, Target], int]

UPGRADES: tuple[Upgrade, ...] = (
    weight_norm_names,
    weight_norm_removed_from_file,
    weight_norm_removed_from_model,
    one_element_flags,
    constants_not_in_model,
    clap_parts_not_in_model,
    loss_module_names,
    online_copy_in_averaging,
    names_with_one_part_too_many,
)
COMPLETIONS: tuple[Upgrade, ...] = (constants_not_in_file, loss_weights_not_in_file)


def apply_upgrades(state: State, target: Target, upgrades: Sequence[Upgrade] = UPGRADES) -> dict[str, int]:
    """Run the upgrades; how many tensors each touched, those that touched none left out."""
    counts = {upgrade.__name__: upgrade(state, target) for upgrade in upgrades}
    return {name: count for name, count in counts.items() if count}


def widen_codebook_flags(state: Mapping[str, Tensor]) -> State:
    """`_codebook.initted` as files in the wild have it: one element, not a scalar."""
    return {
        name: value.reshape(1) if name.endswith("_codebook.initted") and value.dim() == 0 else value
        for name, value in state.items()
    }


def _rename(state: State, target: Target, rename: Callable[[str], str]) -> int:
    changed = 0
    for name in list(state):
        new = rename(name)
        if new != name and name not in target.tensors and target.lacks(state, new):
            state[new] = state.pop(name)
            changed += 1
    return changed
