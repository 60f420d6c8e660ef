"""Projections keep inner products, at every size of block, and the same on every device."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stable_audio_tools.attribution import keyed_random
from stable_audio_tools.attribution import projection as module
from stable_audio_tools.attribution.projection import FastJLProjection, make_projection
from stable_audio_tools.core.errors import ConfigError, MissingPackage

CPU = torch.device("cpu")


def test_the_hash_is_splitmix64() -> None:
    """The first words that the published generator makes from seed 0, which it adds its constant to before each."""
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    made = keyed_random.bits(0, 1, 3, CPU).tolist()
    assert [word % 2**64 for word in made] == wanted


def test_a_block_is_the_same_wherever_it_begins() -> None:
    for make in (keyed_random.bits, keyed_random.signs, keyed_random.many_signs, keyed_random.normals):
        whole = make(7, 0, 512, CPU)
        assert torch.equal(make(7, 128, 192, CPU), whole[128:320])
        assert not torch.equal(make(8, 0, 512, CPU), whole)


def test_numbers_have_their_distribution() -> None:
    """Bounds of five standard errors."""
    count = 1 << 16
    drawn = keyed_random.normals(3, 0, count, CPU).double()
    assert abs(drawn.mean()) < 5 / count**0.5
    assert abs(drawn.square().mean() - 1) < 5 * (2 / count) ** 0.5
    assert abs(drawn.pow(4).mean() - 3) < 5 * (96 / count) ** 0.5
    for signs in (keyed_random.signs(3, 0, count, CPU), keyed_random.many_signs(3, 0, count, CPU)):
        assert set(signs.unique().tolist()) == {-1.0, 1.0} and abs(signs.mean()) < 5 / count**0.5
    counts = torch.bincount(keyed_random.buckets(3, count, 16, CPU), minlength=16).double()
    assert ((counts - count / 16).abs() < 5 * (count / 16) ** 0.5).all()


@pytest.mark.parametrize("kind", ["sketch", "rademacher", "normal"])
@pytest.mark.parametrize("shape", [(40, 30), (8, 10, 5), (700,)], ids=["matrix", "kernel", "vector"])
def test_inner_products_are_kept(kind: str, shape: tuple[int, ...]) -> None:
    """Without bias, with an error that falls as one over the root of the dimension; means over sixty projections."""
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(shape, generator=rng, dtype=torch.float64)
    other = 0.6 * one + 0.8 * torch.randn(shape, generator=rng, dtype=torch.float64)
    pair = torch.stack([one, other])
    scale = one.norm() * other.norm()
    errors = {}
    for dim in (64, 256):
        found = []
        for model_id in range(60):
            p, q = make_projection(kind, dim, 1, model_id).project("weight", pair)
            found.append((p @ q - (one * other).sum()) / scale)
        errors[dim] = torch.stack(found)
        assert abs(errors[dim].mean()) < 5 * errors[dim].std() / 60**0.5
        assert errors[dim].square().mean().sqrt() < 1.6 / dim**0.5
    assert 1.4 < errors[64].square().mean().sqrt() / errors[256].square().mean().sqrt() < 2.9


def test_a_sketch_of_factors_is_that_of_their_product() -> None:
    rng = torch.Generator().manual_seed(0)
    delta, activation = (torch.randn(300, width, generator=rng, dtype=torch.float64) for width in (9, 14))
    for dim in (33, 64):
        sketch = make_projection("sketch", dim)
        whole = sketch.project("w", (delta.T @ activation)[None])[0]
        assert torch.allclose(sketch.project_factors("w", delta, activation), whole, atol=1e-10)


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_blocks_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = torch.randn(1, 500, dtype=torch.float64)
    whole = make_projection(kind, 70).project("w", gradient)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1)
    assert torch.allclose(make_projection(kind, 70).project("w", gradient), whole, atol=1e-12)


def test_parameters_have_projections_of_their_own() -> None:
    gradient = torch.ones(1, 6, 4)
    for kind in ("sketch", "rademacher", "normal"):
        plain = make_projection(kind, 32).project("a", gradient)
        assert not torch.equal(make_projection(kind, 32).project("b", gradient), plain)
        assert not torch.equal(make_projection(kind, 32, seed=43).project("a", gradient), plain)
        assert not torch.equal(make_projection(kind, 32, model_id=1).project("a", gradient), plain)
        assert torch.equal(make_projection(kind, 32).project("a", gradient), plain)


def test_wide_layers_are_cheaper_by_their_factors() -> None:
    assert make_projection("sketch", 2048).saves_gradient(1536, 1536)
    assert not make_projection("sketch", 2048).saves_gradient(128, 128)
    assert not make_projection("normal", 2048).saves_gradient(1536, 1536)


def test_fast_jl_is_given_sizes_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for the package, which exists for CUDA only."""
    calls: list[tuple[str, tuple[int, ...]]] = []

    class Kernels:
        def __getattr__(self, name: str) -> Any:
            def kernel(gradients: torch.Tensor, dim: int, seed: int, multiprocessors: int) -> torch.Tensor:
                calls.append((name, tuple(gradients.shape)))
                return gradients.sum(1, keepdim=True).expand(-1, dim).clone()

            return kernel

    class OnCuda(torch.Tensor):
        device = torch.device("cuda")

    monkeypatch.setitem(sys.modules, "fast_jl", Kernels())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=4))
    projected = FastJLProjection(512).project("w", torch.ones(17, 3, 2).as_subclass(OnCuda))
    assert projected.shape == (17, 512) and calls == [("project_normal_32", (32, 6))]
    FastJLProjection(512).project("w", torch.ones(35, 3).as_subclass(OnCuda))
    assert [name for name, _ in calls[1:]] == ["project_normal_32", "project_normal_8"]


def test_mistakes_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--projection: expected one of sketch, rademacher, normal, fast-jl"):
        make_projection("gauss", 8)
    with pytest.raises(ConfigError, match="--proj-dim: expected at least 1, got 0"):
        make_projection("sketch", 0)
    with pytest.raises(ConfigError, match="multiple of 512, got 100"):
        make_projection("fast-jl", 100)
    monkeypatch.setitem(sys.modules, "fast_jl", None)
    with pytest.raises(MissingPackage, match="fast-jl"):
        make_projection("fast-jl", 512)
