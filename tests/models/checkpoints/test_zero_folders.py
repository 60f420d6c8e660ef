"""DeepSpeed ZeRO folders give back the float32 weights they were split from, for every stage and number of ranks.

The writer below splits as DeepSpeed does; DeepSpeed's own `zero_to_fp32.py` reads the same folders to the same values.
"""

import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models.checkpoints import load_into, open_weights

GROUPS = (("diffusion.model.weight", "diffusion.model.bias"), ("diffusion.head.weight",))
SHAPES = {"diffusion.model.weight": (5, 3), "diffusion.model.bias": (5,), "diffusion.head.weight": (2, 7)}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.head, self.tied = nn.Linear(3, 5), nn.Linear(7, 2, bias=False), nn.Linear(7, 2, bias=False)
        self.frozen = nn.Linear(3, 3, bias=False).requires_grad_(False)
        self.register_buffer("window", torch.zeros(4))


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    trained = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    frozen = {"diffusion.frozen.weight": torch.randn(3, 3), "diffusion.window": torch.rand(4)}
    return {**trained, **frozen, "diffusion.tied.weight": trained["diffusion.head.weight"]}


def padded(flat: Tensor, multiple: int) -> Tensor:
    return nn.functional.pad(flat, (0, -flat.numel() % multiple))


def split_groups(state: dict[str, Tensor], ranks: int) -> list[list[Tensor]]:
    """Stages 1 and 2."""
    flats = [padded(torch.cat([state[name].reshape(-1) for name in names]), 2 * ranks) for names in GROUPS]
    return [[flat.chunk(ranks)[rank].clone() for flat in flats] for rank in range(ranks)]


def split_parameters(state: dict[str, Tensor], ranks: int) -> list[list[Tensor]]:
    """Stage 3."""
    pieces = [[padded(state[n].reshape(-1), ranks).chunk(ranks) for n in names] for names in GROUPS]
    return [[torch.cat([piece[rank] for piece in group]) for group in pieces] for rank in range(ranks)]


def write_zero(folder: Path, stage: int, ranks: int, prefix: str = "") -> Path:
    parts = folder / "checkpoint"
    parts.mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    state = weights()
    frozen = state["diffusion.frozen.weight"]
    for rank in range(ranks):
        share = math.ceil(frozen.numel() / ranks)
        fragment = padded(frozen.reshape(-1), ranks)[rank * share : (rank + 1) * share].clone()
        states = {
            "module": {f"{prefix}{name}": value.half() for name, value in state.items()},
            "buffer_names": [f"{prefix}diffusion.window"],
            "param_shapes": [OrderedDict((prefix + n, torch.Size(SHAPES[n])) for n in names) for names in GROUPS],
            "frozen_param_shapes": OrderedDict({f"{prefix}diffusion.frozen.weight": frozen.shape}),
            "frozen_param_fragments": OrderedDict(
                {f"{prefix}diffusion.frozen.weight": fragment if stage == 3 else frozen}
            ),
            "shared_params": {f"{prefix}diffusion.tied.weight": f"{prefix}diffusion.head.weight"},
            "ds_version": "0.16.0",
            "global_step": 40,
            "pytorch-lightning_version": "2.1.0",
        }
        if stage == 3:
            torch.save(states, parts / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        elif rank == 0:
            torch.save(states, parts / "mp_rank_00_model_states.pt")
        optimizer = {"zero_stage": stage, "partition_count": ranks if stage == 3 else [ranks, ranks], "ds_version": "x"}
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        optimizer[key] = (split_parameters if stage == 3 else split_groups)(state, ranks)[rank]
        half = "bf16_" if stage == 1 else ""
        torch.save({"optimizer_state_dict": optimizer}, parts / f"{half}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 11])
@pytest.mark.parametrize("prefix", ["", "_forward_module."])
def test_weights_are_put_together_exactly(stage: int, ranks: int, prefix: str, tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "last.ckpt", stage, ranks, prefix)
    stored = open_weights(folder)
    assert set(stored.tensors) == set(weights())
    for name, value in weights().items():
        kept = value.half().float() if name.endswith("window") else value  # buffers are stored in half precision
        assert torch.equal(stored.tensors[name], kept), name
        assert stored.tensors[name].dtype == torch.float32
    model = Model()
    report = load_into(model, folder)
    assert report.complete
    assert f"a DeepSpeed ZeRO checkpoint (stage {stage}, {ranks} ranks) of a diffusion model at" in report.recognised
    assert torch.equal(model.tied.weight, weights()["diffusion.head.weight"])


def test_the_inner_folder_is_enough(tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "last.ckpt", 2, 2)
    (folder / "latest").unlink()
    assert load_into(Model(), folder).complete
    assert load_into(Model(), folder / "checkpoint").complete


def test_without_optimizer_files_half_precision_is_taken(tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "last.ckpt", 2, 2)
    for file in folder.glob("*/*_optim_states.pt"):
        file.unlink()
    model = Model()
    assert "half-precision weights" in load_into(model, folder).recognised
    assert torch.equal(model.head.weight, weights()["diffusion.head.weight"].half().float())
    folder = write_zero(tmp_path / "three.ckpt", 3, 2)
    for file in folder.glob("*/*_optim_states.pt"):
        file.unlink()
    with pytest.raises(CheckpointError, match="which hold the weights, are not in it"):
        open_weights(folder)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_missing_rank_is_noticed(stage: int, tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "last.ckpt", stage, 3)
    next(folder.glob("*/*rank_1_mp_rank_00_optim_states.pt")).unlink()
    with pytest.raises(CheckpointError, match="written by 3 ranks, but the files of 2 are here"):
        open_weights(folder)


@pytest.mark.parametrize("stage", [1, 3])
def test_values_of_another_model_are_noticed(stage: int, tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "last.ckpt", stage, 2)
    for file in folder.glob("*/*optim_states.pt"):
        states = torch.load(file, weights_only=True)
        for key in ("fp32_flat_groups", "single_partition_of_fp32_groups"):
            groups = states["optimizer_state_dict"].get(key, [])
            groups[:] = [nn.functional.pad(group, (0, 64)) for group in groups]
        torch.save(states, file)
    with pytest.raises(CheckpointError, match=r"are stored|names .* values and stores"):
        open_weights(folder)


def test_what_cannot_be_read_names_the_other_way(tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "last.ckpt", 2, 1)
    (folder / "checkpoint" / "mp_rank_01_model_states.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"tensor or expert parallelism; run the zero_to_fp32\.py"):
        open_weights(folder)


def test_damaged_parts_are_explained(tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "last.ckpt", 2, 1)
    file = folder / "checkpoint" / "mp_rank_00_model_states.pt"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        open_weights(folder)
    torch.save({"module": {}}, file)
    with pytest.raises(CheckpointError, match="not a DeepSpeed model file, it has no 'buffer_names'"):
        open_weights(folder)
