"""Training checkpoints: which tensors are the model's, and which its averaged copy.

| trained | the model | its averaged copy |
|---|---|---|
| autoencoder | `autoencoder.` | `autoencoder_ema.ema_model.` |
| diffusion, with or without conditions, ARC | `diffusion.` | `diffusion_ema.ema_model.`, of `diffusion.model` alone |
| diffusion autoencoder | `diffae.` | `diffae_ema.ema_model.` |
| language model | `model.` | `model_ema.ema_model.` |

Everything else (critic, losses, teacher) serves training only.
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
    """A way to read the names of a file as those of a model."""

    noun: str
    strip: str
    add: str = ""
    wrapper: Wrapper | None = None

    def names(self, names: Collection[str]) -> dict[str, str]:
        """Name for the model -> name in the file."""
        return {self.add + name[len(self.strip) :]: name for name in names if name.startswith(self.strip)}


def strip_engine_names(state: State) -> dict[str, Tensor]:
    """Remove what parallel engines and the compiler put before or into names."""
    renamed = dict(state)
    for prefix in _ENGINES:
        if renamed and all(name.startswith(prefix) for name in renamed):
            renamed = {name[len(prefix) :]: value for name, value in renamed.items()}
    return {name.replace("._orig_mod.", "."): value for name, value in renamed.items()}


def find_wrapper(names: Collection[str], is_training: bool) -> Wrapper | None:
    """The wrapper whose names these are. Without Lightning's own keys, only clear cases count."""
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
    """Every way to read the file, the likeliest first."""
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
    """The view under which most names are the model's; without a model, the likeliest."""
    choices = views(names, is_training)
    if expected is None:
        return choices[0]
    wanted = set(expected)
    return max(choices, key=lambda view: len(wanted & set(view.names(names))))


def has_averaged(state: State, wrapper: Wrapper | None) -> bool:
    """Is an averaged copy stored beside the model?"""
    return wrapper is not None and any(name.startswith(wrapper.averaged + "ema_model.") for name in state)


def with_averaged(state: State, wrapper: Wrapper) -> dict[str, Tensor]:
    """The same names, with the averaged values in place of the online ones, wherever they were averaged."""
    root = wrapper.averaged + "ema_model."
    averaged = {name[len(root) :]: value for name, value in state.items() if name.startswith(root)}
    places = (wrapper.online, wrapper.online + "model.")
    place = max(places, key=lambda place: sum(place + name in state for name in averaged))
    return {**state, **{place + name: value for name, value in averaged.items()}}
