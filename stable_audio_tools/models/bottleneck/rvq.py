"""Residual vector quantisation (Zeghidour et al. 2021) by vector-quantize-pytorch, codebooks as moving averages."""

import inspect
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.bottleneck.base import Compressed, DiscreteBottleneck, facts
from stable_audio_tools.models.bottleneck.vae import sample_encoded

_Decay = Annotated[float, Field(ge=0, le=1)]
_Weight = Annotated[float, Field(ge=0)]


class ResidualVQBottleneck(DiscreteBottleneck):
    """Codebooks in sequence, each of which quantises the residual of the previous ones; base of `rvq` and `rvq_vae`.

    The options are those of vector-quantize-pytorch's `ResidualVQ` and `VectorQuantize`.
    """

    codebooks_first = False
    is_residual = True
    quantizer: Any  # ResidualVQ

    def __init__(
        self,
        dim: Annotated[int, Field(ge=1, description="channels of the latents")] = 128,
        codebook_size: Annotated[int, Field(ge=1, description="entries of each codebook")] = 1024,
        num_quantizers: Annotated[int, Field(ge=1, description="codebooks")] = 8,
        decay: Annotated[_Decay, Field(description="decay of the moving averages in the codebooks")] = 0.99,
        kmeans_init: Annotated[bool, Field(description="start from the clusters of the first batch")] = True,
        kmeans_iters: Annotated[int, Field(ge=1, description="iterations of that clustering")] = 50,
        threshold_ema_dead_code: Annotated[
            float, Field(ge=0, description="entries used less often than this per batch are replaced")
        ] = 2,
        codebook_dim: Annotated[
            int | None, Field(ge=1, description="channels of the entries; null: dim, without projection")
        ] = None,
        shared_codebook: Annotated[bool, Field(description="one codebook for all quantisers")] = False,
        heads: Literal[1] = 1,
        quantize_dropout: Annotated[bool, Field(description="in training, leave out the last few, at random")] = False,
        quantize_dropout_cutoff_index: Annotated[int, Field(ge=0, description="the first to leave out, minus one")] = 0,
        quantize_dropout_multiple_of: Annotated[int, Field(ge=1, description="keep a multiple of this many")] = 1,
        eps: Annotated[float, Field(gt=0, description="smoothing of the usage counts")] = 1e-5,
        freeze_codebook: Annotated[bool, Field(description="do not update the codebooks")] = False,
        sync_kmeans: Annotated[bool, Field(description="cluster over all processes")] = True,
        sync_codebook: Annotated[
            bool | None, Field(description="average over all processes; null: where there are several")
        ] = None,
        distributed_replace_codes: Annotated[bool, Field(description="replace entries from all processes")] = True,
        use_cosine_sim: Annotated[bool, Field(description="compare directions instead of distances")] = False,
        commitment_weight: Annotated[_Weight, Field(description="pull of the encoder to the codebooks")] = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: Annotated[_Weight, Field(description="pull of the entries apart")] = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: Annotated[int | None, Field(ge=1)] = None,
        codebook_diversity_loss_weight: Annotated[_Weight, Field(description="pull to equal usage")] = 0.0,
        codebook_diversity_temperature: Annotated[float, Field(gt=0)] = 100.0,
        stochastic_sample_codes: Annotated[bool, Field(description="in training, draw near entries")] = False,
        sample_codebook_temp: Annotated[float, Field(ge=0, description="temperature of those draws")] = 1.0,
        straight_through: Annotated[bool, Field(description="straight-through gradients of those draws")] = False,
        reinmax: Annotated[bool, Field(description="the better straight-through estimate of Liu et al. 2023")] = False,
        ema_update: Annotated[bool, Field(description="codebooks are moving averages")] = True,
        learnable_codebook: Annotated[bool, Field(description="codebooks learn by gradient")] = False,
        affine_param: Annotated[bool, Field(description="match the statistics of codebook and batch")] = False,
        sync_affine_param: Annotated[bool, Field(description="statistics over all processes")] = False,
        affine_param_batch_decay: _Decay = 0.99,
        affine_param_codebook_decay: _Decay = 0.9,
        sync_update_v: Annotated[float, Field(ge=0, le=1, description="of the synchronous update rule")] = 0.0,
        rotation_trick: Annotated[bool, Field(description="gradients turned as the vectors (Fifty et al. 2024)")] = (
            False
        ),
    ) -> None:
        options = {
            name: value for name, value in locals().items() if name not in ("self", "__class__", "freeze_codebook")
        }
        super().__init__(num_quantizers, codebook_size, tokens_id="quantizer_indices")
        self.freeze_codebook = freeze_codebook
        self.affine_param = affine_param
        self.quantizer = make_residual_vq(options)

    def quantize(self, x: Tensor, n_quantizers: int | None) -> Compressed:
        """Quantise values (b, d, t) to sums of codebook entries (b, d, t) and codes (b, t, q)."""
        values, codes, loss = self.quantizer(x.mT, freeze_codebook=self.freeze_codebook)
        latents = values.mT
        if n_quantizers is not None and not self.training:
            codes = codes[..., :n_quantizers]
            latents = self.lookup(codes)
        return Compressed(latents, {"quantizer_indices": codes, "quantizer_loss": loss.mean()})

    def lookup(self, codes: Tensor) -> Tensor:  # (b, t, q) -> (b, d, t)
        if self.affine_param:
            raise ValueError("codes of affine_param codebooks depend on the batch; store the latents instead")
        summed: Tensor | float = 0.0
        for layer, indices in zip(self.quantizer.layers, codes.unbind(-1)):
            used = indices >= 0  # left out by quantize_dropout where negative
            summed = summed + layer._codebook.embed[0][indices.clamp(min=0)] * used[..., None]
        values: Tensor = self.quantizer.project_out(summed)
        return values.mT

    def _load_from_state_dict(self, state_dict: JsonObject, prefix: str, *args: Any) -> None:
        """Accept `initted` as a number or a list of one, since releases of vector-quantize-pytorch differ."""
        for name in [name for name in state_dict if name.startswith(prefix) and name.endswith("._codebook.initted")]:
            state_dict[name] = _as_list_of_one(state_dict[name])
        super()._load_from_state_dict(state_dict, prefix, *args)


