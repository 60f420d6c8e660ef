"""The estimate of memory: what a pass keeps is traced without contents, and is what a real pass keeps."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins import Precision
from support.small_models import CONFIGS, narrowed
from torch.autograd.graph import saved_tensors_hooks

from stable_audio_tools.core.config import load
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.lora import attach_lora, lora_config_from
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.memory import _pass_of, _SavedTensors, traced_activations, weight_parts


@pytest.fixture
def module() -> Any:
    config = narrowed(load(next(CONFIGS.rglob("tiny_diffusion_cond.json"))))
    config["model"]["diffusion"]["config"]["depth"] = 3
    model = create_model_from_config(config)
    attach_lora(model, lora_config_from({"include": ["transformer"], "rank": 2, "adapter_type": "dora"}), seed=0)
    return create_training_wrapper_from_config(config, model)


BATCH = (torch.zeros(2, 2, 8192), [{"sound": "rain", "seconds_total": 1}] * 2)
TRAINER: Any = SimpleNamespace(precision_plugin=Precision())


def test_the_trace_is_what_a_pass_keeps(module: Any) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    traced = traced_activations(TRAINER, module, BATCH)
    found = _pass_of(module, BATCH)
    assert found is not None
    network, run = found
    kept = _SavedTensors(copy.deepcopy(network))
    with saved_tensors_hooks(kept.add, lambda tensor: tensor):
        run(network)
    assert traced == pytest.approx(kept.peak, rel=0.02)  # a real pass pads some storages
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    run(network).sum().backward()  # nothing of the trace stays behind


def test_recomputing_keeps_less(module: Any) -> None:
    whole = traced_activations(TRAINER, module, BATCH)
    for part in module.modules():
        if isinstance(getattr(part, "checkpointing", None), bool):
            part.checkpointing = True
    recomputed = traced_activations(TRAINER, module, BATCH)
    assert whole is not None and recomputed is not None
    assert recomputed < 0.6 * whole


def test_parts_are_counted(module: Any) -> None:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    size = 4 * sum(parameter.numel() for parameter in trained)
    parts = weight_parts(module, [torch.optim.AdamW(trained)])
    everything = 4 * sum(parameter.numel() for parameter in module.parameters())
    assert parts["trained weights"] == parts["their gradients"] == size
    assert parts["optimiser"] == 2 * size
    assert parts["frozen weights"] >= everything - size
    assert weight_parts(module, [torch.optim.SGD(trained)])["optimiser"] == size
