"""Seeds fit every platform; device and precision are chosen in one place."""

import pytest
import torch

from stable_audio_tools.core.devices import parse_dtype, pick_device, pick_dtype
from stable_audio_tools.core.ranks import is_rank_zero, rank, world_size
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
    with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
        pick_device("cuda:0")


def test_precisions() -> None:
    assert parse_dtype("bf16") is torch.bfloat16
    assert pick_dtype(torch.device("cpu")) is torch.float32
    assert pick_dtype(torch.device("cuda")) is torch.float16
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        parse_dtype("fp8")


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [({}, (0, 1)), ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)), ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (2, 4))],
)
def test_ranks_come_from_the_launcher(
    variables: dict[str, str], wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (rank(), world_size()) == wanted
    assert is_rank_zero() is (wanted[0] == 0)
