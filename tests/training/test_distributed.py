"""The processes of a run, before any of them starts."""

import logging
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from stable_audio_tools.training import distributed
from stable_audio_tools.training.settings import TrainSettings


@pytest.mark.parametrize(
    ("options", "says"), [({}, True), ({"devices": "2"}, False), ({"num_gpus": 8}, False), ({"devices": "1"}, False)]
)
def test_a_run_on_all_gpus_that_nobody_asked_for_is_announced(
    options: dict[str, Any], says: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(distributed, "accelerator_of", lambda settings: "gpu")
    monkeypatch.setattr(distributed, "_started", lambda per_node, nodes: nullcontext())
    with caplog.at_level(logging.INFO), distributed.joined(TrainSettings(**options)):
        pass
    assert ("training on all 8 GPUs of this machine, one process each; --devices 1" in caplog.text) == says
