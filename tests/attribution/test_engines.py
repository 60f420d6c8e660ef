"""Three engines, one result: that of autograd, for every kind of layer, with and without activation checkpointing."""

from typing import Any

import pytest
import torch
from support.small_attribution import make_samples, tiny_transformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stable_audio_tools.attribution.engines import HookEngine, LoopEngine, VmapEngine, choose_engine, make_engine
from stable_audio_tools.attribution.keyed_random import keyed_noise
from stable_audio_tools.attribution.projection import PROJECTIONS, Projection, make_projection
from stable_audio_tools.attribution.task import MEASURES, AttributedSample, DiffusionTask, FeatureRecipe, find_measure
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.diffusion.objectives import V

TOLERANCE = 1e-5  # of the issue; in float64 up to the last step, float32 rounding of the features is all there is
RICH = {  # norms with offsets, conformer convolutions, memory and learned positions (embeddings), scales, q and k norms
    "norm_kwargs": {"bias": True},
    "conformer": True,
    "num_memory_tokens": 2,
    "use_abs_pos_emb": True,
    "rotary_pos_emb": False,
    "abs_pos_emb_max_length": 32,
    "layer_scale": True,
    "attn_kwargs": {"qk_norm": "ln", "feat_scale": True},
    "global_cond_type": "adaLN",
}


def autograd_features(task: DiffusionTask, samples: list[AttributedSample], projection: Projection) -> Tensor:
    """By the textbook: corrupt, predict, differentiate, project; timestep by timestep, without the engines' code."""
    network, parameters = task.network, dict(task.network.named_parameters())
    features = torch.zeros(len(samples), projection.dim, dtype=torch.float64)
    for row, sample in enumerate(samples):
        noises = keyed_noise(sample.latents.shape, 0, task.recipe.steps, sample.key)
        for step, noise in zip(task.recipe.steps, noises):
            t = torch.tensor([step / 1000], dtype=torch.float64)
            noisy, target = task.objective.corrupt(sample.latents[None], noise[None].double(), t)
            prediction = network(noisy, t, **sample.inputs)
            value = MEASURES_BY_HAND[task.recipe.measure.__name__](prediction, target)
            gradients = torch.autograd.grad(value / len(noises), list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients):
                if gradient is not None:
                    features[row] += projection.project(name, gradient[None])[0]
    return features


MEASURES_BY_HAND: dict[str, Any] = {
    "loss": lambda output, target: ((output - target) ** 2).mean(),
    "mean_squared_l2_norm": lambda output, target: (output**2).mean(),
    "mean": lambda output, target: output.mean(),
    "l1_norm": lambda output, target: output.abs().sum(),
    "l2_norm": lambda output, target: (output**2).sum().sqrt(),
    "linf_norm": lambda output, target: output.abs().max(),
}


class Everywhere(PROJECTIONS["sketch"]):  # type: ignore[misc]
    """A sketch that takes every linear layer by its factors, narrow ones too."""

    def saves_gradient(self, outputs: int, inputs: int) -> bool:
        return True


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one.double() - other.double()).norm() <= TOLERANCE * other.double().norm())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("options", [{}, RICH], ids=["plain", "rich"])
def test_hooks_and_loop_agree_with_autograd(options: dict, checkpointing: bool, make_task: Any) -> None:
    task, samples = make_task(**options), make_samples(2)
    parameters = dict(task.network.named_parameters())
    projection = Everywhere(64)
    wanted = autograd_features(task, samples, projection)
    task.network.transformer.checkpointing = checkpointing
    hooks = HookEngine(task, parameters, projection)
    assert len(hooks.factored) > 10
    assert close(hooks.features(samples), wanted)
    assert close(LoopEngine(task, parameters, projection).features(samples), wanted)
    assert close(HookEngine(task, parameters, projection, rows_at_once=3).features(samples), wanted)
    assert not any(parameter.grad is not None for parameter in parameters.values())


@pytest.mark.parametrize("options", [{}, RICH], ids=["plain", "rich"])
def test_vmap_agrees_with_autograd(options: dict, make_task: Any) -> None:
    task, samples = make_task(**options), make_samples(5)
    projection = make_projection("sketch", 64)
    wanted = autograd_features(task, samples, projection)
    assert close(VmapEngine(task, dict(task.network.named_parameters()), projection).features(samples), wanted)


def test_vmap_takes_samples_of_several_shapes(make_task: Any) -> None:
    """Each has the row that it has alone."""
    task, samples = make_task(depth=1), make_samples(6)
    for place, frames in ((1, 5), (4, 5), (5, 8)):
        mask = torch.ones(1, frames, dtype=torch.float64)
        samples[place] = samples[place]._replace(latents=samples[place].latents[:, :frames], mask=mask)
    engine = VmapEngine(task, dict(task.network.named_parameters()), make_projection("sketch", 64))
    whole = engine.features(samples)
    assert torch.equal(whole, torch.cat([engine.features([sample]) for sample in samples]))
    assert close(whole, autograd_features(task, samples, engine.projection))


