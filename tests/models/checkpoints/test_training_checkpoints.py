"""Training checkpoints of every wrapper give the model's own weights, online or averaged."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints import export_weights, load_into, open_weights, read_weights

ONLINE, AVERAGED = 1.0, 2.0


class Backbone(nn.Module):
    """Stands for `diffusion.model`: a wrapper with the network one level below."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)


class Diffusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()
        self.conditioner = nn.Linear(1, 1)
        self.pretransform = nn.ModuleDict({"model": autoencoder()})


def autoencoder() -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})


def filled(module: nn.Module, value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in module.state_dict().items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def lightning(state: dict[str, Tensor], path: Path, **more: object) -> Path:
    content = {"pytorch-lightning_version": "2.1.0", "global_step": 7, "loops": {}, "state_dict": state, **more}
    torch.save(content, path)
    return path


def counters(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """ema-pytorch stores one element in a list up to 0.2, a scalar since."""
    return {"initted": torch.ones(shape), "step": torch.ones(shape, dtype=torch.int64)}


def language_model() -> nn.Module:
    return nn.ModuleDict({"lm": nn.Linear(2, 2), "pretransform": nn.Linear(1, 1)})


def diffusion_autoencoder() -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Linear(2, 2), "diffusion": nn.ModuleDict({"model": nn.Linear(2, 2)})})


WRAPPERS = {  # model, its prefix, the part that is averaged, extra tensors of training
    "autoencoder": (autoencoder, "autoencoder.", "", {"discriminator.w": torch.ones(3), "sdstft.fir": torch.ones(2)}),
    "diffusion": (Diffusion, "diffusion.", "model.", {"losses.losses.0.weight": torch.ones(())}),
    "arc": (Diffusion, "diffusion.", "model.", {"teacher_model.w": torch.ones(3), "model_last_layer": torch.ones(2)}),
    "diffae": (diffusion_autoencoder, "diffae.", "", {"losses.losses.0.weight": torch.ones(())}),
    "language model": (language_model, "model.", "", {}),
}


def checkpoint(kind: str, tmp_path: Path, ema: bool, shape: tuple[int, ...] = (1,)) -> tuple[nn.Module, Path]:
    make, prefix, part, extra = WRAPPERS[kind]
    model = make()
    state = {**under(prefix, filled(model, ONLINE)), **extra}
    if ema:
        copied = filled(model.get_submodule(part.rstrip(".")), AVERAGED)
        store = prefix[:-1] + "_ema."
        state |= under(store + "ema_model.", copied) | under(store, counters(shape))
        if not part:
            state |= under(store + "online_model.", filled(model, ONLINE))
    return model, lightning(state, tmp_path / "epoch=1.ckpt")


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("shape", [(1,), ()])
def test_online_and_averaged_weights(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    model, path = checkpoint(kind, tmp_path, ema=True, shape=shape)
    report = load_into(model, path)
    assert report.complete
    assert "at step 7; its online weights were taken, pass --ema (ema=True) to take the averaged" in report.recognised
    assert all((value == ONLINE).all() for value in model.state_dict().values())

    report = load_into(model, path, ema=True)
    assert report.complete and "its averaged weights were taken" in report.recognised
    part = WRAPPERS[kind][2]
    for name, value in model.state_dict().items():
        assert (value == (AVERAGED if name.startswith(part) else ONLINE)).all(), name


@pytest.mark.parametrize("kind", WRAPPERS)
def test_without_averaged_weights(kind: str, tmp_path: Path) -> None:
    model, path = checkpoint(kind, tmp_path, ema=False)
    assert "it holds no averaged ones" in load_into(model, path).recognised
    assert load_into(model, path, ema=None).complete
    with pytest.raises(CheckpointError, match="holds no averaged weights; leave out --ema"):
        load_into(model, path, ema=True)


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("ema", [False, True])
def test_unwrapping_needs_no_model(kind: str, ema: bool, tmp_path: Path) -> None:
    model, path = checkpoint(kind, tmp_path, ema=True)
    export_weights(path, tmp_path / "model.safetensors", ema=ema, model_config={"model_type": "x"})
    stored = open_weights(tmp_path / "model.safetensors")
    assert set(stored.tensors) == set(model.state_dict())
    assert stored.provenance["source"] == "epoch=1.ckpt" and stored.provenance["step"] == 7
    assert stored.model_config == {"model_type": "x"}
    load_into(model, path, ema=ema)
    assert all(torch.equal(value, stored.tensors[name]) for name, value in model.state_dict().items())


def test_an_unwrapped_diffusion_autoencoder_is_no_training_checkpoint(tmp_path: Path) -> None:
    """It has a part of its own called `diffusion`, the name under which training keeps another kind of model."""
    model = diffusion_autoencoder()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.ckpt")
    assert set(read_weights(tmp_path / "model.ckpt").tensors) == set(model.state_dict())
    assert load_into(diffusion_autoencoder(), tmp_path / "model.ckpt").complete


def test_a_whole_training_module_loads_its_own_checkpoint(tmp_path: Path) -> None:
    wrapper = nn.ModuleDict({"diffusion": Diffusion(), "discriminator": nn.Linear(1, 1)})
    lightning(filled(wrapper, 3.0), tmp_path / "last.ckpt")
    report = load_into(wrapper, tmp_path / "last.ckpt")
    assert report.complete and (wrapper["discriminator"].weight == 3).all()


@pytest.mark.parametrize("prefix", ["", "diffusion."])
def test_the_autoencoder_inside_a_diffusion_model_is_found(prefix: str, tmp_path: Path) -> None:
    state = filled(Diffusion(), 5.0)
    path = lightning(under(prefix, state), tmp_path / "c.ckpt") if prefix else tmp_path / "model.ckpt"
    if not prefix:
        torch.save({"state_dict": state}, path)
    model = autoencoder()
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_into(nn.ModuleDict({"encoder": nn.Linear(2, 2), "quantizer": nn.Linear(9, 9)}), path)
    report = load_into(model, path)
    assert report.complete and "the autoencoder inside the diffusion model was taken" in report.recognised
    assert (model["encoder"].weight == 5).all()


def test_an_autoencoder_file_fits_a_pretransform(tmp_path: Path) -> None:
    _, path = checkpoint("autoencoder", tmp_path, ema=True)
    pretransform = nn.ModuleDict({"model": autoencoder()})
    assert load_into(pretransform, path, ema=True).complete
    assert (pretransform["model"]["encoder"].weight == AVERAGED).all()


def test_a_wrong_kind_of_file_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": filled(autoencoder(), 1.0)}, tmp_path / "vae.ckpt")
    with pytest.raises(CheckpointError, match="the file holds an autoencoder, the model is a diffusion model"):
        load_into(Diffusion(), tmp_path / "vae.ckpt")


def test_classes_of_the_training_program_do_not_stop_a_load(tmp_path: Path) -> None:
    """Paths and argument records are common in checkpoints; they come back as placeholders."""
    import argparse
    import pathlib

    model, _ = checkpoint("autoencoder", tmp_path, ema=False)
    state = under("autoencoder.", filled(model, ONLINE))
    extra = {"hyper_parameters": argparse.Namespace(lr=1), "callbacks": {"dirpath": pathlib.PurePosixPath("/x")}}
    assert load_into(model, lightning(state, tmp_path / "c.ckpt", **extra)).complete
