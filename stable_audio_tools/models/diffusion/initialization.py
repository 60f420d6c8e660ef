"""Initialisation shared by the backbones."""

import torch
from torch import nn


@torch.no_grad()
def halve_parameters(module: nn.Module) -> None:
    """Multiply every parameter by one half, as published models were trained from."""
    for parameter in module.parameters():
        parameter.mul_(0.5)
