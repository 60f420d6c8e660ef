"""Upgrades of weights that older and related programs wrote in another form, one named function each.

An upgrade changes names or shapes of `state` in place, never learnt values, and only if the model expects the other
form. It returns how many tensors it changed; the report lists the upgrades that ran. Completions run last and copy from
the model what some programs do not store.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class Target:
    """Names and tensors of the model that weights are loaded into."""

    tensors: Mapping[str, Tensor]  # entries of its state dict
    parameters: frozenset[str]
    recomputed: frozenset[str]  # buffers that the model computes and files need not hold

    @classmethod
    def of(cls, model: nn.Module) -> "Target":
        tensors = model.state_dict(keep_vars=True)
        buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        parameters = frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))
        held = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        return cls(held, parameters, frozenset(buffers - set(held)))

    def is_missing(self, state: State, name: str) -> bool:
        """Return whether the model has this tensor and the file does not."""
        return name in self.tensors and name not in state


def weight_norm_names(state: State, target: Target) -> int:
    """Convert between `weight_g/v` and `parametrizations.weight.original0/1` of torch's newer weight norm."""
    pairs = ((".parametrizations.weight.original0", ".weight_g"), (".parametrizations.weight.original1", ".weight_v"))
    changed = 0
    for ours, theirs in (*pairs, *((old, new) for new, old in pairs)):
        for name in [name for name in target.tensors if name.endswith(theirs)]:
            other = name[: -len(theirs)] + ours
            if target.is_missing(state, name) and other in state and other not in target.tensors:
                state[name] = state.pop(other)
                changed += 1
    return changed


def weight_norm_removed_from_file(state: State, target: Target) -> int:
    """Split plain weights of the file into gain and direction of the model: w = |w| * w / |w|."""
    changed = 0
    for name in [name for name in target.tensors if name.endswith(".weight_v")]:
        stem = name[: -len("_v")]
        if target.is_missing(state, name) and target.is_missing(state, f"{stem}_g") and stem in state:
            weight = state.pop(stem)
            state[name], state[f"{stem}_g"] = weight, torch.norm_except_dim(weight, 2, 0)
            changed += 1
    return changed


def weight_norm_removed_from_model(state: State, target: Target) -> int:
    """Multiply gain and direction of the file for a model whose weight norm was removed."""
    changed = 0
    for name in [name for name in state if name.endswith(".weight_v")]:
        stem = name[: -len("_v")]
        if name not in target.tensors and target.is_missing(state, stem) and f"{stem}_g" in state:
            direction, gain = state.pop(name), state.pop(f"{stem}_g")
            state[stem] = torch._weight_norm(direction.float(), gain.float(), 0).to(direction.dtype)
            changed += 1
    return changed


def one_element_flags(state: State, target: Target) -> int:
    """Convert `_codebook.initted` and counters of weight averaging between scalars and lists of one element."""
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
    """Take buffers that no training changes from the model: rotary frequencies, the zero offset of norms."""
    changed = 0
    for name, own in target.tensors.items():
        constant = name.endswith((".inv_freq", ".beta")) and name not in target.parameters
        if constant and name not in state and not own.is_meta:
            state[name] = own.detach()
            changed += 1
    return changed


def constants_not_in_model(state: State, target: Target) -> int:
    """Drop buffers that the model computes, and that older releases of some libraries store."""
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
    """Drop the rest of CLAP, which some programs store beside a text encoder that was trained with the model."""
    owners = {name.split(".text_branch.")[0] for name in target.tensors if ".text_branch." in name}
    parts = ("text_transform.", "audio_transform.", "audio_projection.", "logit_scale_")
    prefixes = tuple(f"{owner}.{part}" for owner in owners for part in parts)
    surplus = [name for name in state if name.startswith(prefixes) and name not in target.tensors]
    for name in surplus:
        del state[name]
    return len(surplus)


def loss_module_names(state: State, target: Target) -> int:
    """Rename `auraloss_module` of friendly-stable-audio-tools to `loss_module`."""
    return _rename(state, target, lambda name: name.replace(".auraloss_module.", ".loss_module."))


def loss_weights_not_in_file(state: State, target: Target) -> int:
    """Take loss weights from the model, since friendly-stable-audio-tools does not store them."""
    pattern = re.compile(r"(^|\.)losses\w*\.losses\.\d+\.weight$")
    absent = [name for name in target.tensors if pattern.search(name) and name not in state]
    for name in absent:
        if not target.tensors[name].is_meta:
            state[name] = target.tensors[name].detach()
    return len(absent)


def online_copy_in_averaging(state: State, target: Target) -> int:
    """Drop the second copy of the online weights in checkpoints of autoencoders and language models."""
    surplus = [name for name in state if "_ema.online_model." in name and name not in target.tensors]
    for name in surplus:
        del state[name]
    return len(surplus)


def names_with_one_part_too_many(state: State, target: Target) -> int:
    """Drop an extra part of names in checkpoints of wrapped modules (`encoder.inner.layers` to `encoder.layers`)."""
    renamed = 0
    for name in [name for name in state if name not in target.tensors]:
        parts = name.split(".")
        shorter = (".".join(parts[:cut] + parts[cut + 1 :]) for cut in range(1, len(parts)))
        found = next((other for other in shorter if target.is_missing(state, other)), None)
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
    """Run the upgrades and return how many tensors each changed, without those that changed none."""
    counts = {upgrade.__name__: upgrade(state, target) for upgrade in upgrades}
    return {name: count for name, count in counts.items() if count}


def widen_codebook_flags(state: Mapping[str, Tensor]) -> State:
    """Return `_codebook.initted` as one element instead of a scalar, as in published files."""
    return {
        name: value.reshape(1) if name.endswith("_codebook.initted") and value.dim() == 0 else value
        for name, value in state.items()
    }


def _rename(state: State, target: Target, rename: Callable[[str], str]) -> int:
    changed = 0
    for name in list(state):
        new = rename(name)
        if new != name and name not in target.tensors and target.is_missing(state, new):
            state[new] = state.pop(name)
            changed += 1
    return changed
