"""Embedders by a short name: a registered tag, a name that fadtk uses, or either with keys of its config."""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from stable_audio_tools.core.config import components, load, validate
from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.evaluation.embedders.base import Embedder

Node = dict[str, Any]

_FRAMES = {"keep_frames": True}
_FADTK: dict[str, Node] = {  # (name of fadtk) -> node; a layer may follow as "-7" where the network has layers
    "encodec-emb": {"type": "encodec", "config": _FRAMES},
    "encodec-emb-48k": {
        "type": "encodec",
        "config": {"name": "facebook/encodec_48khz", "sample_rate": 48000, **_FRAMES},
    },
    "dac-44kHz": {"type": "dac", "config": _FRAMES},
    "MERT-v1-95M": {"type": "mert", "config": {"layer": 12, **_FRAMES}},
    "w2v2-base": {"type": "wav2vec", "config": {"name": "facebook/wav2vec2-base-960h", "layer": 12, **_FRAMES}},
    "w2v2-large": {"type": "wav2vec", "config": {"name": "facebook/wav2vec2-large-960h", "layer": 24, **_FRAMES}},
    "hubert-base": {"type": "wav2vec", "config": {"name": "facebook/hubert-base-ls960", "layer": 12, **_FRAMES}},
    "hubert-large": {"type": "wav2vec", "config": {"name": "facebook/hubert-large-ll60k", "layer": 24, **_FRAMES}},
    "wavlm-base": {"type": "wav2vec", "config": {"name": "microsoft/wavlm-base", "layer": 12, **_FRAMES}},
    "wavlm-base-plus": {"type": "wav2vec", "config": {"name": "microsoft/wavlm-base-plus", "layer": 12, **_FRAMES}},
    "wavlm-large": {"type": "wav2vec", "config": {"name": "microsoft/wavlm-large", "layer": 24, **_FRAMES}},
    "clap-laion-audio": {"type": "clap", "config": {"checkpoint": "630k-audioset-best.pt", "hop_seconds": 1.0}},
    "clap-laion-music": {
        "type": "clap",
        "config": {"checkpoint": "music_audioset_epoch_15_esc_90.14.pt", "hop_seconds": 1.0},
    },
}


def create_embedder(source: str | Mapping[str, Any], device: str | torch.device = "cpu") -> Embedder:
    """An embedder from a node `{"type": ..., "config": {...}}`, a JSON file of one, or a name.

    A name is a tag or one of fadtk's, and may carry keys of the config: `clap:name=laion/clap-htsat-fused`,
    `vggish:checkpoint=vggish.pth`, `logmel:bands=80,window_seconds=2`.
    """
    node = dict(source) if isinstance(source, Mapping) else node_of(source)
    part = validate("embedder", node, "embedder")
    embedder: Embedder = part.build()
    embedder.tag = part.type
    return embedder.to(device)


def node_of(text: str) -> Node:
    """The node that a name, or the path of a JSON file, stands for."""
    if text.endswith(".json"):
        return dict(load(text))
    name, _, keys = text.partition(":")
    node = _named(name)
    return {**node, "config": {**node.get("config", {}), **_keys(text, keys)}}


def _named(name: str) -> Node:
    if name in components("embedder"):
        return {"type": name}
    if name in _FADTK:
        return _FADTK[name]
    layered = re.fullmatch(r"(.+)-(\d+)", name)
    if layered and "layer" in _FADTK.get(layered[1], {}).get("config", {}):
        node = _FADTK[layered[1]]
        return {**node, "config": {**node["config"], "layer": int(layered[2])}}
    raise ConfigError(f"embedder: no embedder named {name!r}; {nearest(name, [*components('embedder'), *_FADTK])}")


def _keys(text: str, keys: str) -> dict[str, Any]:
    given = {}
    for pair in filter(None, keys.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"embedder: expected NAME:key=value,key=value, got {text!r}")
        try:
            given[key] = json.loads(value)
        except json.JSONDecodeError:
            given[key] = value
    return given