@pytest.mark.parametrize("f", MEASURES)
def test_every_measure(f: str, make_task: Any) -> None:
    task, samples = make_task(f=f, objective="rectified_flow", depth=1), make_samples(1)
    parameters, projection = dict(task.network.named_parameters()), Everywhere(32)
    wanted = autograd_features(task, samples, projection)
    for engine in (HookEngine, VmapEngine, LoopEngine):
        assert close(engine(task, parameters, projection).features(samples), wanted)


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_dense_projections_in_every_engine(kind: str, make_task: Any) -> None:
    task, samples = make_task(depth=1), make_samples(2)
    parameters, projection = dict(task.network.named_parameters()), make_projection(kind, 70)
    wanted = autograd_features(task, samples, projection)
    for name in ("hooks", "vmap", "loop"):
        assert close(make_engine(name, task, parameters, projection).features(samples), wanted)


class LowRank(nn.Module):
    """A weight with an update of rank 2 on top."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(weight.shape[0], 2, dtype=weight.dtype) * 0.1)
        self.down = nn.Parameter(torch.randn(2, weight[0].numel(), dtype=weight.dtype) * 0.1)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def test_adapters_alone(make_task: Any) -> None:
    """LoRA on linear layers and on a convolution, selected by the pattern of its names."""
    task, samples = make_task(depth=1), make_samples(2)
    block = task.network.transformer.layers[0]
    for layer in (block.self_attn.to_qkv, block.ff.ff[2], task.network.preprocess_conv):
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))
    parameters = {name: p for name, p in task.network.named_parameters() if ".0.up" in name or ".0.down" in name}
    assert len(parameters) == 6
    wanted = None
    for checkpointing in (False, True):
        task.network.transformer.checkpointing = checkpointing
        loop = LoopEngine(task, parameters, Everywhere(64)).features(samples)
        wanted = loop if wanted is None else wanted
        assert wanted.abs().sum() > 0
        assert close(HookEngine(task, parameters, Everywhere(64)).features(samples), wanted)
    task.network.transformer.checkpointing = False
    assert close(VmapEngine(task, parameters, Everywhere(64)).features(samples), wanted)


class Mixed(nn.Module):
    """Layers that a transformer lacks: strided, grouped and transposed convolutions, group norm, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(3, 8, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.grouped = nn.Conv1d(8, 8, 3, padding=1, groups=4)
        self.table = nn.Embedding(10, 8)
        self.shared = nn.Linear(8, 8)
        self.unused = nn.Linear(4, 4)
        self.up = nn.ConvTranspose1d(8, 3, 4, stride=2, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = self.grouped(self.norm(self.down(x)).tanh())
        hidden = hidden + self.table((t * 9).long())[..., None]
        hidden = self.shared(self.shared(hidden.mT).tanh()).mT
        return self.up(hidden)


def test_layers_of_other_backbones() -> None:
    """A layer that is called twice counts twice; one that is not called, not at all."""
    torch.manual_seed(0)
    task = DiffusionTask(Mixed().double(), V, FeatureRecipe(find_measure("loss"), [0, 400, 800]))
    samples = [sample._replace(inputs={}) for sample in make_samples(2)]
    parameters, projection = dict(task.network.named_parameters()), Everywhere(64)
    wanted = autograd_features(task, samples, projection)
    for engine in (HookEngine, VmapEngine, LoopEngine):
        assert close(engine(task, parameters, projection).features(samples), wanted)


@pytest.mark.parametrize("name", ["hooks", "loop", "vmap"])
def test_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    """Bit for bit, in single precision: whatever the batch, the order and the place."""
    recipe = FeatureRecipe(find_measure("loss"), [0, 500])
    task = DiffusionTask(tiny_transformer(depth=1).float(), V, recipe)
    samples = make_samples(8, torch.float32)
    engine = make_engine(name, task, dict(task.network.named_parameters()), Everywhere(64))
    whole = engine.features(samples)
    assert len({row.numpy().tobytes() for row in whole}) == len(samples)
    for size in (1, 3):
        parts = [engine.features(samples[start : start + size]) for start in range(0, 8, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(engine.features(samples[::-1]).flip(0), whole)


def test_hooks_leave_nothing_behind(make_task: Any) -> None:
    task, samples = make_task(depth=1), make_samples(1)
    engine = HookEngine(task, dict(task.network.named_parameters()), Everywhere(16))
    first = engine.features(samples)
    assert torch.equal(engine.features(samples), first)
    assert all(parameter.requires_grad for parameter in task.network.parameters())
    assert not any(module._forward_hooks for module in task.network.modules())


def test_the_engine_is_chosen_by_shape(make_task: Any) -> None:
    parameters = dict(make_task(depth=1).network.named_parameters())
    assert choose_engine(parameters, make_projection("sketch", 64), False) == "hooks"
    assert choose_engine(parameters, make_projection("normal", 64), False) == "vmap"
    assert choose_engine(parameters, make_projection("normal", 64), True) == "hooks"
    large = {"weight": torch.empty(1 << 28, device="meta")}
    assert choose_engine(large, make_projection("normal", 64), False) == "hooks"


def test_mistakes_end_in_a_sentence(make_task: Any) -> None:
    task = make_task(depth=1)
    parameters, projection = dict(task.network.named_parameters()), make_projection("sketch", 8)
    with pytest.raises(ConfigError, match="--engine: expected one of auto, hooks, vmap, loop; got 'fast'"):
        make_engine("fast", task, parameters, projection)
    with pytest.raises(ConfigError, match="vmap does not work with --checkpointing"):
        make_engine("vmap", task, parameters, projection, checkpointing=True)