def make_residual_vq(options: JsonObject) -> Any:
    """Build `ResidualVQ` of the installed release, with the same defaults and tensor shapes for every release."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # some releases use torch's old autocast
        from vector_quantize_pytorch import ResidualVQ, VectorQuantize

    known = {*inspect.signature(ResidualVQ).parameters, *inspect.signature(VectorQuantize).parameters}
    defaults = {name: p.default for name, p in inspect.signature(ResidualVQBottleneck).parameters.items()}
    missing = [name for name, value in options.items() if name not in known and value != defaults.get(name)]
    if missing:
        raise ConfigError(
            f"bottleneck.config.{name}: the installed vector-quantize-pytorch has no such option; leave it out or "
            "install another release"
            for name in missing
        )
    quantizer: nn.Module = ResidualVQ(**{name: value for name, value in options.items() if name in known})
    for module in quantizer.modules():
        if "initted" in module._buffers:
            module._buffers["initted"] = _as_list_of_one(module._buffers["initted"])
    return quantizer


def _as_list_of_one(flag: Tensor | None) -> Tensor:
    assert flag is not None
    return flag.reshape(1).to(torch.float32)


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.ema_update and config.learnable_codebook:
        yield "ema_update", "is true, and so is learnable_codebook: codebooks learn one way; set one of them to false"
    if config.sync_update_v > 0 and not config.learnable_codebook:
        yield "sync_update_v", "needs learnable_codebook: true"
    if config.use_cosine_sim and config.affine_param:
        yield "affine_param", "does not go with use_cosine_sim: directions have no statistics to match"


def _facts(config: SimpleNamespace, encoder_multiple: int = 1) -> JsonObject:
    codes = (config.num_quantizers, config.codebook_size)
    return facts(dim=config.dim, encoder_multiple=encoder_multiple, codes=codes)


@register("bottleneck", "rvq", facts=_facts, check=_check)
class RVQBottleneck(ResidualVQBottleneck):
    """Residual vector quantisation."""

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        return self.quantize(x, n_quantizers)


@register("bottleneck", "rvq_vae", facts=lambda config: _facts(config, encoder_multiple=2), check=_check)
class RVQVAEBottleneck(ResidualVQBottleneck):
    """A sample as in a VAE, then residual vector quantisation."""

    def compress(self, x: Tensor, *, losses: bool, n_quantizers: int | None) -> Compressed:
        sample, kl = sample_encoded(x)
        latents, info = self.quantize(sample, n_quantizers)
        return Compressed(latents, {"kl": kl, **info})
