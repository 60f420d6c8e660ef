"""Named upgrades: what older and related programs write differently loads, equal in value."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d, remove_weight_norm_from_model
from stable_audio_tools.models.checkpoints import load_into, save_weights
from stable_audio_tools.models.checkpoints.upgrades import UPGRADES, Target, apply_upgrades


class Convolution(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(WNConv1d(2, 3, 3))


class TorchConvolution(nn.Module):
    """With torch's own, newer weight norm."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3)))


AUDIO = torch.linspace(-1, 1, 20).reshape(1, 2, 10)


def folded(model: nn.Module) -> nn.Module:
    return remove_weight_norm_from_model(model)


@pytest.mark.parametrize(
    ("file", "model", "upgrade"),
    [
        (TorchConvolution(0), Convolution(1), "weight_norm_names"),
        (Convolution(0), TorchConvolution(1), "weight_norm_names"),
        (folded(Convolution(0)), Convolution(1), "weight_norm_removed_from_file"),
        (Convolution(0), folded(Convolution(1)), "weight_norm_removed_from_model"),
    ],
)
def test_every_spelling_of_weight_norm(file: nn.Module, model: nn.Module, upgrade: str) -> None:
    report = load_into(model, file.state_dict())
    assert report.complete and list(report.upgrades) == [upgrade]
    # The norm is computed and divided out again: float32 rounding.
    torch.testing.assert_close(model.layers(AUDIO), file.layers(AUDIO), rtol=1e-6, atol=1e-6)


class Codebook(nn.Module):
    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self._codebook = nn.Module()
        self._codebook.register_buffer("initted", torch.zeros(shape, dtype=dtype))
        self._codebook.register_buffer("embed", torch.zeros(1, 4, 2))


@pytest.mark.parametrize("in_file", [(), (1,)])
@pytest.mark.parametrize("in_model", [(), (1,)])
def test_codebook_flags_of_either_shape(in_file: tuple[int, ...], in_model: tuple[int, ...], tmp_path: Path) -> None:
    state = {"_codebook.initted": torch.ones(in_file), "_codebook.embed": torch.ones(1, 4, 2)}
    model = Codebook(in_model, torch.float32)
    assert load_into(model, state).complete
    assert model._codebook.initted.item() == 1 and model._codebook.initted.shape == in_model
    save_weights(model, tmp_path / "model.ckpt")
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert stored["_codebook.initted"].shape == (1,)


def test_counters_of_both_generations_of_weight_averaging() -> None:
    class Averaging(nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.diffusion_ema = nn.Module()
            self.diffusion_ema.register_buffer("initted", torch.zeros(shape, dtype=torch.bool))
            self.diffusion_ema.register_buffer("step", torch.zeros(shape, dtype=torch.int64))

    old = {"diffusion_ema.initted": torch.ones(1), "diffusion_ema.step": torch.tensor([12])}
    for shape in ((), (1,)):
        model = Averaging(shape)
        assert load_into(model, old).complete
        assert model.diffusion_ema.initted.all() and model.diffusion_ema.step.item() == 12


class Tables(nn.Module):
    """Buffers that no training changes, beside one that training does."""

    def __init__(self, keeps: bool = True) -> None:
        super().__init__()
        self.norm = nn.Module()
        self.norm.gamma = nn.Parameter(torch.zeros(3))
        self.norm.register_buffer("beta", torch.zeros(3))
        self.rotary = nn.Module()
        self.rotary.register_buffer("inv_freq", torch.arange(4.0), persistent=keeps)
        self.register_buffer("running_mean", torch.zeros(3))


def test_constants_missing_from_the_file_are_the_models_own() -> None:
    model = Tables()
    report = load_into(model, {"norm.gamma": torch.ones(3), "running_mean": torch.ones(3)})
    assert report.complete and report.upgrades == {"constants_not_in_file": 2}
    assert torch.equal(model.rotary.inv_freq, torch.arange(4.0))


def test_constants_that_the_model_computes_are_left_out() -> None:
    state = {"norm.gamma": torch.ones(3), "norm.beta": torch.zeros(3), "running_mean": torch.ones(3)}
    state |= {"rotary.inv_freq": torch.zeros(4), "text.position_ids": torch.arange(5)}
    model = Tables(keeps=False)
    report = load_into(model, state)
    assert report.complete and report.upgrades == {"constants_not_in_model": 2}
    assert torch.equal(model.rotary.inv_freq, torch.arange(4.0))


@pytest.mark.parametrize("absent", ["running_mean", "norm.gamma"])
def test_nothing_that_is_learnt_may_be_absent(absent: str) -> None:
    state = {name: value for name, value in Tables().state_dict().items() if name != absent}
    with pytest.raises(CheckpointError, match=f"missing from the file: {absent}"):
        load_into(Tables(), state)


def test_a_learnt_offset_of_a_norm_may_not_be_absent() -> None:
    model = nn.Module()
    model.beta, model.gamma = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    wrapped = nn.ModuleDict({"norm": model})
    with pytest.raises(CheckpointError, match=r"missing from the file: norm\.beta"):
        load_into(wrapped, {"norm.gamma": torch.ones(2)})


def test_losses_of_the_friendly_fork() -> None:
    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            loss = nn.ModuleDict({"loss_module": nn.Linear(1, 1, bias=False)})
            loss.register_buffer("weight", torch.tensor(0.5))
            self.losses_gen = nn.ModuleDict({"losses": nn.ModuleList([loss])})

    model = Losses()
    report = load_into(model, {"losses_gen.losses.0.auraloss_module.weight": torch.full((1, 1), 9.0)})
    assert report.complete
    assert report.upgrades == {"loss_module_names": 1, "loss_weights_not_in_file": 1}
    assert model.losses_gen["losses"][0]["loss_module"].weight.item() == 9
    assert model.losses_gen["losses"][0].weight.item() == 0.5


def test_the_second_online_copy_is_left_out() -> None:
    state: dict[str, Tensor] = {"weight": torch.ones(1, 1), "a_ema.online_model.weight": torch.ones(1, 1)}
    assert load_into(nn.Linear(1, 1, bias=False), state).upgrades == {"online_copy_in_averaging": 1}


def test_per_layer_adaln_is_explained() -> None:
    state = {"layers.0.to_scale_shift_gate.1.weight": torch.ones(6, 2)}
    model = nn.ParameterDict({"layers": nn.Parameter(torch.ones(6))})
    with pytest.raises(CheckpointError, match="one adaLN projection per layer"):
        load_into(model, state, partial=True)


def test_upgrades_leave_a_current_file_alone() -> None:
    model = Tables()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = dict(state)
    assert apply_upgrades(state, Target.of(model)) == {}
    assert state == before
    assert len({upgrade.__name__ for upgrade in UPGRADES}) == len(UPGRADES)
    assert all(upgrade.__doc__ for upgrade in UPGRADES)
