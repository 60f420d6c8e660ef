"""Checks of diffusion configs: mistakes that only several keys together show."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from stable_audio_tools.core.config import Part, validate
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.conditioners.multi import check_conditioning, check_ids
from stable_audio_tools.models.diffusion.distribution_shift import check_shift
from stable_audio_tools.models.transformer.attention import context_widths


def describe_transformer(config: SimpleNamespace) -> dict[str, object]:
    """Return facts of a config, for checks against its surroundings."""
    return {
        "io_channels": getattr(config, "io_channels", None) or getattr(config, "in_channels", None),
        "cond_token_dim": config.cond_token_dim,
        "global_cond_dim": config.global_cond_dim,
        "input_concat_dim": config.input_concat_dim,
        "local_add_cond_dim": getattr(config, "local_add_cond_dim", None) or 0,
        "prepend_cond_dim": config.prepend_cond_dim,
        "length_multiple": config.patch_size,
    }


def check_transformer(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Yield mistakes that several keys make together."""
    width, heads = config.embed_dim, config.num_heads
    if width % heads:
        below, above = width // heads * heads, (width // heads + 1) * heads
        valid = f"{below} or {above}" if below else str(above)
        yield "embed_dim", f"is {width}; it must be a multiple of num_heads, which is {heads}: use {valid}"
        return
    allowed = context_widths(width, width // heads)
    if config.cond_token_dim and not config.project_cond_tokens and config.cond_token_dim not in allowed:
        nearest = min(allowed, key=lambda option: abs(option - config.cond_token_dim))
        yield (
            "cond_token_dim",
            f"is {config.cond_token_dim}, and with project_cond_tokens false it must make key-value heads that divide "
            f"the {heads} heads of {width // heads} channels: use {nearest}, or set project_cond_tokens to true",
        )
    if config.global_cond_dim not in (0, width) and not config.project_global_cond:
        yield (
            "global_cond_dim",
            f"is {config.global_cond_dim}, and with project_global_cond false it must equal embed_dim, {width}",
        )
    if config.timestep_cond_type == "input_concat" and config.timestep_embed_dim is None:
        yield "timestep_embed_dim", "missing; timestep_cond_type 'input_concat' needs it"
    if config.use_sinusoidal_emb and width % 2:
        yield "embed_dim", f"is {width}; use_sinusoidal_emb needs an even width: use {width + 1}"
    kernel = _option(config.ff_kwargs, "conv_kernel_size", 3)
    if _option(config.ff_kwargs, "use_conv", False) and kernel % 2 == 0:
        yield "ff_kwargs.conv_kernel_size", f"is {kernel}, and must be odd to keep lengths: use {kernel + 1}"


def _option(options: Mapping[str, Any] | None, name: str, default: int) -> int:
    value: int = (options or {}).get(name, default)
    return value


INPAINTING_IDS = ("inpaint_mask", "inpaint_masked_input")  # from training and generation, not from conditioners

# Which width of the backbone the conditions of a list must have, and the keys that may hold it.
_WIDTH_KEYS = {
    "cross_attention_cond_ids": ("cond_token_dim", "context_embedding_features"),
    "global_cond_ids": ("global_cond_dim", "context_features"),
    "prepend_cond_ids": ("prepend_cond_dim",),
    "input_concat_ids": ("input_concat_dim", "context_channels", "cond_dim"),
    "local_add_cond_ids": ("local_add_cond_dim",),
}


def shortest_input(backbone: Part, pretransform: Part | None) -> int | None:
    """Return the samples of audio of which the model takes multiples; None if the config does not say."""
    ratio = 1 if pretransform is None else pretransform.facts.get("downsampling_ratio")
    return None if ratio is None else ratio * backbone.facts.get("length_multiple", 1)


def describe_conditioned(config: SimpleNamespace) -> dict[str, object]:
    """Return facts of a `diffusion_cond` config."""
    return {
        "use": "conditional diffusion",
        "has_steps": True,
        "min_input_length": shortest_input(config.diffusion, config.pretransform),
    }


def unused_ids(backbone: Part) -> Iterator[tuple[str, str]]:
    """Yield lists of conditions for which the backbone has no input."""
    for ids_key in _WIDTH_KEYS:
        wanted, key = _width_of_input(backbone, ids_key)
        if getattr(backbone.siblings, ids_key) and not wanted:
            reason = f"config.{key} is not set" if key else f"{backbone.type!r} has no such input"
            yield f"{backbone.path}.{ids_key}", f"{reason}; these conditions have no effect"


def check_conditioned(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Yield widths in which backbone, conditioners and pretransform differ."""
    yield from check_conditioning(config.conditioning)
    yield from check_channels(config.io_channels, config.diffusion, config.pretransform)
    for key in ("distribution_shift_options", "sampling_distribution_shift_options"):
        yield from check_shift(getattr(config.diffusion.siblings, key), f"diffusion.{key}")
    yield from check_objective(config.diffusion.siblings.diffusion_objective, "diffusion.diffusion_objective")
    for ids_key in _WIDTH_KEYS:
        yield from _check_route(config, ids_key)


def check_channels(io_channels: int, backbone: Part, pretransform: Part | None) -> Iterator[tuple[str, str]]:
    """Yield differences between the channels of the backbone and of the pretransform."""
    inner = backbone.facts.get("io_channels")
    if inner is not None and inner != io_channels:
        key = "in_channels" if hasattr(backbone.config, "in_channels") else "io_channels"
        yield f"{backbone.kind}.config.{key}", f"is {inner}, but io_channels of the model is {io_channels}"
    encoded = None if pretransform is None else pretransform.facts.get("encoded_channels")
    if encoded is not None and encoded != io_channels:
        yield "io_channels", f"is {io_channels}, but the pretransform delivers {encoded} channels: use {encoded}"


def check_objective(node: object, path: str) -> Iterator[tuple[str, str]]:
    """Yield the problems of an objective that is a node."""
    if not isinstance(node, Mapping):
        return
    try:
        validate("objective", node, path)
    except ConfigError as error:
        for problem in error.problems:
            where, _, text = problem.partition(": ")
            yield where, text


def _check_route(config: SimpleNamespace, ids_key: str) -> Iterator[tuple[str, str]]:
    """Yield ids of one input that do not exist, or whose widths are not the backbone's."""
    ids = getattr(config.diffusion.siblings, ids_key)
    others = INPAINTING_IDS if ids_key == "input_concat_ids" else ()
    takes_any = ids_key == "local_add_cond_ids"  # signals that come with the data need no conditioner
    unknown = [] if takes_any else list(check_ids(config.conditioning, ids, f"diffusion.{ids_key}", others))
    yield from unknown
    wanted, key = _width_of_input(config.diffusion, ids_key)
    if unknown or wanted is None:
        return
    path = f"diffusion.config.{key}"
    widths = {name: _width(config, name) for name in ids}
    listed = ", ".join(f"{name} {'?' if width is None else width}" for name, width in widths.items())
    if not ids:
        if wanted and ids_key == "input_concat_ids":
            yield path, f"is {wanted}, but diffusion.{ids_key} is empty: name conditions there, or use 0"
    elif not wanted:
        if key == _WIDTH_KEYS[ids_key][0]:  # the U-Nets leave such conditions alone
            yield path, f"is 0, but diffusion.{ids_key} names conditions ({listed}); set it to their width"
    elif ids_key in ("cross_attention_cond_ids", "prepend_cond_ids"):
        if any(width not in (None, wanted) for width in widths.values()):
            yield path, f"is {wanted}, but the conditions of diffusion.{ids_key} have other widths: {listed}"
    elif None not in widths.values():
        total = sum(width for width in widths.values() if width is not None)
        if total != wanted:
            sizes = f"the widths of diffusion.{ids_key} add up to {total} ({listed})"
            yield path, f"is {wanted}, but {sizes}: use {total}"


def _width_of_input(backbone: Part, ids_key: str) -> tuple[int | None, str]:
    """Return the width of an input of the backbone, and the key that sets it."""
    name, *aliases = _WIDTH_KEYS[ids_key]
    key = next((key for key in (name, *aliases) if hasattr(backbone.config, key)), "")
    return (backbone.facts.get(name) if key else None), key


def _width(config: SimpleNamespace, name: str) -> int | None:
    """Return the channels of a condition; None if the config does not say."""
    if name == "inpaint_mask":
        return 1
    if name == "inpaint_masked_input":
        channels: int = config.io_channels
        return channels
    return None if config.conditioning is None else config.conditioning.width(name)
