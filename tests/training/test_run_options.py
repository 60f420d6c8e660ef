"""What a run can be told: loggers, precision, compilation, strategies, held-out data."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_training import column, training_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stable_audio_tools.cli.data import dedup_index
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.factory import check_training_config
from stable_audio_tools.training.loggers import create_logger, with_pulled_settings
from stable_audio_tools.training.settings import TrainSettings
from stable_audio_tools.training.trainer import create_trainer


def test_tensorboard_needs_no_account(write_config: Any, run_training: Any) -> None:
    folder = run_training(write_config("tiny_diffusion_uncond"), "--max-steps", "2", "--logger", "tensorboard")
    events = EventAccumulator(str(folder / "metrics")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1]
    assert events.Tags()["audio"] and events.Tags()["images"], "demos can be heard and seen there"


def test_wandb_works_offline(write_config: Any, run_training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = run_training(write_config("tiny_diffusion_uncond"), "--max-steps", "1", "--logger", "wandb")
    wandb.finish()
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(100):  # a process of its own writes the file
        content = record.read_bytes()
        if b"train/loss" in content and b"model_config" in content:
            return
        time.sleep(0.1)
    pytest.fail(f"{record} holds {len(content)} bytes and lacks what was logged")


def test_tensorboard_shows_histograms_and_latents(write_config: Any, run_training: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ("--max-steps", "2", "--logger", "tensorboard", "--watch", "all", "--log-every", "1")
    folder = run_training(write_config("tiny_autoencoder"), *flags)
    events = EventAccumulator(str(folder / "metrics"))
    events.Reload()
    names = set(events.Tags()["histograms"])
    trained = {name.partition("/")[2] for name in names}
    assert any(name.startswith("encoder.") for name in trained) and any(name.startswith("decoder.") for name in trained)
    assert names == {f"{kind}/{name}" for kind in ("gradients", "parameters") for name in trained}
    (table,) = (folder / "metrics").rglob("tensors.tsv")
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert len(rows) == len((table.parent / "metadata.tsv").read_text().splitlines()) > 2
    assert len({len(row) for row in rows}) == 1 and len(rows[0]) > 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--logger", "csv"), "--watch: --logger csv has no histograms; use tensorboard or wandb"),
        (("--strategy", "fsdp"), "--watch: histograms of divided weights are not available"),
    ],
)
def test_histograms_that_cannot_be_logged_are_refused(
    flags: tuple[str, ...], sentence: str, write_config: Any, run_training: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run_training(write_config("tiny_diffusion_uncond"), "--max-steps", "1", "--watch", "all", *flags, status=2)
    assert sentence in capfd.readouterr().err


def test_no_logger_is_a_choice(write_config: Any, run_training: Any, checkpoint_of: Any) -> None:
    folder = run_training(write_config("tiny_diffusion_uncond"), "--max-steps", "1", "--logger", "none")
    assert checkpoint_of(folder).exists() and not (folder / "metrics").exists()


PRECISIONS = {
    "auto": "32-true",
    "16": "bf16-mixed",  # no CPU has a float16 mode
    "32": "32-true",
    "bf16": "bf16-mixed",
    "bf16-mixed": "bf16-mixed",
    "bf16-true": "bf16-true",
    "64": "64-true",
}


@pytest.mark.parametrize("asked", PRECISIONS)
def test_precision_is_spelled_as_lightning_does(asked: str, tmp_path: Path) -> None:
    config = training_config("tiny_diffusion_uncond")
    wrapper = create_training_wrapper_from_config(config, create_model_from_config(config))
    settings = TrainSettings(precision=asked, accelerator="cpu", logger="none")
    trainer = create_trainer(settings, config, check_training_config(config), wrapper, tmp_path)
    assert trainer.precision == PRECISIONS[asked]


def test_bfloat16_trains(write_config: Any, run_training: Any, losses_of: Any) -> None:
    config = write_config("tiny_diffusion_uncond")
    exact = losses_of(run_training(config, "--max-steps", "2", name="float32"))
    mixed = losses_of(run_training(config, "--max-steps", "2", "--precision", "bf16-mixed", name="bfloat16"))
    assert mixed == pytest.approx(exact, rel=0.05) and mixed != exact


@pytest.mark.parametrize("name", ["tiny_diffusion_cond", "tiny_diffusion_uncond", "tiny_lm"])
def test_bfloat16_weights_train_with_averages_in_float32(
    name: str, write_config: Any, run_training: Any, checkpoint_of: Callable[[Path], Path]
) -> None:
    def averaged(config: dict[str, Any]) -> None:
        del config["training"]["demo"]
        config["training"]["use_ema"] = True

    folder = run_training(write_config(name, averaged), "--max-steps", "2", "--precision", "bf16-true")
    state = torch.load(checkpoint_of(folder), weights_only=True)["state_dict"]
    averages = [value for key, value in state.items() if "_ema.ema_model." in key]
    assert averages and all(value.dtype == torch.float32 for value in averages)
    assert any(value.dtype == torch.bfloat16 for value in state.values())


def test_a_precision_that_is_none(write_config: Any, run_training: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run_training(write_config("tiny_diffusion_uncond"), "--precision", "17", status=2)
    told = capfd.readouterr().err
    assert "17" in told and "bf16-mixed" in told and "Traceback" not in told


def held_out(config: dict[str, Any]) -> None:
    config["training"].pop("demo")


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("tiny_diffusion_cond", ["val/avg_loss", "val/loss_0.1", "val/loss_0.9"]),
        ("tiny_diffusion_uncond", ["val/avg_loss", "val/loss_0.5"]),
        ("tiny_autoencoder", ["val/mrstft_loss"]),
        ("tiny_lm", ["val/cross_entropy"]),
    ],
)
def test_held_out_data_is_judged(
    name: str, metrics: list[str], write_config: Any, run_training: Any, dataset: Path
) -> None:
    flags = ("--val-dataset-config", str(dataset), "--val-every", "1", "--limit-val-batches", "2", "--max-steps", "2")
    folder = run_training(write_config(name, held_out), *flags)
    for metric in metrics:
        values = column(folder, metric)
        assert len(values) == 2 and all(value == value and value > 0 for value in values), metric
    if name == "tiny_diffusion_cond":
        levels = [column(folder, f"val/loss_{level:g}")[0] for level in (0.1, 0.3, 0.5, 0.7, 0.9)]
        assert column(folder, "val/avg_loss")[0] == pytest.approx(sum(levels) / 5, rel=1e-5)


def test_the_same_weights_have_the_same_held_out_loss(write_config: Any, run_training: Any, dataset: Path) -> None:
    """The noise of a validation does not depend on when it comes."""

    def still(config: dict[str, Any]) -> None:
        held_out(config)
        config["training"]["learning_rate"] = 1e-30

    flags = ("--val-dataset-config", str(dataset), "--val-every", "1", "--limit-val-batches", "2", "--max-steps", "3")
    values = column(run_training(write_config("tiny_diffusion_uncond", still), *flags), "val/avg_loss")
    assert len(values) == 3 and values[0] == values[1] == values[2]


@pytest.mark.parametrize("name", ["tiny_diffusion_cond", "tiny_diffusion_uncond", "tiny_diffusion_autoencoder"])
def test_the_held_out_loss_does_not_depend_on_the_batch_size(
    name: str, write_config: Any, run_training: Any, dataset: Path
) -> None:
    """Every item counts once and has noise of its own, also in a last batch that is smaller."""

    def still(config: dict[str, Any]) -> None:
        held_out(config)
        config["training"]["learning_rate"] = 1e-30

    config = write_config(name, still)
    flags = ("--val-dataset-config", str(dataset), "--val-every", "1", "--max-steps", "1", "--num-workers", "0")
    losses = []
    for size in ("1", "2", "3"):
        losses += column(run_training(config, *flags, "--batch-size", size, name=size), "val/avg_loss")
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)  # sums in another order


@pytest.mark.parametrize("strategy", ["deepspeed"])
def test_strategies_of_gpus_say_so_without_one(
    strategy: str, write_config: Any, run_training: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run_training(write_config("tiny_diffusion_uncond"), "--strategy", strategy, "--max-steps", "1", status=2)
    told = capfd.readouterr().err
    assert strategy in told.lower() and "Traceback" not in told


@pytest.mark.slow
def test_one_process_works_where_torchrun_starts_two(
    write_config: Any, run_training: Any, checkpoint_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    """unwrap_model.py under the guides' `torchrun --nproc_per_node gpu`: rank zero works, the other leaves."""
    config = write_config("tiny_diffusion_uncond")
    checkpoint = checkpoint_of(run_training(config, "--max-steps", "1"))
    script = Path(__file__).parents[2] / "unwrap_model.py"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    words = ["--model-config", str(config), "--ckpt-path", str(checkpoint), "--name", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"]


def wandb_records(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")))


def test_wandb_keeps_demos_and_a_resumed_run_keeps_its_id(
    write_config: Any, run_training: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")

    def often(config: dict[str, Any]) -> None:
        config["training"]["demo"]["demo_every"] = 2

    config = write_config("tiny_diffusion_uncond", often)
    folder = run_training(config, "--max-steps", "4", "--logger", "wandb")
    wandb.finish()
    first = {path.name.split("-")[-1] for path in folder.glob("wandb/offline-run-*")}
    logged = sorted(folder.glob("wandb/offline-run-*/files/media/audio/demo/*.wav"))
    assert len(logged) == len(list(folder.glob("demos/*/demo.wav"))) >= 2
    assert "must be monotonically increasing" not in capfd.readouterr().err
    assert run_training(config, "--max-steps", "5", "--logger", "wandb", "--recover") == folder
    wandb.finish()
    assert {path.name.split("-")[-1] for path in folder.glob("wandb/offline-run-*")} == first


def test_settings_of_a_wandb_run_fill_in_what_the_flags_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    stored = {"batch_size": 7, "max_steps": 5, "save_dir": "/elsewhere", "seed": "no number", "model": {}}

    class Api:
        def run(self, path: str) -> Any:
            if path != "team/music/a1b2":
                raise ValueError(f"no run {path}")
            return type("Run", (), {"config": stored})()

    monkeypatch.setattr(wandb, "Api", Api)
    given = TrainSettings(wandb_config="https://wandb.ai/team/music/runs/a1b2?nw=1", max_steps=9)
    pulled = with_pulled_settings(given)
    assert (pulled.batch_size, pulled.max_steps, pulled.save_dir, pulled.seed) == (7, 9, "runs", 42)
    with pytest.raises(UserError, match=r"cannot be read \(no run team/music/other\)"):
        with_pulled_settings(TrainSettings(wandb_config="team/music/other"))
    with pytest.raises(UserError, match="expected the URL of a run"):
        with_pulled_settings(TrainSettings(wandb_config="https://wandb.ai/team"))
    assert with_pulled_settings(TrainSettings()) == TrainSettings()


def test_a_login_of_wandb_is_mentioned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    caplog.set_level("INFO", "stable_audio_tools")
    create_logger(TrainSettings(), tmp_path)
    assert "--logger wandb" not in caplog.text
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    create_logger(TrainSettings(), tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    create_logger(TrainSettings(), tmp_path)
    assert caplog.text.count("--logger wandb logs to Weights & Biases instead") == 2


def test_demos_are_looked_up_in_an_index(
    write_config: Any, run_training: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Equal runs write equal demos, so the demos of one are copies for the next."""

    def many(config: dict[str, Any]) -> None:
        config["training"]["demo"]["num_demos"] = 12

    config = write_config("tiny_diffusion_uncond", many)
    first = run_training(config, "--max-steps", "1")
    index = ["--index", str(tmp_path / "index"), "--dataset-dir", str(first / "demos"), "--num-workers", "1"]
    assert dedup_index(index) == 0
    second = run_training(config, "--max-steps", "1", "--check-copies", str(tmp_path / "index"))
    assert column(second, "demo/copied_share") == [1.0]
    assert "is a passage of demos:step_00000001/" in capfd.readouterr().err
    run_training(config, "--max-steps", "1", "--check-copies", str(tmp_path), status=2)
    assert "not an index of recordings" in capfd.readouterr().err
