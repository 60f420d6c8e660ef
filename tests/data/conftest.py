"""Small folders of audio, and a header cache that no test shares."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABLE_AUDIO_TOOLS_CACHE", str(tmp_path_factory.mktemp("cache")))


def noise(samples: int, channels: int = 2, seed: int = 0) -> NDArray[np.float32]:
    """`(n, c)`, never silent."""
    return (0.1 * np.random.default_rng(seed).standard_normal((samples, channels))).astype(np.float32)


@pytest.fixture
def write_clip(tmp_path: Path) -> Write:
    """write_clip(name, samples=..., channels=..., rate=..., about={...}) -> path below tmp_path/audio."""

    def write(
        name: str,
        samples: int = 20_000,
        channels: int = 2,
        rate: int = 44_100,
        about: dict[str, object] | None = None,
        wave: NDArray[np.float32] | None = None,
        root: str = "audio",
        **options: str,
    ) -> Path:
        path = tmp_path / root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = sum(map(ord, name))
        sf.write(path, noise(samples, channels, seed) if wave is None else wave, rate, **options)
        if about is not None:
            path.with_suffix(".json").write_text(json.dumps(about))
        return path

    return write
