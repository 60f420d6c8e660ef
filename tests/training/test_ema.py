"""The average follows its closed form, is swapped in without a copy, and reads files of every age."""

import copy

import pytest
import torch
from torch import nn

from stable_audio_tools.training.ema import WeightAverage


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made[2].requires_grad_(False)
    return made


def nudge(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def test_follows_the_published_recurrence() -> None:
    online = model()
    average = WeightAverage(online, beta=0.9, power=0.75)
    expected = online[0].weight.detach().double().clone()
    for step in range(40):
        nudge(online)
        average.update()
        epoch = max(step + 1 - 1 - 1, 0)
        decay = min(1 - (1 + epoch) ** -0.75, 0.9) if epoch and step > 1 else 0.0
        expected = expected * decay + online[0].weight.detach().double() * (1 - decay)
    # float32 sums of 40 terms
    torch.testing.assert_close(average.averaged_state_dict()["0.weight"].double(), expected, atol=1e-5, rtol=1e-5)


def test_agrees_with_ema_pytorch() -> None:
    ema_pytorch = pytest.importorskip("ema_pytorch")
    ours_online = model().requires_grad_(True)
    theirs_online = copy.deepcopy(ours_online)
    options = {"beta": 0.9999, "power": 0.75, "update_every": 2, "update_after_step": 3}
    ours = WeightAverage(ours_online, **options)
    theirs = ema_pytorch.EMA(theirs_online, include_online_model=False, **options)
    for step in range(25):
        for online in (ours_online, theirs_online):
            torch.manual_seed(step)
            nudge(online)
        ours.update()
        theirs.update()
        for name, tensor in theirs.ema_model.named_parameters():
            torch.testing.assert_close(ours.averaged_state_dict()[name], tensor.data, atol=1e-6, rtol=1e-6)


def test_frozen_weights_are_not_kept() -> None:
    names = WeightAverage(model()).averaged_state_dict()
    assert "0.weight" in names
    assert "1.running_mean" in names
    assert "2.weight" not in names


def test_swapping_gives_the_averages_and_takes_them_back() -> None:
    online = model()
    average = WeightAverage(online)
    nudge(online)
    own, kept = online[0].weight.detach().clone(), average.averaged_state_dict()["0.weight"].clone()
    with pytest.raises(RuntimeError, match="demo failed"), average.swapped_in():
        assert torch.equal(online[0].weight, kept)
        raise RuntimeError("demo failed")
    assert torch.equal(online[0].weight, own)
    assert torch.equal(average.averaged_state_dict()["0.weight"], kept)


def test_state_round_trip() -> None:
    online = model()
    average = WeightAverage(online)
    for _ in range(5):
        nudge(online)
        average.update()
    other = WeightAverage(model())
    other.load_state_dict(average.state_dict())
    assert other.step == 5
    assert other.started
    for name, tensor in average.averaged_state_dict().items():
        assert torch.equal(tensor, other.averaged_state_dict()[name])


@pytest.mark.parametrize("scalar", [True, False])
def test_reads_files_of_every_age(scalar: bool) -> None:
    """Scalars or one-element tensors, a second copy of the online weights, frozen weights stored along."""
    source = model()
    state = {f"ema_model.{name}": tensor + 1 for name, tensor in source.state_dict().items()}
    state |= {f"online_model.{name}": tensor for name, tensor in source.state_dict().items()}
    state["step"] = torch.tensor(7) if scalar else torch.tensor([7])
    state["initted"] = torch.tensor(True) if scalar else torch.tensor([1.0])
    average = WeightAverage(model())
    average.load_state_dict(state)
    assert average.step == 7
    assert torch.equal(average.averaged_state_dict()["0.weight"], source[0].weight + 1)


def test_a_foreign_file_is_refused() -> None:
    average = WeightAverage(model())
    state = average.state_dict() | {"ema_model.other": torch.zeros(1)}
    state.pop("ema_model.0.weight")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*0\.weight.*Unexpected.*other"):
        average.load_state_dict(state)


def test_averages_of_low_precision_stay_float32_and_move() -> None:
    """A step of 1e-4 of the way is less than bfloat16 resolves."""
    online = nn.Linear(8, 8)
    average = WeightAverage(online, beta=0.9999, update_after_step=0)
    nn.ModuleList([online, average]).to(torch.bfloat16)
    assert online.weight.dtype == torch.bfloat16
    average.update()
    before = average.averaged_state_dict()["weight"].clone()
    assert before.dtype == torch.float32
    average.step = 10**8  # the decay is beta from here on
    with torch.no_grad():
        online.weight.add_(1.0)
    average.update()
    moved = average.averaged_state_dict()["weight"] - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-4), rtol=0.05, atol=1e-6)
    own = online.weight.detach().clone()
    with average.swapped_in():
        assert online.weight.dtype == torch.bfloat16 and not torch.equal(online.weight, own)
    assert torch.equal(online.weight, own)
    assert torch.equal(average.averaged_state_dict()["weight"], before + moved)


def test_buffers_are_followed_after_a_move() -> None:
    """Moving a module replaces its buffers by new tensors."""
    online = nn.BatchNorm1d(4)
    average = WeightAverage(online, update_after_step=0)
    nn.ModuleList([online, average]).to(torch.float64)
    online.running_mean.fill_(3.0)
    average.update()
    assert average.averaged_state_dict()["running_mean"].tolist() == [3.0] * 4
