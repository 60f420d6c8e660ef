"""Damaged `training` sections: each is built with its optimisers, or refused with a typed error."""

import copy
import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import TINY, damaged
from torch import nn

from stable_audio_tools import create_model_from_config
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.training.factory import (
    check_training_config,
    create_demo_callback_from_config,
    create_training_wrapper_from_config,
)


@lru_cache
def model_of(path: Path) -> nn.Module:
    with torch.device("meta"):
        return create_model_from_config(json.loads(path.read_text()))


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
@settings(
    max_examples=600 // len(TINY) + 1,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_section_is_built_or_refused(path: Path, seed: int) -> None:
    config: dict[str, Any] = json.loads(path.read_text())
    config["training"] = damaged(config["training"], random.Random(seed))
    try:
        check_training_config(config)
        with torch.device("meta"):
            wrapper = create_training_wrapper_from_config(config, copy.deepcopy(model_of(path)))
            wrapper.configure_optimizers()
            create_demo_callback_from_config(config)
    except UserError as error:
        assert str(error).strip()


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        ("adamw", "optimizer: expected an object, got 'adamw'"),
        ({"type": ["AdamW"]}, "optimizer.type: no optimiser named"),
        ({"type": "AdamW", "config": [1]}, r"optimizer.config: expected an object, got \[1\]"),
        ({"type": "AdamW", "config": {"betas": [0.8]}}, "optimizer AdamW: "),
        ({"type": "AdamW", "param_groups": {"a": 1}}, "optimizer.param_groups: expected a list"),
        ({"type": "AdamW", "param_groups": ["a"]}, r"param_groups\[0\]: expected an object, got 'a'"),
    ],
)
def test_optimisers_that_are_no_objects_are_named(optimizer: Any, sentence: str) -> None:
    path = next(path for path in TINY if path.stem == "tiny_diffusion_uncond")
    config = json.loads(path.read_text())
    config["training"].pop("learning_rate", None)
    config["training"]["optimizer_configs"] = {"diffusion": {"optimizer": optimizer}}
    with torch.device("meta"), pytest.raises(UserError, match=sentence):
        create_training_wrapper_from_config(config, copy.deepcopy(model_of(path))).configure_optimizers()
