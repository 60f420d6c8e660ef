"""Cautious AdamW and Lion, and Muon: they find minima, orthogonalise, resume, and refuse what they cannot do."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.training.optimizers import create_optimizer_from_config
from stable_audio_tools.training.optims import orthogonalise

CONFIGS: dict[str, dict[str, Any]] = {
    "CAdamW": {"lr": 0.05},
    "CLion": {"lr": 0.02},
    "MuonAdamW": {"muon_lr": 0.05, "adam_lr": 0.05, "fused_layer_patterns": ["0.weight"]},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 4, generator=generator)
    y = torch.sin(x[:, :3])
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_loss_falls(kind: str) -> None:
    net = network()
    optimizer = create_optimizer_from_config({"type": kind, "config": CONFIGS[kind]}, net)
    first = train(net, optimizer, 1)
    assert train(net, optimizer, 80) < 0.3 * first


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_resumed_run_takes_the_same_steps(kind: str) -> None:
    net = network()
    optimizer = create_optimizer_from_config({"type": kind, "config": CONFIGS[kind]}, net)
    train(net, optimizer, 3)
    other = copy.deepcopy(net)
    resumed = create_optimizer_from_config({"type": kind, "config": CONFIGS[kind]}, other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(net, optimizer, 3) == train(other, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))


def test_muon_updates_are_nearly_orthogonal() -> None:
    for shape in ((6, 6), (12, 4), (3, 8)):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(*shape)).float())
        assert singular.min() > 0.5
        assert singular.max() < 1.3


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": "CAdamw"}, "did you mean 'CAdamW'"),
        ({"type": "MuonAdamW", "param_groups": [{"pattern": "*"}]}, "makes its own groups"),
        ({"type": "CLion", "config": {"betas": [0.9, 1.0]}}, "betas must be at least 0 and less than 1"),
        ({"type": "MuonAdamW", "config": {"lr": 0.1}}, "has no option 'lr'"),
    ],
)
def test_mistakes_are_named(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_optimizer_from_config(node, network())
