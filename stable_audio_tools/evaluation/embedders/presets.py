"""Embedders by a short name: a registered tag, a published preset, or either with keys of its config.

The presets give the vectors of the tool they are named after, on audio at the sample rate of the model. fadtk's names
(https://github.com/microsoft/fadtk) embed whole files, and its two CLAPs and DAC have their own windows and levels.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from stable_audio_tools.core.config import components, load, validate
from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.evaluation.embedders.base import Embedder

Node = dict[str, Any]  # JSON: a type and its config


def _fadtk(tag: str, minutes: float = 6, **config: object) -> Node:
    """Return the node of a network that fadtk applies to the first minutes of a file at once."""
    whole = {"window_seconds": 60.0 * minutes, "framing": "first", "keep_frames": True, "int16": True}
    return {"type": tag, "config": {**whole, **config}}


_FADTK_CLAP = {"hop_seconds": 1.0, "framing": "padded", "int16": True}
PRESETS: dict[str, Node] = {  # a layer may follow as "-7" if the network has layers
    "encodec-emb": _fadtk("encodec", 3),
    "encodec-emb-48k": _fadtk(
        "encodec",
        name="facebook/encodec_48khz",
        sample_rate=48000,
        window_seconds=1.0,
        framing="partial",
        normalise=False,
    ),
    "dac-44kHz": _fadtk("dac", window_seconds=5.0, hop_seconds=2.5, framing="centred", level="loudness"),
    "MERT-v1-95M": _fadtk("mert", layer=12),
    "w2v2-base": _fadtk("wav2vec", name="facebook/wav2vec2-base-960h", layer=12),
    "w2v2-large": _fadtk("wav2vec", name="facebook/wav2vec2-large-960h", layer=24),
    "hubert-base": _fadtk("wav2vec", name="facebook/hubert-base-ls960", layer=12),
    "hubert-large": _fadtk("wav2vec", name="facebook/hubert-large-ll60k", layer=24),
    "wavlm-base": _fadtk("wav2vec", name="patrickvonplaten/wavlm-libri-clean-100h-base", layer=12),
    "wavlm-base-plus": _fadtk("wav2vec", name="patrickvonplaten/wavlm-libri-clean-100h-base-plus", layer=12),
    "wavlm-large": _fadtk("wav2vec", name="patrickvonplaten/wavlm-libri-clean-100h-large", layer=24),
    "clap-laion-audio": {"type": "clap", "config": {"checkpoint": "630k-audioset-best.pt", **_FADTK_CLAP}},
    "clap-laion-music": {
        "type": "clap",
        "config": {"checkpoint": "music_audioset_epoch_15_esc_90.14.pt", **_FADTK_CLAP},
    },
    # Stability-AI/stable-audio-metrics
    "openl3-stable-audio": {
        "type": "openl3",
        "config": {"channels": 2, "hop_seconds": 0.5, "centre": True, "sample_rate": 44100, "level": "peak"},
    },
    "passt-stable-audio": {
        "type": "passt",
        "config": {"output": "logits", "hop_seconds": 5.0, "level": "peak", "framing": "stable-audio-metrics"},
    },
    "clap-stable-audio": {
        "type": "clap",
        "config": {"checkpoint": "630k-audioset-fusion-best.pt", "clip": "whole", "level": "peak", "int16": True},
    },
}


def create_embedder(source: str | Mapping[str, Any], device: str | torch.device = "cpu") -> Embedder:
    """Build an embedder from a node `{"type": ..., "config": {...}}`, a JSON file of one, or a name.

    A name is a tag or a preset, and may carry keys of the config: `clap:name=laion/clap-htsat-fused`,
    `vggish:checkpoint=vggish.pth`, `logmel:bands=80,window_seconds=2`.
    """
    node = dict(source) if isinstance(source, Mapping) else node_of(source)
    part = validate("embedder", node, "embedder")
    embedder: Embedder = part.build()
    embedder.tag = part.type
    return embedder.to(device)


def node_of(text: str) -> Node:
    """Return the node that a name, or the path of a JSON file, stands for."""
    if text.endswith(".json"):
        return dict(load(text))
    name, _, keys = text.partition(":")
    node = _node_by_name(name)
    config = dict(node.get("config", {}))
    for pair in filter(None, keys.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"embedder: expected NAME:key=value,key=value, got {text!r}")
        try:
            config[key] = json.loads(value)
        except json.JSONDecodeError:
            config[key] = value
    return {**node, "config": config}


def _node_by_name(name: str) -> Node:
    if name in components("embedder"):
        return {"type": name}
    if name in PRESETS:
        return PRESETS[name]
    layered = re.fullmatch(r"(.+)-(\d+)", name)
    if layered and "layer" in PRESETS.get(layered[1], {}).get("config", {}):
        node = PRESETS[layered[1]]
        return {**node, "config": {**node["config"], "layer": int(layered[2])}}
    raise ConfigError(f"embedder: no embedder named {name!r}; {nearest(name, [*components('embedder'), *PRESETS])}")
