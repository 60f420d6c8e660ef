"""The benchmark of validity, in small: a copy of a query under another name, and so with other noise, comes first."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "attribution_validity.py"
    spec = importlib.util.spec_from_file_location("attribution_validity", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_planted_duplicates_come_first(benchmark: ModuleType) -> None:
    with torch.random.fork_rng(devices=[]):
        setting = benchmark.Setting(items=18, queries=6, steps=60, dim=512, timesteps=20)
        found = benchmark.planted_duplicates(setting)
    assert found["TRAK"] == 6 and found["D-TRAK"] >= 5, "the regulariser may cost one of the few"
