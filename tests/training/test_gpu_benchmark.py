"""The benchmark of training on a GPU runs without one: on a narrow model, and on tensors without contents."""

import json
from pathlib import Path

import gpu_training
import pytest

NARROW = gpu_training.Shape(dim=64, depth=1, heads=1, cond=64, frames=8, batch=1)


def test_on_a_cpu_it_measures_a_narrow_model_and_names_what_it_could_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["gpu_training.py", "--json", str(figures)])
    gpu_training.main()
    written = json.loads(figures.read_text())
    assert set(written["rows"]) == {f"narrow {kind.name}" for kind in gpu_training.KINDS if not kind.compiles}
    assert all(row["step s"] > 0 and row["gigaflops"] > 0 for row in written["rows"].values())
    assert list(written["not measured"].values()) == ["needs an NVIDIA GPU"]


def test_a_step_of_the_transformer_waits_for_nothing() -> None:
    row = gpu_training.on_fake_tensors(NARROW)
    assert row["waits"] == 0 and row["kernels"] > 100 and row["peak GiB"] > 0


def test_operations_are_those_of_the_matrices() -> None:
    """Twice the items are twice the operations, and a backward pass costs about twice its forward pass."""
    one, two = (gpu_training.operations(NARROW._replace(batch=items)) for items in (1, 2))
    assert two == 2 * one
    weights = sum(parameter.numel() for parameter in gpu_training.build(NARROW).parameters() if parameter.ndim == 2)
    assert one > 4 * weights
