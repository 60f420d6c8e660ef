"""Denoisers: a backbone, its conditions and its guidance, bound together for one sampling run.

What does not change from step to step is computed once: projected conditions, keys and values of the cross-attention,
rotary angles, the doubled batch of guidance.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from stable_audio_tools.core.generations import current_generation
from stable_audio_tools.models.diffusion.guidance import Conditions, Denoiser, Guidance, Guided, Projected, on_host
from stable_audio_tools.models.diffusion.objectives import Objective
from stable_audio_tools.models.lora.adapter import NoiseIntervals
from stable_audio_tools.models.transformer.continuous import TransformerOutput

_ProjectedKey = tuple[str, int, tuple[bool, ...]]  # of a pass: which, length of x, adapters that act

# Conditions by the keywords of a backbone's `forward`: a tensor, None, or several tensors by id.
Inputs = Mapping[str, Any]


class ProjectingNetwork(Protocol):
    """A network that projects its conditions once for many calls: the diffusion transformer."""

    objective: Objective

    @property
    def dtype(self) -> torch.dtype: ...

    def project(self, conditions: Conditions, length: int, for_many_calls: bool = False) -> Projected: ...

    def denoise(self, x: Tensor, t: Tensor, given: Projected, **options: Any) -> TransformerOutput: ...


class PlainDenoiser:
    """The denoiser of a backbone that keeps nothing between calls; `inputs` are keywords of its published call."""

    def __init__(
        self,
        model: Callable[..., Tensor],
        inputs: Inputs,
        guidance: Guidance,
        objective: Objective,
    ) -> None:
        self.model = model
        self.inputs = dict(inputs)
        self.guidance = guidance
        self.objective = objective
        self.adapters = NoiseIntervals(model)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        level = self.objective.noise_level(on_host(t))
        with self.adapters.at(level):
            return self.model(x, t, **self.inputs, **self._options(level))

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        level = self.objective.noise_level(on_host(t))
        options = self._options(level)
        with self.adapters.at(level):
            output = self.model(x, t, **self.inputs, **options)
            if not options:
                return Guided(output, output)
            # At scale 0 only the unconditional pass remains.
            options = {"batch_cfg": self.guidance.batched, "cfg_scale": 0.0, "rescale_cfg": False}
            return Guided(output, self.model(x, t, **self.inputs, **options))

    def _options(self, level: Tensor) -> dict[str, object]:
        """Return the keywords of guidance at a noise level; none where guidance is off."""
        if not self.guidance.is_on or not self.guidance.covers(level):
            return {}
        options: dict[str, object] = {
            "cfg_scale": self.guidance.scale,
            "batch_cfg": self.guidance.batched,
            "rescale_cfg": True,
        }
        if self.guidance.works_on_data:
            options |= {"apg_scale": self.guidance.projection, "cfg_norm_threshold": self.guidance.norm_threshold}
        return options if self.guidance.rescale is None else {**options, "scale_phi": self.guidance.rescale}


class GuidedTransformer:
    """The diffusion transformer's denoiser."""

    def __init__(
        self,
        model: ProjectingNetwork,
        conditions: Conditions,
        guidance: Guidance,
        negative: Tensor | None = None,
        negative_mask: Tensor | None = None,
        call_by_call: bool = False,
    ) -> None:
        """`call_by_call` keeps nothing from one call of a module to the next, and passes whole batches to each."""
        self.model = model
        self.call_by_call = call_by_call
        self.guidance = guidance
        self.conditions = conditions.to(model.dtype)
        self.is_guided = guidance.is_on and conditions.can_be_dropped()
        if current_generation() == "0.0.20":
            negative_mask = None  # it takes masked tokens of a negative condition as they are
        self.unconditional = self.conditions.unconditional(negative, negative_mask) if self.is_guided else None
        self.has_negative = negative is not None
        self.adapters = NoiseIntervals(model)
        self._projected: dict[_ProjectedKey, Projected] = {}

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.guided(x, t).output

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        return self._run(x, t)[0]

    def call(
        self, x: Tensor, t: Tensor, return_info: bool = False, **options: Any
    ) -> Tensor | tuple[Tensor, dict[str, object]]:
        """Call as published; `options` go to `DiffusionTransformer.denoise`."""
        guided, hidden_states = self._run(x, t, keep_hidden_states=return_info, **options)
        guided = guided.to(self.model.dtype)
        if not return_info:
            return guided.output
        info: dict[str, object] = {"hidden_states": hidden_states}
        if guided.unconditional is not guided.output:
            info["uncond_output"] = guided.unconditional
        return guided.output, info

    def _run(self, x: Tensor, t: Tensor, **options: Any) -> tuple[Guided, list[Tensor]]:
        level = self.model.objective.noise_level(on_host(t))
        with self.adapters.at(level) as acting:
            return self._passes(x, t, level, acting, **options)

    def _passes(
        self, x: Tensor, t: Tensor, level: Tensor, acting: tuple[bool, ...], **options: Any
    ) -> tuple[Guided, list[Tensor]]:
        if self.unconditional is None or not self.guidance.covers(level):
            result = self.model.denoise(x, t, self._conditions_of("conditioned", x, acting), **options)
            return Guided(result.output, result.output), result.hidden_states
        if self.guidance.batched:
            doubled = self.model.denoise(
                torch.cat([x, x]), torch.cat([t, t]), self._conditions_of("both", x, acting), **options
            )
            conditioned, unconditioned = doubled.output.chunk(2)
            states = doubled.hidden_states
        else:
            first = self.model.denoise(x, t, self._conditions_of("conditioned", x, acting), **options)
            second = self.model.denoise(x, t, self._conditions_of("unconditional", x, acting), **options)
            conditioned, unconditioned = first.output, second.output
            states = [torch.cat(pair) for pair in zip(first.hidden_states, second.hidden_states)]
        objective = self.model.objective
        guided = self.guidance.combine(
            conditioned,
            unconditioned,
            lambda output: objective.predict_data(x.to(output), output, t),
            self.conditions.padding_mask,
        )
        return Guided(guided, unconditioned), states

    def _conditions_of(self, which: str, x: Tensor, acting: tuple[bool, ...]) -> Projected:
        """Return the projected conditions of the passes, for the length of x and the active adapters."""
        key = (which, x.shape[-1], acting)
        if key not in self._projected:
            self._projected[key] = self._project(*key)
        return self._projected[key]

    def _project(self, which: str, length: int, acting: tuple[bool, ...]) -> Projected:
        if self.unconditional is None:
            return self.model.project(self.conditions, length, for_many_calls=not self.call_by_call)
        both, items = self._projected.get(("both", length, acting)), self.conditions.batch_size
        if which == "conditioned" and both is not None and not self.call_by_call:
            return both.first(items)
        passes = {
            "conditioned": self.conditions,
            "unconditional": self.unconditional,
            "both": self.conditions.joined(self.unconditional),
        }
        projected = self.model.project(passes[which], length, for_many_calls=not self.call_by_call)
        if self.has_negative or self.call_by_call:
            return projected
        # Nothing on the way of a condition of zeros has a bias: attending to its values, all zero, would add zeros.
        return projected.attending(0 if which == "unconditional" else items)


class ObservedDenoiser:
    """The fast denoiser of a network, and the published call of it while other code has altered the network's calls."""

    def __init__(self, fast: Denoiser, published: Denoiser, is_altered: Callable[[], bool]) -> None:
        self.fast = fast
        self.published = published
        self.is_altered = is_altered

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._current()(x, t)

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        return self._current().guided(x, t)

    def _current(self) -> Denoiser:
        return self.published if self.is_altered() else self.fast
