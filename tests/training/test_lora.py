"""Training an adapter: through the command line, on every model type, resumed, killed, and out of its files again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_models import CONFIGS, SmallModel, narrowed, small_model
from support.small_training import differences

from stable_audio_tools.cli import train
from stable_audio_tools.cli.train import unwrap
from stable_audio_tools.core.config import load, save
from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.lora import AdapterType, BasePrecision, LoraFile, load_lora, merge_lora, read_lora
from stable_audio_tools.models.pretrained import load_model
from stable_audio_tools.training.lora import with_rate
from stable_audio_tools.training.lora_checkpoint import adapter_in
from stable_audio_tools.training.settings import ADAPTER_TYPES, BASE_PRECISIONS, LoraSettings

NAMES = (
    "tiny_diffusion_cond",
    "tiny_diffusion_cond_inpaint",
    "tiny_diffusion_autoencoder",
    "tiny_autoencoder",
)
QUICK = ("--batch-size", "2", "--num-workers", "0", "--logger", "none", "--accelerator", "cpu", "--rank", "2")

Run = Callable[..., Path]


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SmallModel]:
    folder = tmp_path_factory.mktemp("bases")

    def get(name: str) -> SmallModel:
        made = small_model(name, folder)
        config = load(made.config)
        config.pop("lora", None)
        demo = config["training"]["demo"]
        demo["demo_every"] = 10_000
        demo.update({key: 2 for key in ("demo_steps", "num_demos", "max_num_sample") if key in demo})
        save(config, made.config)
        return made

    return get


def words(base: SmallModel, dataset: Path, save_dir: Path, steps: int, *more: str) -> list[str]:
    files = ["--model-config", base.config, "--dataset-config", dataset, "--pretrained-ckpt-path", base.weights]
    return [str(word) for word in (*files, "--save-dir", save_dir, "--max-steps", steps, *QUICK, *more)]


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(f"*/*/{pattern}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_model_type_trains_an_adapter_and_keeps_its_base(
    name: str, base_of: Any, dataset: Path, tmp_path: Path
) -> None:
    base = base_of(name)
    assert train.train_lora(words(base, dataset, tmp_path, 2)) == 0
    state = torch.load(only(tmp_path, "checkpoints/*step=2.ckpt"), weights_only=True)["state_dict"]
    base_tensors = load_model(base.config, base.weights).state_dict()
    assert not [key for key in state if key.partition(".")[2] in base_tensors and "ema" not in key]

    model = load_model(base.config, base.weights)
    adapter = load_lora(model, only(tmp_path, "adapters/*.safetensors"))
    assert all(torch.equal(base_tensors[key], value) for key, value in model.state_dict().items())
    ups = [factors.lora_B for _, factors in adapter.layers()]  # these begin at zero
    assert sum(bool(up.any()) for up in ups) > 0.9 * len(ups)


def test_resume_is_bit_identical_and_refuses_other_bases_and_ranks(
    base_of: Any, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_of("tiny_diffusion_cond")
    every = ("--checkpoint-every", "3", "--adapter-type", "dora", "--exclude", "conditioner")
    assert train.train_lora(words(base, dataset, tmp_path / "whole", 7, *every)) == 0
    middle = only(tmp_path / "whole", "checkpoints/*step=3.ckpt")
    resumed = [*every, "--ckpt-path", str(middle)]
    assert train.train_lora(words(base, dataset, tmp_path / "parts", 7, *resumed)) == 0
    assert differences(*(only(tmp_path / part, "checkpoints/*step=7.ckpt") for part in ("whole", "parts"))) == []

    other = SmallModel(base.config, tmp_path / "other.safetensors")
    tensors = {name: value + 0.01 for name, value in load_file(base.weights).items()}
    save_file(tensors, other.weights)
    refusals = {
        "trained on other base weights (tiny_diffusion_cond.safetensors)": words(other, dataset, tmp_path, 7, *resumed),
        "holds another adapter": words(base, dataset, tmp_path, 7, *resumed, "--rank", "3"),
    }
    for sentence, command in refusals.items():
        assert train.train_lora(command) == 2
        assert sentence in capsys.readouterr().err
    plain = ["--model-config", str(base.config), "--dataset-config", str(dataset), "--save-dir", str(tmp_path)]
    assert train.main([*plain, "--ckpt-path", str(middle)]) == 2
    assert "resume it with train_lora.py" in capsys.readouterr().err


def test_killed_run_recovers_to_the_same_bits(base_of: Any, dataset: Path, tmp_path: Path) -> None:
    base, often = base_of("tiny_diffusion_uncond"), ("--checkpoint-every", "1")
    assert train.train_lora(words(base, dataset, tmp_path / "whole", 9, *often)) == 0
    command = [sys.executable, "-m", "stable_audio_tools.cli.main", "train-lora"]
    process = subprocess.Popen(
        [*command, *words(base, dataset, tmp_path / "killed", 10_000, *often)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("*/*/checkpoints/*step=[0-9].ckpt"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert train.train_lora(words(base, dataset, tmp_path / "killed", 9, *often, "--recover")) == 0
    assert differences(*(only(tmp_path / part, "checkpoints/*step=9.ckpt") for part in ("whole", "killed"))) == []


def test_adapter_files_are_averaged_kept_in_number_and_started_from(
    base_of: Any, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_of("tiny_diffusion_cond")
    files = ("--adapter-every", "1", "--keep-adapters", "2", "--trigger-text", "my song")
    assert train.train_lora(words(base, dataset, tmp_path / "one", 4, *files)) == 0
    written = sorted((tmp_path / "one").glob("*/*/adapters/*"))
    assert [path.name for path in written] == ["step_00000003.safetensors", "step_00000004.safetensors"]
    checkpoint = only(tmp_path / "one", "checkpoints/*.ckpt")
    read, averaged, online = read_lora(written[-1]), adapter_in(checkpoint), adapter_in(checkpoint, ema=False)
    assert averaged is not None and online is not None
    assert read.facts["trigger"] == "my song" and read.facts["step"] == 4
    ours, theirs = tensors_of(read), tensors_of(averaged)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not all(torch.equal(ours[name], value) for name, value in tensors_of(online).items())

    # rank and layers come from the file where nothing else is said
    more = ["--lora-ckpt-path", str(written[-1]), "--rank", "0"]
    assert train.train_lora(words(base, dataset, tmp_path / "two", 1, *more)) == 0
    begun = read_lora(only(tmp_path / "two", "adapters/*"))
    assert begun.config.rank == 2
    apart = [(tensors_of(begun)[name] - value).abs().max() for name, value in tensors_of(read).items()]
    assert max(apart) < 0.01  # one step of a rising learning rate away
    assert train.train_lora(words(base, dataset, tmp_path / "three", 1, *more[:2], "--rank", "4")) == 2
    assert "set rank to 2" in capsys.readouterr().err


def test_the_rate_of_the_adapter_takes_the_place_of_the_optimisers() -> None:
    adam = {"optimizer": {"type": "AdamW", "config": {"lr": 5e-5, "betas": [0.9, 0.99]}}, "scheduler": {"type": "X"}}
    config = {"training": {"optimizer_configs": {"autoencoder": adam, "discriminator": adam}}}
    changed = with_rate(config, 1e-4)["optimizer_configs"]
    assert changed["autoencoder"]["optimizer"]["config"] == {"lr": 1e-4, "betas": [0.9, 0.99]}
    assert changed["autoencoder"]["scheduler"] == {"type": "X"}
    assert changed["discriminator"] == adam
    assert with_rate(config, None) == config["training"]
    assert with_rate({"training": {"learning_rate": 3e-4}}, 1e-3) == {"learning_rate": 1e-3}
    assert with_rate({"training": {}}, None) == {"learning_rate": 1e-4}


def test_flags_come_before_the_section() -> None:
    section = {"component_whitelist": ["transformer"], "rank": 32, "alpha": 32, "weight_decompose": True, "lr": 1e-4}
    settings = LoraSettings(rank=8, adapter_type="bora", include=("self_attn",))
    assert settings.lora_section(section) == {
        "rank": 8,
        "alpha": 32,
        "adapter_type": "bora",
        "include": ["self_attn"],
        "lr": 1e-4,
    }
    assert LoraSettings().lora_section(section) == section
    assert set(ADAPTER_TYPES) == {"", *get_args(AdapterType)}
    assert set(BASE_PRECISIONS) == {"", *get_args(BasePrecision)}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--pretrained-ckpt-path", ""), "an adapter is trained on the weights of a model"),
        (("--strategy", "fsdp"), "too small to be divided"),
        (("--base-precision", "bf16", "--precision", "32"), "needs mixed precision"),
        (("--include", "pretransform.model.encoder"), "no gradient reaches the adapter"),
        (("--include", "self_atn"), "matches no layer"),
    ],
)
def test_mistakes_are_one_sentence(
    flags: tuple[str, ...],
    sentence: str,
    base_of: Any,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.train_lora(words(base_of("tiny_diffusion_cond"), dataset, tmp_path, 1, *flags)) == 2
    assert sentence in capsys.readouterr().err


def test_a_half_precision_base_trains(base_of: Any, dataset: Path, tmp_path: Path) -> None:
    flags = ("--base-precision", "bf16", "--precision", "bf16-mixed")
    assert train.train_lora(words(base_of("tiny_diffusion_cond"), dataset, tmp_path, 1, *flags)) == 0
    held = read_lora(only(tmp_path, "adapters/*"))
    assert set(held.facts["base_hashes"]) == {"bfloat16"}
    assert all(value.dtype == torch.float32 for value in tensors_of(held).values())


def test_demos_are_made_with_and_without_the_adapter(base_of: Any, dataset: Path, tmp_path: Path) -> None:
    base = base_of("tiny_diffusion_uncond")
    config = load(base.config)
    config["training"]["demo"]["demo_every"] = 1
    config["lora"] = {"lr": 0.1}
    save(config, tmp_path / "often.json")
    command = words(SmallModel(tmp_path / "often.json", base.weights), dataset, tmp_path / "runs", 2)
    assert train.train_lora(command) == 0
    files = {path.relative_to(path.parents[1]).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.wav")}
    first, second = "step_00000001/demo", "step_00000002/demo"
    assert files[f"{first}_without_adapter.wav"] == files[f"{second}_without_adapter.wav"]
    assert files[f"{second}.wav"] != files[f"{second}_without_adapter.wav"]


def tensors_of(lora: LoraFile) -> dict[str, torch.Tensor]:
    return {f"{path}.{name}": value for path, held in lora.layers.items() for name, value in held.items()}


def test_checkpoints_unwrap_to_adapters_and_to_merged_models(
    base_of: Any, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_of("tiny_diffusion_cond")
    assert train.train_lora(words(base, dataset, tmp_path / "runs", 2)) == 0
    run = next((tmp_path / "runs").glob("*/*"))
    assert unwrap(["--ckpt-path", str(run), "--name", str(tmp_path / "mine")]) == 0
    written = tmp_path / "mine.safetensors"
    ours, theirs = read_lora(written), read_lora(next(run.glob("adapters/*")))
    assert ours.facts == theirs.facts and ours.config == theirs.config
    assert all(torch.equal(value, tensors_of(theirs)[name]) for name, value in tensors_of(ours).items())

    merged = ["--ckpt-path", str(run), "--name", str(tmp_path / "merged"), "--merge-lora"]
    assert unwrap(merged) == 2
    assert "give the weights of its model with --base-ckpt-path" in capsys.readouterr().err
    assert unwrap([*merged, "--base-ckpt-path", str(base.weights)]) == 0
    assert unwrap(["--ckpt-path", str(base.weights), *merged[2:3], str(tmp_path / "same"), "--merge-lora"]) == 2
    again = ["--model-config", str(base.config), "--ckpt-path", str(base.weights), "--name", str(tmp_path / "same")]
    assert unwrap([*again, "--merge-lora", f"{written}:1"]) == 0

    live = load_model(base.config, base.weights)
    load_lora(live, written)
    merge_lora(live)
    for name in ("merged", "same"):
        stored = load_model(None, tmp_path / f"{name}.ckpt").state_dict()
        assert all(torch.equal(value, stored[key]) for key, value in live.state_dict().items())


def test_the_command_of_the_jamendo_guide(dataset: Path, tmp_path: Path) -> None:
    """Its config, narrowed and told names in place of a text, with every flag of the guide."""
    config = narrowed(load(next(CONFIGS.rglob("jamendo_lora.json"))))
    config["model"]["conditioning"]["configs"][0] = {"id": "prompt", "type": "list", "config": {"options": ["rain"]}}
    config["model"]["diffusion"]["config"]["project_cond_tokens"] = True  # 768 wide ones do not fit narrowed heads
    config["training"]["demo"] |= {"demo_every": 1000, "demo_steps": 1}
    save(config, tmp_path / "model_config_lora.json")
    model = create_model_from_config(config)
    save_weights(model, tmp_path / "model.ckpt")
    save_weights(model.pretransform.model, tmp_path / "vae_model.ckpt")
    save({**load(dataset), "drop_last": False}, tmp_path / "clips.json")  # there are ten
    command = f"""
      --model-config {tmp_path}/model_config_lora.json
      --dataset-config {tmp_path}/clips.json
      --pretrained-ckpt-path {tmp_path}/model.ckpt
      --pretransform-ckpt-path {tmp_path}/vae_model.ckpt
      --batch-size 32
      --num-workers 8
      --precision 16-mixed
      --name stable_audio_lora_jamendo
      --save-dir {tmp_path}/outputs
    """
    here = ["--max-steps", "1", "--accelerator", "cpu", "--logger", "none", "--num-workers", "0"]
    assert train.train_lora([*command.split(), *here]) == 0
    (written,) = tmp_path.glob("outputs/stable_audio_lora_jamendo/*/adapters/*.safetensors")
    lora = read_lora(written)
    assert (lora.config.adapter_type, lora.config.rank, lora.config.dropout) == ("dora-rows", 32, 0.1)
    assert all(".transformer." in path for path in lora.layers)
    told = load(next(written.parents[1].glob("model_config.json")))
    adam = told["training"]["optimizer_configs"]["diffusion"]["optimizer"]
    assert (adam["type"], adam["config"]["lr"]) == ("AdamW", 1e-4)
