"""What a run says of itself: speed, time left, traces, demos, and what to do with its checkpoint."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from support.small_training import column, training_config
from torch.utils.data import DataLoader

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.callbacks.demos import EARLY_STEP, DemoCallback
from stable_audio_tools.training.callbacks.progress import ProgressBar, duration, shown
from stable_audio_tools.training.callbacks.telemetry import Telemetry, peak_operations


def test_a_run_logs_speed_and_gradients_traces_steps_and_ends_with_a_command(
    write_config: Any, run_training: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    def frequent(config: dict[str, Any]) -> None:
        config["training"]["demo"]["demo_every"] = 10_000

    flags = ("--max-steps", "6", "--profile", "2")
    folder = run_training(write_config("tiny_diffusion_uncond", frequent), *flags)
    items, seconds = (column(folder, f"speed/{name}_per_second") for name in ("items", "audio_seconds"))
    assert len(items) == 6 and all(value > 0 for value in items)
    assert seconds[-1] == pytest.approx(items[-1] * 8192 / 22050)
    assert min(column(folder, "time/data_seconds") + column(folder, "time/compute_seconds")) >= 0
    assert all(norm > 0 for norm in column(folder, "train/grad_norm"))
    events = json.loads((folder / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name", "").startswith("Optimizer.step") for event in events) == 2
    assert "aten::" in (folder / "profile" / "operators.txt").read_text()
    said = capfd.readouterr().err
    (last,) = [line for line in said.splitlines() if "; next: python unwrap_model.py" in line]
    assert "step 6: " in last and str(folder / "checkpoints") in last


def trained(callbacks: list[pl.Callback], tmp_path: Path, steps: int, name: str = "tiny_diffusion_uncond") -> Any:
    config = training_config(name)
    wrapper = create_training_wrapper_from_config(config, create_model_from_config(config))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=callbacks,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    batch = (torch.randn(2, 2, 2048), ({}, {}))
    trainer.fit(wrapper, DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]
    return trainer


def test_operations_are_counted_against_the_peak(tmp_path: Path) -> None:
    """A peak of what the step takes per second is a utilisation of one."""
    telemetry = Telemetry(22050, peak=1e9)
    metrics = trained([telemetry, ProgressBar()], tmp_path, 4).callback_metrics
    first, second = telemetry._counted
    assert first == second > 1e6
    assert metrics["speed/mfu"] == pytest.approx(1e3 * metrics["speed/teraflops"].item(), rel=1e-5)
    assert metrics["speed/teraflops"] * 1e12 == pytest.approx(
        first * metrics["speed/items_per_second"].item() / 2, rel=1e-4
    )


def test_peaks_are_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H200")
    assert peak_operations(cuda, "bf16-mixed") == 989e12
    assert peak_operations(cuda, "32-true") is None and peak_operations(torch.device("cpu"), "bf16-mixed") is None
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Some Card")
    assert peak_operations(cuda, "bf16-mixed") is None


def test_without_a_terminal_progress_is_a_line_now_and_then(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        trained([ProgressBar(log_seconds=0.0)], tmp_path, 3)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert lines[0].startswith("step 1 of 3, ") and " left: loss " in lines[0]
    assert lines[-1].startswith("step 3 of 3: loss ")


@pytest.mark.parametrize("name", ["tiny_diffusion_uncond", "tiny_autoencoder"])
@pytest.mark.parametrize("flags", [("--max-epochs", "2"), ("--max-epochs", "3", "--max-steps", "4")])
def test_the_end_of_a_run_by_epochs_is_known_at_its_start(
    name: str, flags: tuple[str, ...], write_config: Any, run_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten clips are five batches; sums of two batches end with an epoch, except in adversarial training."""
    ends: list[tuple[int, str]] = []
    end = ProgressBar.on_train_end

    def on_train_end(self: ProgressBar, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        ends.append((trainer.global_step, self.sentence(trainer)))
        end(self, trainer, module)

    monkeypatch.setattr(ProgressBar, "on_train_end", on_train_end)
    run_training(write_config(name, lambda config: config["training"].pop("demo")), *flags, "--accum-batches", "2")
    steps = 4 if "--max-steps" in flags else 6 if name == "tiny_diffusion_uncond" else 5
    assert ends == [(steps, f"step {steps} of {steps}")]


def test_on_a_terminal_progress_is_a_bar(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    trained([ProgressBar()], tmp_path, 2)
    written = capsys.readouterr()
    assert "step 2 of 2" in written.out + written.err and "loss" in written.out + written.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (180, "3 min"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_values_have_units() -> None:
    values = {"train/loss": 0.41234, "speed/items_per_second": 12.34, "speed/mfu": 0.413, "v_num": 3}
    assert shown(values) == "loss 0.4123, 12.3 items/s, 41% of peak"


class Noting(DemoCallback):
    """Notes the steps of its demos."""

    def __init__(self, demo_every: int) -> None:
        super().__init__(demo_every, 22050)
        self.steps: list[int] = []

    def run(self, trainer: Any, module: Any, batch: Any) -> None:
        self.steps.append(trainer.global_step)


def demos_of(callback: Noting, end: int, max_steps: int, stopped: bool = False) -> list[int]:
    trainer: Any = SimpleNamespace(global_step=0, max_steps=max_steps, should_stop=False)
    for step in range(1, end + 1):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, None, None, "batch", step)  # type: ignore[arg-type]
    trainer.should_stop = stopped
    callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    return callback.steps


def test_demos_come_early_and_at_the_end() -> None:
    assert demos_of(Noting(1000), 1500, 1500) == [1, EARLY_STEP, 1001, 1500]
    assert demos_of(Noting(10), 25, 25) == [1, 11, 21], "the last one is a few steps old"
    assert demos_of(Noting(1000), 600, 5000, stopped=True) == [1, EARLY_STEP], "a machine that is taken away"


@pytest.mark.parametrize("kind", ["audio", "audio_dict"])
def test_demos_mix_what_is_generated_with_what_a_condition_holds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_audio_tools.training.diffusion import demos

    generated = torch.rand(2, 2, 64)
    monkeypatch.setattr(demos, "generate_diffusion_cond", lambda *_, **__: generated)
    display = {"id": "stem", "type": kind, "config": {"display_mix": True}}
    callback = demos.DiffusionCondDemoCallback(
        demo_cfg_scales=[3], cond_display_configs=[display], demo_cond_from_batch=True
    )
    parts = [{"a": torch.rand(2, 60), "b": torch.rand(2, 60)} for _ in range(2)]
    entries = [{"stem": part if kind == "audio_dict" else part["a"]} for part in parts]
    module: Any = SimpleNamespace(device=torch.device("cpu"), diffusion=None)
    found = {demo.name: demo.audio for demo in callback.make(None, module, (None, entries))}  # type: ignore[arg-type]
    sums = torch.stack([part["a"] + part["b"] if kind == "audio_dict" else part["a"] for part in parts])
    assert torch.allclose(found["demo_stem_mix_cfg_3"], demos.joined(sums + generated[..., :60]))
    assert ("demo_stem_submix_cfg_3" in found) == (kind == "audio_dict")
