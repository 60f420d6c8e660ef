"""Two thousand damaged configs: each is built, or refused with a ConfigError. Nothing else may come out."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import TINY, damaged

from stable_audio_tools import create_model_from_config
from stable_audio_tools.core.errors import ConfigError


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
@settings(
    max_examples=2000 // len(TINY) + 1,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_config_is_built_or_refused(path: Path, seed: int) -> None:
    whole = json.loads(path.read_text())
    whole.pop("training", None)
    config = damaged(whole, random.Random(seed))
    before = copy.deepcopy(config)
    try:
        with torch.device("meta"):
            assert isinstance(create_model_from_config(config), torch.nn.Module)
    except ConfigError as error:
        assert error.problems
        assert all(problem.strip() for problem in error.problems)
    assert config == before, "the caller's config was modified"


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_the_whole_one_is_built(path: Path) -> None:
    assert isinstance(create_model_from_config(json.loads(path.read_text())), torch.nn.Module)
