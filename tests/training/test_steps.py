"""What one step does to gradients: guards, clipping and schedules, under float16 scaling, fused steps and turns."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from support.small_training import arc_section, column
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.data.example_clips import write_example_clips
from stable_audio_tools.training.adversarial import AdversarialTraining, without_gradients
from stable_audio_tools.training.callbacks.guards import NonFiniteGuard, drop_unless
from stable_audio_tools.training.gradients import are_finite
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.optimizers import create_optimizer_from_config


class Line(TrainingModule):
    """Fits a line; the loss of the steps in `poisoned` is not a number."""

    def __init__(self, poisoned: tuple[int, ...] = (), scale: float = 1.0, **optimizer: Any) -> None:
        super().__init__()
        self.layer, self.poisoned, self.scale = nn.Linear(2, 1, bias=False), poisoned, scale
        nn.init.constant_(self.layer.weight, 1.0)
        self.optimizer = {"type": "SGD", "config": {"lr": 0.1, **optimizer}}
        self.norms: list[float] = []
        self.weights: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        return create_optimizer_from_config(self.optimizer, self)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.weights.append(self.layer.weight.detach().clone())
        loss = self.scale * self.layer(batch).float().square().mean()
        return loss * float("nan") if batch_idx in self.poisoned else loss

    def on_before_zero_grad(self, *_: Any) -> None:
        if self.layer.weight.grad is not None:
            self.norms.append(float(self.layer.weight.grad.norm()))


def train(module: pl.LightningModule, tmp_path: Path, steps: int, scaled: bool = False, **options: Any) -> pl.Trainer:
    plugins: list[Any] = []
    if scaled:
        plugins = [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        plugins=plugins,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module, DataLoader([torch.tensor([1.0, 2.0])] * steps))  # type: ignore[arg-type]
    return trainer


def guard(action: Any, tmp_path: Path) -> NonFiniteGuard:
    return NonFiniteGuard(action, tmp_path / "checkpoints")


def test_a_loss_that_is_not_a_number_is_reported_under_float16(tmp_path: Path, caplog: Any) -> None:
    watching = guard("skip", tmp_path)
    with caplog.at_level(logging.WARNING):
        train(Line(poisoned=(1,)), tmp_path, 4, scaled=True, callbacks=[watching])
    assert watching.count == 1 and "step 1: the gradient is not finite" in caplog.text


def test_a_loss_that_is_not_a_number_can_stop_a_float16_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step 2: the gradient is not finite"):
        train(Line(poisoned=(2,)), tmp_path, 4, scaled=True, callbacks=[guard("stop", tmp_path)])


def test_the_search_for_a_scale_is_no_fault_and_ends(tmp_path: Path) -> None:
    """The scaled loss overflows float16 for some steps; the loss itself is a number."""
    watching = guard("stop", tmp_path)
    module = Line(scale=1.0)
    trainer = train(module, tmp_path, 6, scaled=True, callbacks=[watching])
    assert watching.count == 0
    trainer.precision_plugin.scaler.update(1e38)  # type: ignore[union-attr]
    endless = guard("stop", tmp_path)
    endless.in_a_row = 18
    verdicts = [torch.tensor([False, True])] * 2
    from stable_audio_tools.training.callbacks.guards import LateValue, _Verdict

    endless._verdict = _Verdict(LateValue(verdicts[0]), 7, ["a.wav"], True)
    endless._judge(trainer)
    endless._verdict = _Verdict(LateValue(verdicts[1]), 8, ["b.wav"], True)
    with pytest.raises(UserError, match=r"step 8: .*b\.wav\. Stopped after 20 in a row"):
        endless._judge(trainer)


@pytest.mark.parametrize("fused", [True, False])
def test_clipping_sees_true_gradients_under_float16(fused: bool, tmp_path: Path) -> None:
    module = Line(fused=fused)
    train(module, tmp_path, 1, scaled=True, gradient_clip_val=0.5)
    # The gradient of (w x)^2 with w = (1, 1), x = (1, 2) is 2 * 3 * x, whose norm is 13.4: one step of 0.1 * 0.5.
    moved = 1.0 - module.layer.weight.detach()
    assert moved.norm() == pytest.approx(0.05, rel=1e-2)


class Turns(AdversarialTraining):
    """Two lines that train in turns."""

    def __init__(self, configs: dict[str, Any], accum_batches: int = 1, clip_grad_norm: float = 0.0) -> None:
        super().__init__(configs, ["generator", "critic"], accum_batches, clip_grad_norm)
        self.generator, self.critic = nn.Linear(2, 1), nn.Linear(2, 1)
        for layer in self.players():
            nn.init.constant_(layer.weight, 1.0)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.rates: list[tuple[float, float]] = []
        self.norms: list[float] = []

    def players(self) -> list[nn.Module]:
        return [self.generator, self.critic]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        index = self.global_step % 2
        loss = self.players()[index](batch).square().mean()
        self.take_turn(loss, index)
        self.rates.append((self.learning_rate(0), self.learning_rate(1)))
        return loss.detach()


def turns(**critic: Any) -> dict[str, Any]:
    sgd = {"optimizer": {"type": "SGD", "config": {"lr": 1.0, "fused": True}}}
    return {"generator": dict(sgd), "critic": {**sgd, **critic}}


def test_clipping_of_two_networks_sees_true_gradients_under_float16(tmp_path: Path) -> None:
    module = Turns(turns(), clip_grad_norm=0.5)
    train(module, tmp_path, 1, scaled=True)
    moved = [1.0 - module.generator.weight, module.generator.bias]
    assert torch.cat([value.detach().flatten() for value in moved]).norm() == pytest.approx(0.5, rel=1e-2)


def test_batches_are_summed_for_both_networks(tmp_path: Path) -> None:
    module = Turns(turns(), accum_batches=3)
    trainer = train(module, tmp_path, 4)
    assert trainer.global_step == 1 and torch.equal(module.critic.weight, torch.ones(1, 2))
    assert not torch.equal(module.generator.weight, torch.ones(1, 2))


def test_schedules_of_two_networks_keep_their_timing(tmp_path: Path) -> None:
    halving = {"type": "StepLR", "config": {"step_size": 1, "gamma": 0.5}}
    module = Turns(turns(scheduler={**halving, "frequency": 2}))
    module.optimizer_configs["generator"] = {
        **module.optimizer_configs["generator"],
        "scheduler": {**halving, "interval": "epoch"},
    }
    train(module, tmp_path, 10)
    assert [rate for _, rate in module.rates] == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert {rate for rate, _ in module.rates} == {1.0}, "an epoch has not ended yet"
    assert module.learning_rate(0) == 0.5


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"type": "StepLR", "interval": "batch"}, "scheduler.interval: expected 'step' or 'epoch', got 'batch'"),
        ({"type": "StepLR", "frequency": 0}, "scheduler.frequency: expected a whole number of at least 1, got 0"),
        ({"type": "ReduceLROnPlateau"}, "scheduler.monitor: missing"),
    ],
)
def test_mistakes_of_timing_are_named(scheduler: dict[str, Any], message: str) -> None:
    config = {"step_size": 1} if scheduler["type"] == "StepLR" else {}
    with pytest.raises(ConfigError, match=message):
        Turns(turns(scheduler={**scheduler, "config": config})).configure_optimizers()


def groups(config: dict[str, Any]) -> None:
    for entry in config["training"]["optimizer_configs"].values():
        entry["optimizer"] = {**entry["optimizer"], "param_groups": [{"pattern": "*.bias", "lr": 1e-5}]}


def test_parameter_groups_of_autoencoder_and_discriminator(write_config: Any, run_training: Any) -> None:
    def grouped(config: dict[str, Any]) -> None:
        optimizer = {"optimizer": {"type": "AdamW", "config": {"lr": 1e-4}}}
        config["training"]["optimizer_configs"] = {"autoencoder": optimizer, "discriminator": optimizer}
        groups(config)

    assert column(run_training(write_config("tiny_autoencoder", grouped), "--max-steps", "2"), "train/loss")


def test_arc_sums_batches(write_config: Any, run_training: Any, checkpoint_of: Any) -> None:
    config = write_config("tiny_diffusion_cond", arc_section)
    folder = run_training(config, "--max-steps", "2", "--accum-batches", "2")
    state = torch.load(checkpoint_of(folder), weights_only=True)
    batches = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
    assert (state["global_step"], batches) == (2, 4)


@pytest.mark.parametrize("name", ["tiny_diffusion_uncond", "tiny_autoencoder"])
def test_validation_comes_every_so_many_steps(name: str, write_config: Any, run_training: Any, dataset: Path) -> None:
    flags = ("--val-dataset-config", str(dataset), "--limit-val-batches", "1", "--max-steps", "4", "--batch-size", "1")
    summed = ("--val-every", "2", "--accum-batches", "2")
    folder = run_training(write_config(name, lambda c: c["training"].pop("demo")), *flags, *summed)
    with (folder / "metrics" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if any(key.startswith("val/") and row[key] for key in row)]
    assert len(rows) == 2, "after the second and the fourth step"


def test_an_epoch_that_a_bad_file_makes_shorter_still_ends(
    write_config: Any, run_training: Any, tmp_path: Path, losses_of: Any
) -> None:
    """Validation at its end comes, and schedules by epoch go on."""
    clips = tmp_path / "clips"
    write_example_clips(clips, per_class=2)
    first, *others = sorted(clips.rglob("*.flac"))
    for extra in others[3:]:
        extra.unlink()
    rule = f"def get_custom_metadata(info, audio):\n    return {{'__reject__': {first.name!r} in info['relpath']}}\n"
    (tmp_path / "rejects.py").write_text(rule)
    data = tmp_path / "data.json"
    entry = {"id": "a", "path": str(clips), "custom_metadata_module": str(tmp_path / "rejects.py")}
    data.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [entry], "max_bad_fraction": 1.0}))

    def by_epoch(config: dict[str, Any]) -> None:
        config["training"].pop("demo")
        halving = {"type": "StepLR", "config": {"step_size": 1, "gamma": 0.5}, "interval": "epoch"}
        optimizer = {"type": "SGD", "config": {"lr": 1e-3}}
        config["training"]["optimizer_configs"] = {"diffusion": {"optimizer": optimizer, "scheduler": halving}}
        config["training"].pop("learning_rate", None)

    flags = ("--dataset-config", str(data), "--val-dataset-config", str(data), "--max-epochs", "2", "--batch-size", "2")
    folder = run_training(write_config("tiny_diffusion_uncond", by_epoch), *flags)
    assert len(column(folder, "val/avg_loss")) == 2
    assert column(folder, "train/lr") == pytest.approx([1e-3, 5e-4])


def test_a_critic_collects_no_gradient_while_it_only_judges() -> None:
    critic, generator = nn.Linear(2, 1), nn.Linear(2, 2)
    critic.bias.requires_grad_(False)
    with without_gradients(critic):
        critic(generator(torch.ones(1, 2))).sum().backward()
    assert critic.weight.grad is None and generator.weight.grad is not None
    assert critic.weight.requires_grad and not critic.bias.requires_grad


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
def test_fused_steps_without_a_finite_gradient_are_left_out(kind: str) -> None:
    """`found_inf` is what a GPU is told; the kernels of the CPU obey it, too."""
    layer = nn.Linear(3, 3)
    optimizer = create_optimizer_from_config({"type": kind, "config": {"lr": 0.1, "fused": True}}, layer)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).mul(float("inf")).sum().backward()
    assert not are_finite(layer.parameters())
    optimizer.found_inf = (~are_finite(layer.parameters())).float()  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(layer.weight, before)
    drop_unless(are_finite(layer.parameters()), optimizer, list(layer.parameters()))
    assert layer.weight.grad is None
