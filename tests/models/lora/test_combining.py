"""Adapters combined into one: sums, TIES and DARE against their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.layered import layered, trained
from torch import Tensor

from stable_audio_tools.core.errors import CheckpointError, UserError
from stable_audio_tools.models.lora import CombineMethod, LoraFile, combine_loras, load_lora, read_lora, save_lora
from stable_audio_tools.models.lora.config import LoraConfig

SHAPE = (6, 5)


def single(change: Tensor, name: str) -> LoraFile:
    """An adapter of one layer with a given change of full rank."""
    held = {"lora_A": torch.eye(change.shape[1]), "lora_B": change}
    return LoraFile(name, "native", {"layer": held}, LoraConfig(rank=change.shape[1]))


def combined_change(changes: list[Tensor], strengths: list[float], method: CombineMethod, **options: object) -> Tensor:
    files = [single(change, f"{index}.safetensors") for index, change in enumerate(changes)]
    held = combine_loras(list(zip(files, strengths)), method, **options).lora.layers["layer"]  # type: ignore[arg-type]
    return held["lora_B"] @ held["lora_A"]


def two_changes() -> list[Tensor]:
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


def saved(kind: str, path: Path, seed: int) -> Path:
    model, _ = layered(torch.float32)
    adapter = trained(model, kind)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return save_lora(adapter, path, model=model)


@pytest.mark.parametrize("kinds", [("lora", "lora"), ("loha", "lokr"), ("dora-rows", "bora"), ("lora-xs", "dora-cols")])
def test_a_sum_acts_as_both_adapters_stacked(kinds: tuple[str, str], tmp_path: Path) -> None:
    paths = [saved(kind, tmp_path / f"{index}.safetensors", index) for index, kind in enumerate(kinds)]
    model, x = layered(torch.float32)
    for path, strength in zip(paths, (0.7, -0.4)):
        load_lora(model, path, strength)
    expected = model(x)
    base, _ = layered(torch.float32)
    chosen = [(read_lora(path), strength) for path, strength in zip(paths, (0.7, -0.4))]
    combined = combine_loras(chosen, rank=12, base=base)
    assert combined.kept == pytest.approx(1.0, abs=1e-5)
    save, _ = layered(torch.float32)
    load_lora(save, combined.lora)
    torch.testing.assert_close(save(x), expected, rtol=1e-3, atol=1e-4)


def test_ties_keeps_large_entries_and_averages_those_of_the_winning_sign() -> None:
    changes, strengths, density = two_changes(), [1.0, 0.5], 0.4
    expected = np.zeros(SHAPE)
    kept = []
    for change, strength in zip(changes, strengths):
        values = (strength * change).numpy()
        smallest = np.sort(np.abs(values).ravel())[-round(density * values.size)]
        kept.append(np.where(np.abs(values) >= smallest, values, 0.0))
    for place in np.ndindex(SHAPE):
        entries = [values[place] for values in kept]
        winning = np.sign(sum(entries))
        agreeing = [entry for entry in entries if entry != 0 and np.sign(entry) == winning]
        expected[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    found = combined_change(changes, strengths, "ties", density=density)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert (np.abs(expected) > 0).sum() < expected.size


def test_dare_drops_at_random_and_is_unbiased() -> None:
    changes = two_changes()
    first = combined_change(changes, [1.0, 0.0], "dare", density=0.5, seed=3)
    dropped = first.abs() < 1e-5
    assert 5 < dropped.sum() < 25
    torch.testing.assert_close(first[~dropped], 2 * changes[0][~dropped], rtol=1e-4, atol=1e-5)
    assert torch.equal(first, combined_change(changes, [1.0, 0.0], "dare", density=0.5, seed=3))
    many = [combined_change(changes, [1.0, 0.6], "dare", density=0.5, seed=seed) for seed in range(300)]
    target = changes[0] + 0.6 * changes[1]
    # A mean of 300 draws, each with a deviation of at most |change|.
    assert (torch.stack(many).mean(0) - target).abs().max() < 5 * 3 / 300**0.5


def test_dare_ties_takes_the_signs_of_what_is_left() -> None:
    changes = [torch.ones(SHAPE), -2 * torch.ones(SHAPE)]
    found = combined_change(changes, [1.0, 1.0], "dare-ties", density=0.5)
    assert {round(value, 3) for value in found.flatten().tolist()} == {-4.0, 0.0, 2.0}


def test_a_rank_limits_the_result_to_the_closest_matrix() -> None:
    changes = two_changes()
    combined = combine_loras([(single(changes[0], "a"), 1.0), (single(changes[1], "b"), 1.0)], rank=2)
    held = combined.lora.layers["layer"]
    left, values, right = torch.linalg.svd(sum(changes, torch.zeros(SHAPE)))
    torch.testing.assert_close(
        held["lora_B"] @ held["lora_A"], left[:, :2] * values[:2] @ right[:2], rtol=1e-4, atol=1e-5
    )
    assert combined.kept == pytest.approx(float(values[:2].square().sum() / values.square().sum()), abs=1e-5)


def test_the_file_names_its_sources_and_keeps_a_common_base(tmp_path: Path) -> None:
    model, _ = layered(torch.float32)
    adapter = trained(model, "lora")
    for name, trigger in (("a", "bells"), ("b", "glass")):
        save_lora(adapter, tmp_path / f"{name}.safetensors", model=model, metadata={"trigger": trigger})
    files = [(read_lora(tmp_path / f"{name}.safetensors"), 0.5) for name in "ab"]
    facts = combine_loras(files, "ties").lora.facts
    assert facts["combined_from"] == "a.safetensors:0.5, b.safetensors:0.5 (ties, density 0.2)"
    assert facts["trigger"] == "bells, glass" and facts["base_hashes"] == files[0][0].facts["base_hashes"]


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    first, other = single(torch.ones(SHAPE), "a"), single(torch.ones(4, 4), "b")
    with pytest.raises(UserError, match="combining needs at least two adapters, got 1"):
        combine_loras([(first, 1.0)])
    with pytest.raises(UserError, match="density has no meaning for the method sum"):
        combine_loras([(first, 1.0), (first, 1.0)], density=0.5)
    with pytest.raises(UserError, match="density: expected above 0 and at most 1, got 2"):
        combine_loras([(first, 1.0), (first, 1.0)], "ties", density=2.0)
    with pytest.raises(
        CheckpointError, match=r"layer: the adapters are of different models \(a \(6, 5\), b \(4, 4\)\)"
    ):
        combine_loras([(first, 1.0), (other, 1.0)])
    dora = read_lora(saved("dora-rows", tmp_path / "dora.safetensors", 0))
    with pytest.raises(CheckpointError, match="of type dora-rows depends on the base weights; give the base model"):
        combine_loras([(dora, 1.0), (dora, 1.0)])
