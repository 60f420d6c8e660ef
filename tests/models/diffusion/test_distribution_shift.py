"""Distribution shifts: ends, order, one length against lengths per item, refusals."""

import pytest
import torch
from support.small_diffusion import model_config

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.diffusion.distribution_shift import SHIFTS, LogSNRShift, create_shift


@pytest.mark.parametrize("kind", SHIFTS)
def test_times_keep_their_ends_and_their_order(kind: str) -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    moved = create_shift({"type": kind}).shift(t, 1000)
    assert moved[0] == 0
    assert moved[-1] == 1
    assert (moved.diff() > 0).all()


@pytest.mark.parametrize("kind", SHIFTS)
def test_a_length_per_item_is_that_length_for_each(kind: str) -> None:
    shift, t = create_shift({"type": kind}), torch.linspace(0, 1, 5, dtype=torch.float64)
    rows = shift.shift(t, torch.tensor([300.0, 2000.0])).expand(2, -1)
    for row, length in zip(rows, (300, 2000)):
        torch.testing.assert_close(row, shift.shift(t, length), rtol=0, atol=1e-6)
    paired = shift.shift(t[1:3], torch.tensor([300.0, 2000.0]))
    torch.testing.assert_close(paired, torch.stack([rows[0, 1], rows[1, 2]]), rtol=0, atol=1e-12)


def test_log_snr_falls_by_one_rate_per_doubling() -> None:
    shift, middle = LogSNRShift(anchor_length=100, rate=0.5), torch.tensor(0.999999, dtype=torch.float64)
    found = [-torch.logit(shift.shift(middle, length)) for length in (100, 200)]
    assert float(found[0] - found[1]) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "fluxx"}, "no distribution shift named 'fluxx'; did you mean 'flux'"),
        ({"type": "logsnr", "anchor_lenght": 3}, "did you mean 'anchor_length'"),
        ({"type": "none", "rate": 1.0}, "the type 'none' has no options"),
    ],
)
def test_mistakes_in_a_config_are_named(options: dict[str, object], message: str) -> None:
    config = model_config(sampling_distribution_shift_options=options)
    with pytest.raises(ConfigError, match=message):
        create_model_from_config(config)
