"""Seeds fit every platform; device and precision are chosen in one place."""

import pytest
import torch

from stable_audio_tools.core.devices import parse_dtype, pick_device, pick_dtype
from stable_audio_tools.core.seeds import MAX_SEED, draw_seed, resolve_seed


def test_drawn_seeds_are_in_range_and_leave_the_state_alone() -> None:
    before = torch.random.get_rng_state()
    assert all(0 <= draw_seed() < MAX_SEED for _ in range(100))
    assert torch.equal(before, torch.random.get_rng_state())


def test_seeds() -> None:
    assert resolve_seed(7) == 7
    assert 0 <= resolve_seed(-1) < MAX_SEED
    with pytest.raises(ValueError, match="between 0 and 2147483647, got 4294967296"):
        resolve_seed(2**32)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        pick_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu_is_named() -> None:
    with pytest.raises(ValueError, match="torch finds no CUDA GPU"):
        pick_device("cuda:0")


def test_precisions() -> None:
    assert parse_dtype("bf16") is torch.bfloat16
    assert pick_dtype(torch.device("cpu")) is torch.float32
    assert pick_dtype(torch.device("cuda")) is torch.float16
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        parse_dtype("fp8")
