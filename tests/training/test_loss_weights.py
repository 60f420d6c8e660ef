"""Weights of the loss of diffusion models: min-SNR by noise level, and by item for regularisation sets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from support.small_diffusion import model_config, with_random_weights

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.clips import span_fractions
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.faults import BadItem
from stable_audio_tools.data.sources.latents import crop_fractions
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.diffusion.ddpm import DDPMObjective
from stable_audio_tools.models.diffusion.objectives import RECTIFIED_FLOW, Objective, V
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.masked_losses import counted_frames

OBJECTIVES = [V, RECTIFIED_FLOW, DDPMObjective(), DDPMObjective(prediction_type="sample")]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: f"{objective.name}")
def test_min_snr_counts_errors_of_the_data_by_the_clipped_ratio(objective: Objective) -> None:
    t = torch.tensor([0.05, 0.3, 0.6, 0.9])
    data, noise, error = (torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    x, target = objective.corrupt(data, noise, t)
    wrong = target + 0.1 * error
    data_error = (objective.predict_data(x, wrong, t) - data).square().mean((1, 2))
    alpha, sigma = objective.mix(t)
    expected = (alpha / sigma).square().clamp(max=5.0) * data_error
    found = objective.min_snr_weight(t, 5.0) * (wrong - target).square().mean((1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_the_weight_of_ddpm_is_the_same_by_either_key() -> None:
    t = torch.tensor([0.1, 0.5, 0.9])
    for kind in ("epsilon", "sample", "v"):
        own = DDPMObjective(prediction_type=kind, min_snr=5.0).loss_weight(t)
        torch.testing.assert_close(DDPMObjective(prediction_type=kind).min_snr_weight(t, 5.0), own, rtol=1e-4, atol=0)


def test_weights_are_finite_at_both_ends() -> None:
    for objective in (V, RECTIFIED_FLOW):
        assert objective.min_snr_weight(torch.tensor([0.0, 1.0]), 5.0).isfinite().all()


def wrapper(**training: Any) -> Any:
    options = {"mask_padding_attention": True} if "mask_loss_weight" in training else {}
    config = model_config("rectified_flow", **options)
    torch.manual_seed(0)
    model = with_random_weights(create_model_from_config(config))
    config["training"] = {"learning_rate": 1e-4, "use_ema": False, "pre_encoded": True, **training}
    return create_training_wrapper_from_config(config, model)


def loss_of(weights: list[float | None], spans: list[Any] | None = None, **training: Any) -> torch.Tensor:
    """The loss of a first step, always with the same weights, noise levels and noise."""
    module = wrapper(cfg_dropout_prob=0.0, **training)
    latents = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(3))
    module._trainer = type("Trainer", (), {"optimizers": [torch.optim.SGD(module.parameters(), lr=0.1)]})()
    module.log_terms = lambda *_, **__: None
    metadata: list[dict[str, Any]] = [
        {"mood": "calm", "tempo": 100, **({} if weight is None else {"loss_weight": weight})} for weight in weights
    ]
    for entry, own in zip(metadata, spans or []):
        entry["loss_fractions"] = own
    torch.manual_seed(4)
    loss: torch.Tensor = module.training_step((latents, metadata), 0)
    return loss


@pytest.mark.parametrize("training", [{}, {"mask_loss_weight": 0.0}])
def test_items_count_by_their_weight(training: dict[str, Any]) -> None:
    plain = loss_of([None, None], **training)
    first, second = loss_of([1.0, 0.0], **training), loss_of([0.0, 1.0], **training)
    torch.testing.assert_close(first + second, plain)
    torch.testing.assert_close(loss_of([None, 0.25], **training), first + 0.25 * second)
    assert loss_of([0.0, 0.0], **training) == 0
    assert (first - second).abs() > 1e-4


def test_min_snr_changes_the_training_step() -> None:
    assert 0 < loss_of([None, None], min_snr_gamma=5.0) != loss_of([None, None])


def test_two_sources_of_min_snr_are_refused() -> None:
    config = model_config({"type": "ddpm", "config": {"min_snr": 5.0}})
    config["training"] = {"learning_rate": 1e-4, "use_ema": False, "min_snr_gamma": 5.0}
    model = create_model_from_config(config)
    with pytest.raises(ConfigError, match=r"training\.min_snr_gamma: the objective has min_snr already; remove one"):
        create_training_wrapper_from_config(config, model)


def test_a_folder_gives_its_items_their_weight(tmp_path: Path) -> None:
    for name in ("new", "regularisation"):
        (tmp_path / name).mkdir()
        sf.write(tmp_path / name / "a.wav", np.random.default_rng(0).normal(0, 0.1, 4000), 8000)
    (tmp_path / "regularisation" / "b.wav").write_bytes((tmp_path / "new" / "a.wav").read_bytes())
    (tmp_path / "regularisation" / "b.json").write_text('{"loss_weight": 0.9}')
    entries = [
        {"id": "new", "path": str(tmp_path / "new")},
        {"id": "regularisation", "path": str(tmp_path / "regularisation"), "loss_weight": 0.3},
    ]
    config = {"dataset_type": "audio_dir", "datasets": entries}
    loader = create_dataloader_from_config(config, 3, 2000, 8000, 1, num_workers=0, shuffle=False)
    _, metadata = next(iter(loader))
    assert {Path(item["path"]).parent.name + item["relpath"]: item.get("loss_weight") for item in metadata} == {
        "newa.wav": None,
        "regularisationa.wav": 0.3,
        "regularisationb.wav": 0.9,
    }


def test_frames_outside_of_spans_do_not_count() -> None:
    def loss(*spans: tuple[float, float], **training: Any) -> torch.Tensor:
        return loss_of([None, None], [list(spans), [(0.0, 1.0)]] if spans else None, **training)

    for training in ({}, {"mask_loss_weight": 0.0}):
        whole, first, second = loss(**training), loss((0.0, 0.5), **training), loss((0.5, 1.0), **training)
        assert len({round(float(value), 5) for value in (whole, first, second)}) == 3
        torch.testing.assert_close(loss((0.0, 0.5), (0.5, 1.0), **training), whole)
    assert counted_frames([{"path": "a"}], 4, torch.device("cpu")) is None
    found = counted_frames([{"loss_fractions": [(0.25, 0.5)]}, {}, {"loss_fractions": []}], 4, torch.device("cpu"))
    assert found is not None and found.int().tolist() == [[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]


def test_spans_in_seconds_follow_the_crop(tmp_path: Path) -> None:
    assert span_fractions([[1, 2], [5, 9]], 1000, 1000, 2000) == [(0.0, 0.5)]
    assert span_fractions([[0, 1.5], [2.5, 4]], 1000, 1000, 2000) == [(0.0, 0.25), (0.75, 1.0)]
    for spans, sentence in (("all", "expected \\[\\[start, end\\]"), ([[2, 1]], "0 <= start < end, got \\[2, 1\\]")):
        with pytest.raises(BadItem, match=sentence):
            span_fractions(spans, 1000, 0, 2000)
    info = {"loss_fractions": [(0.25, 0.5), (0.9, 1.0)]}
    crop_fractions(info, 2, 4, 12)
    assert info["loss_fractions"] == [(0.25, 1.0)]
    sf.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 4000), 8000)
    (tmp_path / "a.json").write_text('{"loss_spans": [[0.0, 0.125]]}')
    config = {"dataset_type": "audio_dir", "datasets": [{"path": str(tmp_path)}], "random_crop": False}
    _, metadata = next(iter(create_dataloader_from_config(config, 1, 2000, 8000, 1, num_workers=0)))
    assert metadata[0]["loss_fractions"] == [(0.0, 0.5)]
