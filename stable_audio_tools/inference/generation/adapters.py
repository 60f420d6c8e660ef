"""Adapters of an `AudioModel`: load, unload, describe, and set strengths for one call."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.models.lora import LoraAdapter, attached_loras, load_lora, unload_lora

# Files at strength 1, or strengths by file.
LoraSource = str | Path | Sequence[str | Path] | Mapping[str | Path, float]


class Adaptable:
    """Base class of models whose `module` takes adapters."""

    module: nn.Module

    @property
    def adapters(self) -> dict[str, LoraAdapter]:
        """Adapters by name, in the order of loading; each has `strength`, `enabled` and `interval`."""
        return attached_loras(self.module)

    def load_lora(
        self,
        path: str | Path,
        strength: float = 1.0,
        name: str | None = None,
        interval: Sequence[float] | None = None,
        layers: Sequence[str] | None = None,
    ) -> LoraAdapter:
        """Load an adapter beside the others; its name is `name`, or else the name of the file.

        `interval`: noise levels from 0 (data) to 1 (noise) at which it acts. `layers`: patterns of the layers that it
        changes.
        """
        adapter = load_lora(self.module, path, strength, name, interval, layers)
        adapter.facts["file"] = Path(path).name
        return adapter

    def unload_lora(self, name: str | None = None) -> None:
        """Remove one adapter, or all of them."""
        unload_lora(self.module, name)

    @contextmanager
    def strengths(self, given: Mapping[str, float]) -> Iterator[None]:
        """Set strengths by name inside the block."""
        known = self.adapters
        for name in given:
            if name not in known:
                advice = nearest(name, known) if known else "the model has none; load it first"
                raise ValueError(f"lora: no adapter named {name!r}; {advice}")
        before = {name: known[name].strength for name in given}
        try:
            for name, strength in given.items():
                known[name].strength = strength
            yield
        finally:
            for name, strength in before.items():
                known[name].strength = strength

    def describe_adapters(self, strengths: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
        """Describe the active adapters for files and manifests; `strengths` override their own."""
        at = {name: adapter.strength for name, adapter in self.adapters.items()} | dict(strengths or {})
        return [_describe(name, adapter, at[name]) for name, adapter in self.adapters.items() if adapter.enabled]


def load_all(model: Adaptable, source: LoraSource | None) -> None:
    """Load adapters from a source as `load` accepts it."""
    if source is None:
        return
    if isinstance(source, str | Path):
        source = [source]
    files = source.items() if isinstance(source, Mapping) else ((path, 1.0) for path in source)
    for path, strength in files:
        model.load_lora(path, strength)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return twelve digits that change with the weights, from the first values of every tensor."""
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in sorted(state.items()):
        first = tensor.detach().flatten()[:32].double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {first.tolist()}".encode())
    return digest.hexdigest()


def _fingerprint_of(adapter: LoraAdapter) -> str:
    """Return the fingerprint of an adapter, cached until its factors change."""
    version = [(name, tensor.data_ptr(), _version(tensor)) for name, tensor in adapter.named_factors()]
    kept = adapter.control.fingerprint
    if kept is None or kept[0] != version:
        kept = adapter.control.fingerprint = (version, fingerprint(adapter.state_dict()))
    return kept[1]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _describe(name: str, adapter: LoraAdapter, strength: float) -> dict[str, Any]:
    about = {
        "file": adapter.facts.get("file", name),
        "weights": _fingerprint_of(adapter),
        "strength": strength,
        "interval": None if adapter.interval is None else list(adapter.interval),
        "layers": None if adapter.layer_filter is None else list(adapter.layer_filter),
    }
    return {key: value for key, value in about.items() if value is not None}
