"""`--strategy fsdp`: two processes that divide a model take the steps of one, and resume each other's checkpoints."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launching import LIGHTNING, ROOT, TORCHRUN, run, words

from stable_audio_tools.models.checkpoints.sharded import is_sharded, read_sharded

# Noise and noise levels as functions of the data: then it does not matter which process draws them.
SCRIPT = """
import sys
import torch
from stable_audio_tools.cli import train
from stable_audio_tools.training.diffusion import DiffusionCondTrainingWrapper

torch.randn_like = lambda x, **_: torch.sin(1000 * x)
DiffusionCondTrainingWrapper.draw_timesteps = lambda self, clean, *_: clean.abs().mean((1, 2)) % 1
sys.exit(train.main(sys.argv[1:]))
"""


def without_chance(config: dict[str, Any]) -> None:
    section = config["training"]
    del section["demo"]
    section |= {"cfg_dropout_prob": 0.0, "use_ema": True}
    for entry in section["optimizer_configs"].values():
        # Adam turns rounding of tiny gradients into whole steps; descent keeps differences in proportion.
        entry["optimizer"] = {"type": "SGD", "config": {"lr": 0.01, "momentum": 0.9}}


def newest(folder: Path) -> dict[str, Any]:
    path = max(folder.glob("run/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return read_sharded(path) if is_sharded(path) else torch.load(path, weights_only=True)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["global_step"] == other["global_step"] and one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        # float32 sums in another order, over four steps
        torch.testing.assert_close(
            other["state_dict"][name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_diffusion_cond", "tiny_lm"])
def test_divided_training_is_that_of_one_process_and_resumes_on_any_number(
    name: str, write_config: Any, dataset: Path, tmp_path: Path
) -> None:
    config, script = write_config(name, without_chance), tmp_path / "train.py"
    script.write_text(SCRIPT)

    def flags(folder: str, steps: int, batch: int, *more: Any) -> list[str]:
        clip = ("--gradient-clip-val", 0.5)
        return words(config, dataset, tmp_path / folder, "--max-steps", steps, "--batch-size", batch, *clip, *more)

    run((LIGHTNING, *flags("one", 4, 4, "--checkpoint-every", 2)), script)
    one = newest(tmp_path / "one")
    run((TORCHRUN, *flags("two", 2, 2, "--strategy", "fsdp")), script)
    (halfway,) = (tmp_path / "two").glob("run/*/checkpoints/*.ckpt")
    assert is_sharded(halfway) and len(list(halfway.glob("*.distcp"))) == 2

    run((LIGHTNING, *flags("two_then_one", 4, 4, "--ckpt-path", halfway)), script)
    assert_same(one, newest(tmp_path / "two_then_one"))

    (file,) = (tmp_path / "one").glob("run/*/checkpoints/*step=2.ckpt")
    run((TORCHRUN, *flags("one_then_two", 4, 2, "--strategy", "fsdp", "--ckpt-path", file)), script)
    assert_same(one, newest(tmp_path / "one_then_two"))

    if name == "tiny_diffusion_cond":
        run(((sys.executable,), "--ckpt-path", halfway, "--name", tmp_path / "model"), ROOT / "unwrap_model.py")
        exported = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
        stored = read_sharded(halfway)["state_dict"]
        averages = {key.partition("_ema.ema_model.")[2]: v for key, v in stored.items() if "_ema.ema_model." in key}
        assert averages and all(torch.equal(exported[f"model.{key}"], value) for key, value in averages.items())


@pytest.mark.slow
def test_recover_and_demos_of_a_divided_model(write_config: Any, dataset: Path, tmp_path: Path) -> None:
    """The same number of processes goes on in the same folder; old folders are deleted; demos run at rank zero."""
    config = write_config("tiny_diffusion_cond")
    for steps in (2, 3):
        flags = ("--strategy", "fsdp", "--max-steps", steps, "--recover", "--save-top-k", 1, "--checkpoint-every", 1)
        run((TORCHRUN, *words(config, dataset, tmp_path / "runs", *flags)))
    (folder,) = (tmp_path / "runs" / "run").iterdir()
    assert [path.name.partition("step=")[2] for path in (folder / "checkpoints").iterdir()] == ["3.ckpt"]
    assert list((folder / "demos" / "step_00000001").glob("*.wav"))


FAILING_DISK = """
import os, sys
from torch.distributed.checkpoint import filesystem
from stable_audio_tools.cli import train

write = filesystem.FileSystemWriter.write_data

def write_data(self, *arguments):
    if f"step={os.environ['FULL_AT']}.ckpt" in str(self.path) and os.environ["RANK"] == "1":
        raise OSError(28, "No space left on device")
    return write(self, *arguments)

filesystem.FileSystemWriter.write_data = write_data
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_costs_itself_alone(
    write_config: Any, dataset: Path, tmp_path: Path
) -> None:
    """The disk of the second machine is full for a while; a run whose last checkpoint is missing says so."""
    config, script = write_config("tiny_diffusion_uncond", lambda c: c["training"].pop("demo")), tmp_path / "disk.py"
    script.write_text(FAILING_DISK)
    runs = tmp_path / "runs"
    flags = words(config, dataset, runs, "--strategy", "fsdp", "--max-steps", 3, "--checkpoint-every", 1)
    report = run((TORCHRUN, *flags), script, FULL_AT=2)
    assert report.count("step=2.ckpt was not written ([Errno 28] No space left on device)") == 1
    (folder,) = runs.glob("run/*/checkpoints")
    assert {path.name.partition("step=")[2] for path in folder.iterdir()} == {"1.ckpt", "3.ckpt"}

    report = run((TORCHRUN, *flags), script, status=1, FULL_AT=3)
    assert "the last checkpoint was not written ([Errno 28] No space left on device)" in report
    assert "the newest whole one is" in report and "step=2.ckpt" in report


def test_adversarial_training_is_refused_in_a_sentence(
    write_config: Any, run_training: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run_training(write_config("tiny_autoencoder"), "--strategy", "fsdp", "--max-steps", "1", status=2)
    assert "--strategy fsdp: adversarial training steps two networks" in capfd.readouterr().err
