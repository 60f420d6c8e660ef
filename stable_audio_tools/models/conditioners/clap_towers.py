"""The two halves of CLAP, from a checkpoint of laion-clap or from transformers by name, built with transformers' parts.

A checkpoint decides the sizes of its networks itself; they are read from the shapes of its tensors.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints import open_weights
from stable_audio_tools.models.conditioners.hub import (
    FEATURE_FILES,
    WEIGHT_FILES,
    in_dtype,
    load_pretrained,
    read_pretrained_config,
)

LAION_WIDTHS = (768, 512)  # of the text encoder's states, and of the embedding that text and audio share
TEXT_LENGTH = 77  # tokens


def clap_widths(name: str, key: str) -> tuple[int, int]:
    """Width of the text encoder and of the shared embedding, without loading the weights."""
    if re.fullmatch(r"laion/(larger_)?clap[-_][\w-]+", name) and not Path(name).is_dir():
        return LAION_WIDTHS
    config = read_pretrained_config(name, key)
    return config["text_config"]["hidden_size"], config.get("projection_dim", LAION_WIDTHS[1])


class TextTower(nn.Module):
    """Tokens to the shared embedding; names in the state dict are laion-clap's."""

    def __init__(self, clap: Any) -> None:
        super().__init__()
        self.text_branch: Callable[..., Any] = clap.text_model
        embeddings = clap.text_model.embeddings
        for name, table in list(embeddings.named_buffers(recurse=False)):
            embeddings.register_buffer(name, table, persistent=False)  # laion-clap's files do not hold them
        projection = clap.text_projection
        self.text_projection = nn.Sequential(projection.linear1, projection.activation, projection.linear2)

    def states(self, ids: Tensor, mask: Tensor, layer: int) -> Tensor:
        """(b, s) to the states (b, s, width) of one layer, 0 being the token embeddings."""
        states: Tensor = self.text_branch(ids, attention_mask=mask, output_hidden_states=True).hidden_states[layer]
        return states

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(b, s) to unit vectors (b, d)"""
        return F.normalize(self.text_projection(self.text_branch(ids, attention_mask=mask).pooler_output), dim=-1)


class AudioTower(nn.Module):
    """Mono audio to the shared embedding. transformers draws a random part of clips longer than 10 s at random."""

    def __init__(self, clap: nn.Module, features: Any) -> None:
        super().__init__()
        self.clap = clap
        self.features = features

    @property
    def sample_rate(self) -> int:
        """What `forward` takes, in Hz."""
        return int(self.features.sampling_rate)

    def forward(self, audio: Tensor) -> Tensor:
        """(b, n) to unit vectors (b, d)"""
        rate = self.sample_rate
        clips = list(audio.float().cpu().numpy())
        mels = self.features(clips, sampling_rate=rate, return_tensors="pt")["input_features"]
        weight = next(self.clap.parameters())
        # The features mark a clip at random as long where none is; only what was cut is.
        is_longer = torch.full((len(clips), 1), audio.shape[-1] > self.features.nb_max_samples, device=weight.device)
        embeddings = self.clap(input_features=mels.to(weight), is_longer=is_longer).audio_embeds
        return F.normalize(embeddings, dim=-1)


# ------------------------------------------------------------------ transformers, by name


def text_tower_by_name(name: str, key: str) -> TextTower:
    """The text half of a model that transformers knows."""
    from transformers import ClapTextModelWithProjection

    return TextTower(
        load_pretrained(ClapTextModelWithProjection, name, WEIGHT_FILES, key, **in_dtype(torch.float32))
    ).eval()


def audio_tower_by_name(name: str, key: str) -> AudioTower:
    """The audio half of a model that transformers knows."""
    from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

    model = load_pretrained(ClapAudioModelWithProjection, name, WEIGHT_FILES, key, **in_dtype(torch.float32))
    return AudioTower(model, load_pretrained(ClapFeatureExtractor, name, FEATURE_FILES, key)).eval()


# ------------------------------------------------------------------ checkpoints of laion-clap


def text_tower_of_checkpoint(path: str) -> TextTower:
    """The text half, a RoBERTa, of a laion-clap checkpoint."""
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    state = _translated(_read(path, "text_"))
    words = _get(state, path, "text_model.embeddings.word_embeddings.weight")
    positions = _get(state, path, "text_model.embeddings.position_embeddings.weight")
    config = ClapTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_attention_heads=words.shape[1] // 64,
        num_hidden_layers=_count(state, r"text_model\.encoder\.layer\.(\d+)\."),
        intermediate_size=_get(state, path, "text_model.encoder.layer.0.intermediate.dense.weight").shape[0],
        max_position_embeddings=positions.shape[0],
        type_vocab_size=_get(state, path, "text_model.embeddings.token_type_embeddings.weight").shape[0],
        projection_dim=_get(state, path, "text_projection.linear1.weight").shape[0],
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    model = ClapTextModelWithProjection(config)
    _fill(model, state, path)
    return TextTower(model).eval()


def audio_tower_of_checkpoint(path: str) -> AudioTower:
    """The audio half, an HTSAT, of a laion-clap checkpoint."""
    from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

    state = _translated(_read(path, "audio_"))
    encoder = "audio_model.audio_encoder"
    width = _get(state, path, f"{encoder}.patch_embed.proj.weight").shape[0]
    stages = range(_count(state, rf"{re.escape(encoder)}\.layers\.(\d+)\."))
    table = "layers.{}.blocks.0.attention.self.relative_position_bias_table"
    fused = any("fusion_model" in name for name in state)
    config = ClapAudioConfig(
        patch_embeds_hidden_size=width,
        hidden_size=width * 2 ** (len(stages) - 1),
        depths=[_count(state, rf"{re.escape(encoder)}\.layers\.{stage}\.blocks\.(\d+)\.") for stage in stages],
        num_attention_heads=[_get(state, path, f"{encoder}.{table.format(stage)}").shape[1] for stage in stages],
        num_hidden_layers=len(stages),
        enable_fusion=fused,
        fusion_type="aff_2d" if fused else None,
        projection_dim=_get(state, path, "audio_projection.linear1.weight").shape[0],
    )
    model = ClapAudioModelWithProjection(config)
    _fill(model, state, path)
    features = ClapFeatureExtractor(frequency_min=50, truncation="fusion" if fused else "rand_trunc")
    return AudioTower(model, features).eval()


def _read(path: str, prefix: str) -> dict[str, Tensor]:
    tensors = {name.removeprefix("module."): value for name, value in open_weights(path).tensors.items()}
    found = {name: value for name, value in tensors.items() if name.startswith((f"{prefix}branch.", f"{prefix}proj"))}
    if not found:
        raise CheckpointError(f"{path}: no {prefix}branch in it; this is not a checkpoint of laion-clap")
    return found


_RENAMED = (
    (r"^text_branch\.", "text_model."),
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"_projection\.0\.", "_projection.linear1."),
    (r"_projection\.2\.", "_projection.linear2."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"(layers\.\d+\.blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(layers\.\d+\.blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"\.bn0\.", ".batch_norm."),
)


def _translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of laion-clap to those of transformers; query, key and value are one tensor there, three here."""
    translated: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if ".qkv." in name:
            parts = zip(("query", "key", "value"), value.chunk(3))
            translated.update({name.replace(".qkv.", f".{part}."): tensor for part, tensor in parts})
        else:
            translated[name] = value
    return translated


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Every parameter and running mean must come from the checkpoint; index tables are the model's own."""
    own = model.state_dict()
    missing = [name for name, tensor in own.items() if tensor.is_floating_point() and name not in state]
    if missing:
        raise CheckpointError(f"{path}: lacks {len(missing)} tensors of CLAP, such as {missing[0]}")
    try:
        model.load_state_dict(
            {name: state[name] if tensor.is_floating_point() else tensor for name, tensor in own.items()}
        )
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its tensors do not fit CLAP: {error}") from error


def _get(state: Mapping[str, Tensor], path: str, name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"{path}: has no {name}; of laion-clap, RoBERTa texts and HTSAT audio are supported")
    return state[name]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in state if (found := re.match(pattern, name))), default=-1)
