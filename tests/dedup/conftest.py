"""A folder of made-up songs with copies and style twins, written once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.planted_songs import plant

from stable_audio_tools.dedup.run import DedupOutcome, deduplicate
from stable_audio_tools.dedup.settings import DedupSettings

Run = Callable[..., DedupOutcome]


class Planted(NamedTuple):
    folder: Path
    pairs: set[frozenset[str]]
    features: Path


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("planted") / "songs"
    return Planted(folder, plant(folder, songs=3, twins=2, seconds=14.0), folder.parent / "features")


@pytest.fixture
def run(planted: Planted, tmp_path: Path) -> Run:
    """run(flag=value, ...): deduplicate the planted songs, hearing each file once in all tests."""

    def go(**settings: Any) -> DedupOutcome:
        given = {
            "dataset_dir": [str(planted.folder)],
            "features_dir": str(planted.features),
            "output_dir": str(tmp_path / "out"),
            "codec": "spectral",
            "similarity_device": "cpu",
            "num_workers": 2,
            **settings,
        }
        outcome = deduplicate(DedupSettings(**given))
        assert outcome is not None
        return outcome

    return go
