"""Layout of training checkpoints: the tensors of the model, and of its averaged copy.

| trained | the model | its averaged copy |
|---|---|---|
| autoencoder | `autoencoder.` | `autoencoder_ema.ema_model.` |
| diffusion, with or without conditions, ARC | `diffusion.` | `diffusion_ema.ema_model.`, of `diffusion.model` alone |
| diffusion autoencoder | `diffae.` | `diffae_ema.ema_model.` |
| language model | `model.` | `model_ema.ema_model.` |

All other tensors (critic, losses, teacher) serve training only.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

State = Mapping[str, Tensor]


class Wrapper(NamedTuple):
    noun: str
    online: str
    averaged: str


WRAPPERS = (
    Wrapper("an autoencoder", "autoencoder.", "autoencoder_ema."),
    Wrapper("a diffusion model", "diffusion.", "diffusion_ema."),
    Wrapper("a diffusion autoencoder", "diffae.", "diffae_ema."),
    Wrapper("a language model", "model.", "model_ema."),
)
_ENGINES = ("_forward_module.", "module.", "_orig_mod.")  # DeepSpeed under Lightning, data parallelism, torch.compile
_TRAINING_ONLY = {
    "discriminator",
    "discriminator_head",
    "eval_losses",
    "hubert",
    "losses",
    "losses_disc",
    "losses_gen",
    "lrstft",
    "model_last_layer",
    "mrmel",
    "sdstft",
    "teacher_model",
}


class View(NamedTuple):
    """A mapping from the names in a file to the names of a model."""

    noun: str
    strip: str
    add: str = ""
    wrapper: Wrapper | None = None

    def names(self, names: Collection[str]) -> dict[str, str]:
        """Return the name in the file for each name of the model."""
        return {self.add + name[len(self.strip) :]: name for name in names if name.startswith(self.strip)}


def strip_engine_names(state: State) -> dict[str, Tensor]:
    """Remove the prefixes and infixes that parallel engines and the compiler add to names."""
    renamed = dict(state)
    for prefix in _ENGINES:
        if renamed and all(name.startswith(prefix) for name in renamed):
            renamed = {name[len(prefix) :]: value for name, value in renamed.items()}
    return {name.replace("._orig_mod.", "."): value for name, value in renamed.items()}


def find_wrapper(names: Collection[str], is_training: bool) -> Wrapper | None:
    """Return the wrapper with these names; without Lightning's own keys, only unambiguous cases count."""
    tops = {name.split(".", 1)[0] for name in names}
    for wrapper in WRAPPERS:
        online, averaged = wrapper.online[:-1], wrapper.averaged[:-1]
        if online not in tops or (online == "model" and not any(name.startswith("model.lm.") for name in names)):
            continue
        inner = any(
            name.startswith((wrapper.online + "conditioner.", wrapper.online + "pretransform.")) for name in names
        )
        if is_training or averaged in tops or tops & _TRAINING_ONLY or (tops == {online} and inner):
            return wrapper
    return None


def views(names: Collection[str], is_training: bool) -> list[View]:
    """Return all views of the file, the likeliest first."""
    wrapper = find_wrapper(names, is_training)
    roots = [View("", "")]
    if wrapper is not None:
        roots.insert(0, View("", wrapper.online, wrapper=wrapper))
    inner = [
        View("the autoencoder inside the diffusion model", root.strip + "pretransform.model.", wrapper=root.wrapper)
        for root in roots
    ]
    around = [View("an autoencoder, put into the pretransform", root.strip, "model.", root.wrapper) for root in roots]
    return [*roots, *inner, *around]


def best_view(names: Collection[str], is_training: bool, expected: Collection[str] | None) -> View:
    """Return the view with most names of the model; without a model, the likeliest."""
    choices = views(names, is_training)
    if expected is None:
        return choices[0]
    model_names = set(expected)
    return max(choices, key=lambda view: len(model_names & set(view.names(names))))


def has_averaged(state: State, wrapper: Wrapper | None) -> bool:
    """Return whether an averaged copy is stored beside the model."""
    return wrapper is not None and any(name.startswith(wrapper.averaged + "ema_model.") for name in state)


def with_averaged(state: State, wrapper: Wrapper) -> dict[str, Tensor]:
    """Replace the online values by the averaged ones, wherever there are any; the names stay."""
    root = wrapper.averaged + "ema_model."
    averaged = {name[len(root) :]: value for name, value in state.items() if name.startswith(root)}
    places = (wrapper.online, wrapper.online + "model.")
    place = max(places, key=lambda place: sum(place + name in state for name in averaged))
    return {**state, **{place + name: value for name, value in averaged.items()}}
