"""The diffusion transformer (Peebles & Xie 2023, Evans et al. 2024).

x (b, c, n) and channel conditions -> patches (b, t, d), with the noise level and conditions as prepended tokens,
by adaptive layer norm, by cross-attention -> transformer -> prediction (b, c, n)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config.kinds import ModularSignal
from stable_audio_tools.models.calls import is_touched, published_call, runs_published, used
from stable_audio_tools.models.diffusion.denoising import GuidedTransformer
from stable_audio_tools.models.diffusion.guidance import Conditions, Guidance, Projected
from stable_audio_tools.models.diffusion.objectives import HasObjective, NamedObjective, parse_objective
from stable_audio_tools.models.fourier import ExpoFourierFeatures, FourierFeatures, normalised_log_snr
from stable_audio_tools.models.lora.parametrization import AdapterSelection, chosen_loras
from stable_audio_tools.models.precision import weight_dtype
from stable_audio_tools.models.transformer.attention import Attention
from stable_audio_tools.models.transformer.blocks import (
    AdaLNLayout,
    AttentionOptions,
    FeedForwardOptions,
    NormOptions,
    TransformerBlock,
)
from stable_audio_tools.models.transformer.continuous import ContinuousTransformer, TransformerOutput
from stable_audio_tools.models.transformer.local_conditions import LocalConditions
from stable_audio_tools.models.transformer.norms import NormType


class DiffusionTransformer(HasObjective, nn.Module):
    """A transformer that predicts the diffusion objective's target from x at noise level t."""

    def __init__(  # long because it is the list of config keys
        self,
        io_channels: Annotated[int, Field(ge=1, description="channels of the latents or audio")] = 32,
        patch_size: Annotated[int, Field(ge=1, description="neighbouring frames folded into one token")] = 1,
        embed_dim: Annotated[int, Field(ge=1, description="width of the transformer")] = 768,
        cond_token_dim: Annotated[int, Field(ge=0, description="width of the tokens attended to; 0: none")] = 0,
        project_cond_tokens: Annotated[
            bool, Field(description="project them to embed_dim; else fewer key-value heads share the query heads")
        ] = True,
        global_cond_dim: Annotated[int, Field(ge=0, description="width of the global condition; 0: none")] = 0,
        project_global_cond: Annotated[
            bool, Field(description="project it to embed_dim; else global_cond_dim must equal embed_dim")
        ] = True,
        input_concat_dim: Annotated[
            int, Field(ge=0, description="channels of the conditions that join x on the channel axis")
        ] = 0,
        prepend_cond_dim: Annotated[int, Field(ge=0, description="width of prepended condition tokens; 0: none")] = 0,
        depth: Annotated[int, Field(ge=1, le=1000, description="transformer layers")] = 12,
        num_heads: Annotated[int, Field(ge=1, description="attention heads; they divide embed_dim")] = 8,
        transformer_type: Annotated[
            Literal["continuous_transformer"], Field(description="the one architecture there is")
        ] = "continuous_transformer",
        global_cond_type: Annotated[
            Literal["prepend", "adaLN"],
            Field(description="noise level and global condition as a prepended token, or by adaptive layer norm"),
        ] = "prepend",
        timestep_cond_type: Annotated[
            Literal["global", "input_concat"],
            Field(description="add the noise level to the global condition, or to the input as channels"),
        ] = "global",
        timestep_embed_dim: Annotated[
            Annotated[int, Field(ge=1)] | None, Field(description="channels of the noise level with input_concat")
        ] = None,
        diffusion_objective: Annotated[
            NamedObjective, Field(description="objective, which maps t to a noise level")
        ] = "v",
        timestep_features_type: Annotated[
            Literal["learned", "expo"] | None,
            Field(
                description="frequencies of the noise level: random (learned) or exponentially spaced; random ones are "
                "trained if this key and timestep_features_dim are left out, as in 0.0.19, else fixed, as in 0.0.20"
            ),
        ] = None,
        timestep_features_dim: Annotated[
            Annotated[int, Field(ge=2)] | None, Field(description="features of the noise level, even; 256 if left out")
        ] = None,
        timestep_features_logsnr: Annotated[
            bool, Field(description="pass the noise level as its log-SNR, from -12 to 5, scaled to 0..1")
        ] = False,
        local_add_cond_dim: Annotated[
            Annotated[int, Field(ge=1)] | None,
            Field(description="channels of the conditions that every layer adds to its frames (local_add_cond_ids)"),
        ] = None,
        modular_local_cond_configs: Annotated[
            list[ModularSignal] | None,
            Field(description="local conditions with separate projections; the model's diffusion section sets them"),
        ] = None,
        *,
        rotary_pos_emb: Annotated[bool, Field(description="rotary positions")] = True,
        cross_attn_rotary_pos_emb: Annotated[bool, Field(description="rotary positions in cross-attention")] = False,
        use_sinusoidal_emb: Annotated[bool, Field(description="add sinusoidal positions")] = False,
        use_abs_pos_emb: Annotated[bool, Field(description="add learned positions instead of sinusoidal")] = False,
        abs_pos_emb_max_length: Annotated[int, Field(ge=1, description="learned positions, prepended included")] = (
            10000
        ),
        num_memory_tokens: Annotated[int, Field(ge=0, description="learned tokens before all others")] = 0,
        sliding_window: Annotated[
            Annotated[list[int], Field(min_length=2, max_length=2)] | None,
            Field(description="[tokens before, tokens after] that self-attention sees; -1: all"),
        ] = None,
        causal: Annotated[bool, Field(description="self-attention sees no later tokens")] = False,
        causal_cross_attention: Annotated[
            bool, Field(description="with causal, token i sees the condition tokens up to i only, as the original did")
        ] = True,
        final_cross_attn_ix: Annotated[int, Field(ge=-1, description="last layer that cross-attends; -1: all do")] = -1,
        zero_init_branch_outputs: Annotated[
            bool, Field(description="start every branch at zero; without effect under layer_scale")
        ] = True,
        conformer: Annotated[bool, Field(description="add a convolution module to every layer")] = False,
        layer_scale: Annotated[bool, Field(description="learned gain per channel on every branch")] = False,
        norm_type: Annotated[
            NormType, Field(description="norm of every branch: layer norm, RMS norm or dynamic tanh")
        ] = "layer_norm",
        remove_norms: Annotated[
            bool, Field(description="dynamic tanh instead of layer norm, with a steeper start than norm_type dyt")
        ] = False,
        add_rope: Annotated[
            bool, Field(description="separate rotary positions in each layer, without rotary_pos_emb")
        ] = (False),
        adaln_layout: Annotated[
            AdaLNLayout,
            Field(description="per_layer: weights of friendly-stable-audio-tools, a projection in every layer"),
        ] = "shared",
        use_cross_attn_mask: Annotated[
            bool, Field(description="attend to real condition tokens only; published models attend to padding too")
        ] = False,
        use_padding_mask: Annotated[
            bool, Field(description="attend to real frames and prepended tokens only; published models to all")
        ] = False,
        checkpointing: Annotated[
            bool, Field(description="recompute activations in the backward pass: slower, far less memory")
        ] = False,
        attn_kwargs: Annotated[AttentionOptions | None, Field(description="of all attention layers")] = None,
        ff_kwargs: Annotated[FeedForwardOptions | None, Field(description="of all feed-forwards")] = None,
        norm_kwargs: Annotated[NormOptions | None, Field(description="of all layer norms")] = None,
    ) -> None:
        super().__init__()
        time_channels = timestep_embed_dim if timestep_cond_type == "input_concat" else 0
        if time_channels is None:
            raise ValueError("timestep_embed_dim: needed where timestep_cond_type is 'input_concat'")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim is {embed_dim}; it must be a multiple of num_heads, which is {num_heads}")
        self.io_channels = io_channels
        self.patch_size = patch_size
        self.cond_token_dim = cond_token_dim
        self.global_cond_dim = global_cond_dim
        self.prepend_cond_dim = prepend_cond_dim
        self.given_channels = input_concat_dim
        self.local_add_cond_dim = local_add_cond_dim or 0
        self.input_concat_dim = input_concat_dim + time_channels
        self.global_cond_type = global_cond_type
        self.timestep_cond_type = timestep_cond_type
        self.objective = parse_objective(diffusion_objective)
        self.use_cross_attn_mask = use_cross_attn_mask
        self.use_padding_mask = use_padding_mask

        self.timestep_features_logsnr = timestep_features_logsnr
        num_features = timestep_features_dim or 256
        if timestep_features_type == "expo":
            self.timestep_features: nn.Module = ExpoFourierFeatures(num_features)
        elif timestep_features_type is None and timestep_features_dim is None:
            self.timestep_features = FourierFeatures(1, num_features)
        else:
            self.timestep_features = FourierFeatures(1, num_features, std=16.0, trained=False)
        self.to_timestep_embed = _projection(num_features, time_channels or embed_dim, bias=True)
        context_dim = embed_dim if project_cond_tokens else cond_token_dim
        if cond_token_dim:
            self.to_cond_embed = _projection(cond_token_dim, context_dim)
        if global_cond_dim:
            self.to_global_embed = _projection(global_cond_dim, embed_dim if project_global_cond else global_cond_dim)
        if prepend_cond_dim:
            self.to_prepend_embed = _projection(prepend_cond_dim, embed_dim)
        channels_in = io_channels + self.input_concat_dim
        self.transformer = ContinuousTransformer(
            dim=embed_dim,
            depth=depth,
            dim_heads=embed_dim // num_heads,
            dim_in=channels_in * patch_size,
            dim_out=io_channels * patch_size,
            cross_attend=cond_token_dim > 0,
            cond_token_dim=context_dim if cond_token_dim else None,
            global_cond_dim=embed_dim if global_cond_type == "adaLN" else None,
            rotary_pos_emb=rotary_pos_emb,
            cross_attn_rotary_pos_emb=cross_attn_rotary_pos_emb,
            local_add_cond_dim=local_add_cond_dim,
            modular_local_cond_configs=modular_local_cond_configs,
            use_sinusoidal_emb=use_sinusoidal_emb,
            use_abs_pos_emb=use_abs_pos_emb,
            abs_pos_emb_max_length=abs_pos_emb_max_length,
            num_memory_tokens=num_memory_tokens,
            sliding_window=sliding_window,
            causal=causal,
            causal_cross_attention=causal_cross_attention,
            final_cross_attn_ix=final_cross_attn_ix,
            zero_init_branch_outputs=zero_init_branch_outputs,
            conformer=conformer,
            layer_scale=layer_scale,
            norm_type=norm_type,
            remove_norms=remove_norms,
            add_rope=add_rope,
            adaln_layout=adaln_layout,
            checkpointing=checkpointing,
            attn_kwargs=attn_kwargs,
            ff_kwargs=ff_kwargs,
            norm_kwargs=norm_kwargs,
        )
        self.preprocess_conv = _zero_convolution(channels_in)
        self.postprocess_conv = _zero_convolution(io_channels)

    @published_call
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cross_attn_cond: Tensor | None = None,
        cross_attn_cond_mask: Tensor | None = None,
        negative_cross_attn_cond: Tensor | None = None,
        negative_cross_attn_mask: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        global_embed: Tensor | None = None,
        negative_global_embed: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        cfg_scale: float = 1.0,
        cfg_dropout_prob: float = 0.0,
        cfg_interval: tuple[float, float] = (0.0, 1.0),
        causal: bool = False,
        scale_phi: float = 0.0,
        mask: Tensor | None = None,
        return_info: bool = False,
        exit_layer_ix: int | None = None,
        use_checkpointing: bool | None = None,
        batch_cfg: bool = True,
        local_add_cond: Tensor | None = None,
        modular_local_cond: Mapping[str, Tensor] | None = None,
        padding_mask: Tensor | None = None,
        apg_scale: float | None = None,
        cfg_norm_threshold: float = 0.0,
        lora_interval: Sequence[float] | None = None,
        lora_layer_filter: str | None = None,
        lora_configs: Sequence[AdapterSelection] | None = None,
        **options: Any,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Predict (b, c, n) from x (b, c, n) and t (b,), from 0 at data to 1 at noise, guided if `cfg_scale` is not 1.

        With a `padding_mask` (b, n), True at real frames, the result of an item does not depend on its padding; padded
        frames are undefined. `mask` does the same for transformers with `use_padding_mask` in their config, else it has
        no effect. `apg_scale` and `cfg_norm_threshold` are described in `Guidance`.

        The info of `return_info` holds the hidden states of all layers, (b, memory + prepended + t, d) each, and under
        guidance the `uncond_output`. With `exit_layer_ix` the states after that layer are returned, (b, prepended + t,
        d). `cfg_dropout_prob` drops conditions of random items, for training. Guidance keeps the global condition, so
        `negative_global_embed` has no effect, as in the original. `lora_interval`, `lora_layer_filter` and
        `lora_configs` choose adapters of `add_lora` for this pass (`chosen_loras`). Other options go to the
        transformer.
        """
        if causal:
            raise ValueError("causal: set causal in the config of the transformer; a call cannot change it")
        conditions = Conditions(
            cross_attn_cond,
            cross_attn_cond_mask,
            input_concat_cond,
            global_embed,
            prepend_cond,
            prepend_cond_mask,
            mask,
            padding_mask,
            local_add_cond,
            modular_local_cond,
        )
        guidance = Guidance(cfg_scale, cfg_interval, scale_phi, batch_cfg, apg_scale, cfg_norm_threshold)
        negative = (negative_cross_attn_cond, negative_cross_attn_mask)
        options |= {"use_checkpointing": use_checkpointing, "exit_layer_ix": exit_layer_ix}
        if lora_interval is None and not lora_layer_filter and lora_configs is None:
            return self._predict(x, t, conditions, guidance, negative, cfg_dropout_prob, return_info, options)
        with chosen_loras(
            self, lambda: float(self.objective.noise_level(t[0])), lora_interval, lora_layer_filter, lora_configs
        ):
            return self._predict(x, t, conditions, guidance, negative, cfg_dropout_prob, return_info, options)

    def _predict(
        self,
        x: Tensor,
        t: Tensor,
        conditions: Conditions,
        guidance: Guidance,
        negative: tuple[Tensor | None, Tensor | None],
        cfg_dropout_prob: float,
        return_info: bool,
        options: dict[str, Any],
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        exits = options["exit_layer_ix"] is not None
        if guidance.is_on and not exits:
            del options["exit_layer_ix"]
            return self._bind_guidance(conditions, guidance, *negative).call(x, t, return_info, **options)
        conditions = conditions.to(self.dtype)
        if cfg_dropout_prob > 0 and not exits:
            conditions = conditions.dropped(cfg_dropout_prob)
        projected = self.project(conditions, x.shape[-1])
        result = self.denoise(x, t, projected, keep_hidden_states=return_info, **options)
        return (result.output, {"hidden_states": result.hidden_states}) if return_info else result.output

    @property
    def dtype(self) -> torch.dtype:
        return weight_dtype(self)

    @torch.compiler.disable
    def _bind_guidance(
        self, conditions: Conditions, guidance: Guidance, negative: Tensor | None, negative_mask: Tensor | None
    ) -> GuidedTransformer:
        """Build a denoiser for one call; compilers cannot trace its construction."""
        return GuidedTransformer(self, conditions, guidance, negative, negative_mask, call_by_call=self.is_altered())

    def is_altered(self) -> bool:
        """Return whether other code replaced, wrapped or hooked inner calls, so that each of them must run."""
        stack = self.transformer
        if not (runs_published(self) and isinstance(stack, ContinuousTransformer) and runs_published(stack)):
            return True
        for layer in stack.layers:
            if not (isinstance(layer, TransformerBlock) and runs_published(layer)):
                return True
            if layer.cross_attend and not (
                isinstance(layer.cross_attn, Attention)
                and runs_published(layer.cross_attn, "forward", "apply_attn")
                and isinstance(layer.cross_attn.to_kv, nn.Linear)
            ):
                return True
        return any(is_touched(module) for module in self.modules())

    def project(self, conditions: Conditions, length: int, for_many_calls: bool = False) -> Projected:
        """Project conditions for x of `length` frames; `for_many_calls` also projects all keys and values."""
        given = conditions.to(self.dtype)
        self._check_conditions(given)
        context = None if given.cross_attn is None else self.to_cond_embed(given.cross_attn)
        input_concat = given.input_concat
        if input_concat is not None and input_concat.shape[-1] != length:
            input_concat = F.interpolate(input_concat, length, mode="nearest")
        context_mask = given.cross_attn_mask if self.use_cross_attn_mask else None
        if context_mask is not None:  # a condition without real tokens is seen whole: softmax needs at least one token
            context_mask = context_mask | ~context_mask.any(dim=-1, keepdim=True)
        projected = Projected(
            input_concat=input_concat,
            global_embed=None if given.global_embed is None else self.to_global_embed(given.global_embed),
            prepend=None if given.prepend is None else self.to_prepend_embed(given.prepend),
            context=context,
            context_mask=context_mask,
            mask=self._token_mask(self._frame_mask(given)),
            local=self._local_conditions(given),
            prepend_mask=given.prepend_mask if self.use_padding_mask else None,
        )
        if not for_many_calls:
            return projected
        key_values = None if context is None else self.transformer.project_context(context)
        tokens = length // self.patch_size + self.transformer.num_memory_tokens + self._prepended(projected)
        return replace(projected, key_values=key_values, rotary=self.transformer.rotary_table(tokens))

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        given: Projected,
        *,
        use_checkpointing: bool | None = None,
        keep_hidden_states: bool = False,
        exit_layer_ix: int | None = None,
        **options: Any,
    ) -> TransformerOutput:
        """Run one pass: x (b, c, n), t (b,) -> (b, c, n), or on an early exit the hidden states (b, prepended + t, d).

        Other options go to the transformer.
        """
        self._check_input(x)
        x = x.to(self.dtype)
        timestep = self._embed_time(t)  # (b, d)
        global_embed, prepend, prepend_mask = given.global_embed, given.prepend, given.prepend_mask

        if given.input_concat is not None:
            x = torch.cat([x, given.input_concat], dim=1)
        if self.timestep_cond_type == "input_concat":
            x = torch.cat([x, timestep[..., None].expand(-1, -1, x.shape[-1])], dim=1)
        else:
            global_embed = timestep if global_embed is None else global_embed + timestep
        if self.global_cond_type == "prepend" and global_embed is not None:
            token = global_embed[:, None]
            prepend = token if prepend is None else torch.cat([prepend, token], dim=1)
            prepend_mask = None if prepend_mask is None else F.pad(prepend_mask, (0, 1), value=True)

        x = x + self.preprocess_conv(x)
        inputs = used(
            prepend_embeds=prepend,
            prepend_mask=prepend_mask,
            mask=given.mask,
            global_cond=global_embed if self.global_cond_type == "adaLN" else None,
            context=given.context,
            context_mask=given.context_mask,
            context_key_values=given.key_values,
            rotary=given.rotary,
            local=given.local,
            use_checkpointing=use_checkpointing,
            exit_layer_ix=exit_layer_ix,
            return_info=keep_hidden_states or None,
        )
        result = self.transformer(rearrange(x, "b c (t p) -> b t (c p)", p=self.patch_size), **inputs, **options)
        tokens, hidden_states = (result[0], result[1]["hidden_states"]) if keep_hidden_states else (result, [])
        if exit_layer_ix is not None:
            return TransformerOutput(tokens, hidden_states)
        if prepend is not None:
            tokens = tokens[:, prepend.shape[1] :]
        x = rearrange(tokens, "b t (c p) -> b c (t p)", p=self.patch_size)
        return TransformerOutput(x + self.postprocess_conv(x), hidden_states)

    def _embed_time(self, t: Tensor) -> Tensor:
        """Embed times (b,) to (b, d); their features are computed in float32 or more."""
        t = normalised_log_snr(t) if self.timestep_features_logsnr else t
        embedded: Tensor = self.to_timestep_embed(self.timestep_features(t[:, None]).to(self.dtype))
        return embedded

    def _prepended(self, projected: Projected) -> int:
        """Return the number of tokens before the tokens of x."""
        carries_global = self.timestep_cond_type == "global" or projected.global_embed is not None
        conditions = 0 if projected.prepend is None else projected.prepend.shape[1]
        return conditions + (self.global_cond_type == "prepend" and carries_global)

    def _frame_mask(self, given: Conditions) -> Tensor | None:
        if given.padding_mask is not None:
            return given.padding_mask
        return given.mask if self.use_padding_mask else None

    @staticmethod
    def _local_conditions(given: Conditions) -> LocalConditions | None:
        """(b, c, n) to (b, n, c)"""
        if given.local is None and given.modular is None:
            return None
        joined = None if given.local is None else given.local.transpose(1, 2)
        return LocalConditions(joined, given.modular and {id: x.transpose(1, 2) for id, x in given.modular.items()})

    def _token_mask(self, mask: Tensor | None) -> Tensor | None:
        """Convert a mask of frames to a mask of tokens; a token is real if any of its frames is."""
        return None if mask is None else rearrange(mask, "b (t p) -> b t p", p=self.patch_size).any(dim=-1)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[1] != self.io_channels:
            raise ValueError(f"input of shape {tuple(x.shape)}; expected (batch, {self.io_channels} channels, frames)")
        if x.shape[-1] % self.patch_size:
            below = x.shape[-1] // self.patch_size * self.patch_size
            raise ValueError(
                f"input of {x.shape[-1]} frames; patch_size is {self.patch_size}, so use {below} or "
                f"{below + self.patch_size}"
            )

    def _check_conditions(self, given: Conditions) -> None:
        """Check that conditions have the widths in the config; only cross-attention tokens may be left out."""
        announced = {
            "cross_attn": ("cond_token_dim", self.cond_token_dim, -1),
            "global_embed": ("global_cond_dim", self.global_cond_dim, -1),
            "prepend": ("prepend_cond_dim", self.prepend_cond_dim, -1),
            "input_concat": ("input_concat_dim", self.given_channels, 1),
            "local": ("local_add_cond_dim", self.local_add_cond_dim, 1),
        }
        for name, (key, width, axis) in announced.items():
            tensor = getattr(given, name)
            if name == "prepend" and self._prepends_otherwise():
                continue
            if tensor is not None and tensor.shape[axis] != width:
                raise ValueError(f"{key} is {width}, and a condition of width {tensor.shape[axis]} was given")
        if given.input_concat is None and self.given_channels:
            raise ValueError(f"input_concat_dim is {self.given_channels}, and no such condition was given")

    def _prepends_otherwise(self) -> bool:
        """Return whether other code replaced the projection of prepended tokens."""
        layers = self._modules.get("to_prepend_embed")
        entry = layers[0] if isinstance(layers, nn.Sequential) else layers
        return entry is not None and getattr(entry, "in_features", None) != self.prepend_cond_dim


def _projection(dim_in: int, dim_out: int, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim_in, dim_out, bias=bias), nn.SiLU(), nn.Linear(dim_out, dim_out, bias=bias))


def _zero_convolution(channels: int) -> nn.Conv1d:
    conv = nn.Conv1d(channels, channels, 1, bias=False)
    nn.init.zeros_(conv.weight)
    return conv
