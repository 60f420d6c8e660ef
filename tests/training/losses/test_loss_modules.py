"""Named losses: weights, decay, masks, argument order."""

import math

import pytest
import torch
from torch import nn

from stable_audio_tools.training.losses import (
    AuralossLoss,
    L1Loss,
    LossWithTarget,
    MSELoss,
    MultiLoss,
    StereoImageLoss,
    TargetValueLoss,
    TimeDomainMMDLoss,
    ValueLoss,
)


class Ratio(nn.Module):
    def forward(self, input, target):
        return input / target


def test_values_are_weighted():
    info = {"kl": torch.tensor(3.0)}
    assert ValueLoss("kl", "kl_loss", weight=0.5)(info) == 1.5
    assert TargetValueLoss("kl", target=5.0, name="rate", weight=2.0)(info) == 4.0


def test_spectral_losses_are_called_target_first():
    info = {"decoded": torch.tensor(4.0), "reals": torch.tensor(2.0)}
    assert LossWithTarget(Ratio(), "decoded", "reals", "plain")(info) == 2.0
    assert AuralossLoss(Ratio(), "decoded", "reals", "swapped", weight=3.0)(info) == 1.5


def test_weight_decays_in_training_only():
    loss = ValueLoss("x", "x", weight=1.0, decay=0.5)
    info = {"x": torch.tensor(1.0)}
    assert [float(loss(info)) for _ in range(3)] == [0.5, 0.25, 0.125]
    loss.eval()
    assert [float(loss(info)) for _ in range(2)] == [0.125, 0.125]


def test_checkpoints_carry_a_decaying_weight_and_no_other():
    saved = {"weight": torch.tensor(0.25)}
    decaying, constant = ValueLoss("x", "x", weight=1.0, decay=0.5), ValueLoss("x", "x", weight=1.0)
    decaying.load_state_dict(saved)
    constant.load_state_dict(saved)
    assert (float(decaying.weight), float(constant.weight)) == (0.25, 1.0)


@pytest.mark.parametrize("kind", [L1Loss, MSELoss])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(2, 5), (2, 1, 5), (2, 3, 5)])
def test_mask_selects_frames_whatever_its_type(kind, dtype, shape):
    a = torch.arange(30.0).view(2, 3, 5)
    keep = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    mask = (keep if len(shape) == 2 else keep[:, None].expand(shape)).to(dtype)
    loss = kind("a", "b", mask_key="mask")({"a": a, "b": torch.zeros_like(a), "mask": mask})
    chosen = a[keep.bool()[:, None].expand_as(a)]
    torch.testing.assert_close(loss, (chosen.square() if kind is MSELoss else chosen).mean())


def test_absent_or_empty_masks():
    info = {"a": torch.ones(1, 2, 4), "b": torch.zeros(1, 2, 4), "mask": None}
    assert MSELoss("a", "b", mask_key="mask")(info) == 1.0
    assert MSELoss("a", "b", mask_key="absent")(info) == 1.0
    assert MSELoss("a", "b", mask_key="mask")({**info, "mask": torch.zeros(1, 4)}) == 0.0


def test_mask_of_the_wrong_length_is_refused():
    info = {"a": torch.ones(1, 2, 4), "b": torch.zeros(1, 2, 4), "mask": torch.ones(1, 5)}
    with pytest.raises(ValueError, match=r"mask of shape \(1, 1, 5\) for values of shape \(1, 2, 4\)"):
        MSELoss("a", "b", mask_key="mask")(info)


def test_stereo_image_is_zero_in_place_and_one_opposite():
    left = torch.tensor([[[1.0], [0.5]]]).expand(1, 2, 8)
    loss = StereoImageLoss("a", "b")
    torch.testing.assert_close(loss({"a": left, "b": 3 * left}), torch.tensor(0.0))
    torch.testing.assert_close(loss({"a": left, "b": -left}), torch.tensor(1.0))


def test_discrepancy_is_zero_for_one_set_and_grows_apart():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 1, 16, generator=generator)
    loss = TimeDomainMMDLoss("a", "b")
    assert abs(float(loss({"a": a, "b": a}))) < 1e-5
    assert loss({"a": a, "b": a + 3}) > loss({"a": a, "b": a + 0.5}) > 1e-3


def test_sum_keeps_each_name():
    losses = MultiLoss([ValueLoss("x", "one", 2.0), ValueLoss("y", "two")])
    total, by_name = losses({"x": torch.tensor(1.0), "y": torch.tensor(5.0)})
    assert total == 7.0 and {name: float(value) for name, value in by_name.items()} == {"one": 2.0, "two": 5.0}
    assert list(losses.state_dict()) == ["losses.0.weight", "losses.1.weight"]
    with pytest.raises(ValueError, match="no loss to sum"):
        MultiLoss([])({})


def test_a_learnt_weight_settles_at_the_logarithm_of_the_loss() -> None:
    from stable_audio_tools.training.losses import DynamicLossWeighting

    weighting = DynamicLossWeighting()
    assert list(weighting.state_dict()) == ["loss_weight"] and weighting.loss_weight == 1.0
    loss = torch.tensor(3.0)
    assert weighting(loss).item() == pytest.approx(3.0 / math.e + 1.0)
    optimizer = torch.optim.Adam(weighting.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        weighting(loss).backward()
        optimizer.step()
    assert weighting.loss_weight.item() == pytest.approx(math.log(3.0), abs=1e-3)
