"""Guidance: the formula, the interval, and that a denoiser gives what the published call gives, computing less."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper, DiTWrapper
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModel
from stable_audio_tools.models.diffusion.guidance import Conditions, Guidance, on_host, time_of_batch, with_known_time

T = torch.tensor([0.3, 0.8])


def signal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wrapper(objective="v", **options):
    torch.manual_seed(0)
    defaults = {"io_channels": 3, "embed_dim": 32, "depth": 2, "num_heads": 2, "cond_token_dim": 8}
    model = DiTWrapper(objective, **{**defaults, "zero_init_branch_outputs": False, **options})
    return ConditionedDiffusionModelWrapper(model, None, 3, 16000, 1, diffusion_objective=objective).eval()


INPUTS = {"cross_attn_cond": signal(2, 5, 8, seed=1), "cross_attn_mask": torch.ones(2, 5)}
NEGATIVE = {
    "negative_cross_attn_cond": signal(2, 5, 8, seed=2),
    "negative_cross_attn_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
}


def test_the_formula():
    conditioned, unconditioned = signal(2, 3, 6), signal(2, 3, 6, seed=1)
    out = Guidance(scale=3.0).combine(conditioned, unconditioned)
    torch.testing.assert_close(out, 3 * conditioned - 2 * unconditioned)


def test_rescaling_restores_the_deviation():
    conditioned, unconditioned = signal(2, 8, 6), signal(2, 8, 6, seed=1)
    out = Guidance(scale=7.0, rescale=1.0).combine(conditioned, unconditioned)
    torch.testing.assert_close(out.std(dim=1), conditioned.std(dim=1))


@pytest.mark.parametrize(
    ("interval", "within"),
    [((0.0, 1.0), True), ((0.3, 0.5), True), ((0.5, 1.0), False), ((0.1, 0.4), True), ((0.4, 0.9), True)],
)
def test_the_interval_asks_the_first_item(interval, within):
    assert Guidance(2.0, interval).covers(torch.tensor([0.4, 0.9])) is within


def test_what_stands_for_no_condition():
    given = Conditions(cross_attn=signal(2, 5, 8), global_embed=signal(2, 4), prepend=signal(2, 3, 8))
    absent = given.unconditional()
    assert not absent.cross_attn.any() and not absent.prepend.any()
    assert torch.equal(absent.global_embed, given.global_embed)
    negative = given.unconditional(*NEGATIVE.values())
    assert not negative.cross_attn[0, 3:].any() and negative.cross_attn[1, 3:].any()


def test_a_negative_of_another_length_is_refused():
    with pytest.raises(ValueError, match="the negative condition has 4 tokens of width 8, the condition 5 of 8"):
        Conditions(cross_attn=signal(2, 5, 8)).unconditional(signal(2, 4, 8))


CALLS = {
    "unguided": {},
    "guided": {"cfg_scale": 4.0},
    "rescaled": {"cfg_scale": 4.0, "scale_phi": 0.7},
    "one pass after the other": {"cfg_scale": 4.0, "batch_cfg": False},
    "outside the interval": {"cfg_scale": 4.0, "cfg_interval": (0.9, 1.0)},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("negative", [{}, NEGATIVE], ids=["zeros", "negative"])
@pytest.mark.parametrize("layout", ["prepend", "adaLN"])
@torch.no_grad()
def test_a_denoiser_equals_the_published_call(call, negative, layout):
    model = wrapper(global_cond_type=layout, num_memory_tokens=2)
    denoiser = model.denoiser(INPUTS, negative, **call)
    for step, t in enumerate([T, T / 2]):
        x = signal(2, 3, 12, seed=10 + step)
        # Batches of another size multiply in another order.
        torch.testing.assert_close(
            denoiser(x, t), model.model(x, t, **INPUTS, **negative, **call), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_a_denoiser_follows_the_length():
    model = wrapper(input_concat_dim=2)
    inputs = {**INPUTS, "input_concat_cond": signal(2, 2, 6)}
    denoiser = model.denoiser(inputs, cfg_scale=2.0)
    for length in (12, 6, 12):
        x = signal(2, 3, length)
        torch.testing.assert_close(denoiser(x, T), model.model(x, T, **inputs, cfg_scale=2.0), atol=1e-5, rtol=1e-5)


class Projections(TorchFunctionMode):
    """Counts the products with each weight; hooks would have every module called in every step."""

    def __init__(self):
        super().__init__()
        self.weights = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            self.weights[id(args[1])] += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_constant_work_is_done_once():
    model = wrapper(global_cond_dim=4)
    transformer = model.model.model
    denoiser = model.denoiser({**INPUTS, "global_cond": signal(2, 4)}, cfg_scale=3.0)
    with Projections() as projections:
        for step in range(4):
            denoiser(signal(2, 3, 12), T / (1 + step))
    once = [transformer.to_cond_embed[0], transformer.to_global_embed[0]]
    once += [layer.cross_attn.to_kv for layer in transformer.transformer.layers]
    assert [projections.weights[id(module.weight)] for module in once] == [1] * 4
    assert projections.weights[id(transformer.to_timestep_embed[0].weight)] == 4


@torch.no_grad()
def test_the_unconditional_output_comes_along_for_cfg_pp():
    model, x = wrapper(), signal(2, 3, 12)
    both = model.denoiser(INPUTS, cfg_scale=3.0).guided(x, T)
    conditioned = model.model(x, T, **INPUTS)
    unconditioned = model.model(x, T, cross_attn_cond=torch.zeros(2, 5, 8))
    torch.testing.assert_close(both.unconditional, unconditioned, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.output, 3 * conditioned - 2 * unconditioned, atol=1e-5, rtol=1e-5)
    unguided = model.denoiser(INPUTS).guided(x, T)
    assert unguided.unconditional is unguided.output


@torch.no_grad()
def test_nothing_to_drop_is_nothing_to_guide():
    model, x = wrapper(cond_token_dim=0), signal(2, 3, 12)
    assert torch.equal(model.denoiser({}, cfg_scale=5.0)(x, T), model.model(x, T))


class Linear(ConditionedDiffusionModel):
    """A backbone that keeps nothing, with the published keywords of guidance."""

    def __init__(self):
        super().__init__(supports_global_cond=True)
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.seen = []

    def forward(self, x, t, global_cond=None, cfg_scale=1.0, rescale_cfg=False, scale_phi=0.4, **options):
        self.seen.append((cfg_scale, rescale_cfg, scale_phi))
        unconditioned, conditioned = x, x * self.gain + global_cond[..., None]
        return unconditioned + cfg_scale * (conditioned - unconditioned)


@torch.no_grad()
def test_other_backbones_are_called_plainly():
    backbone, x = Linear(), signal(2, 3, 12)
    model = ConditionedDiffusionModelWrapper(backbone, None, 3, 16000, 1, diffusion_objective="rectified_flow")
    condition = {"global_cond": signal(2, 3)}
    denoiser = model.denoiser(condition, cfg_scale=3.0, cfg_interval=(0.0, 0.5))
    both = denoiser.guided(x, T)
    torch.testing.assert_close(both.output, x + 3 * (x + condition["global_cond"][..., None]))
    torch.testing.assert_close(both.unconditional, x)
    assert backbone.seen == [(3.0, True, 0.4), (0.0, False, 0.4)]
    outside = denoiser.guided(x, T.flip(0))  # noise levels 0.8, 0.3
    assert outside.output is outside.unconditional and backbone.seen[-1][0] == 1.0
    model.denoiser(condition, cfg_scale=3.0, scale_phi=0.0)(x, T)
    assert backbone.seen[-1] == (3.0, True, 0.0)


@torch.no_grad()
def test_the_published_info():
    model, x = wrapper(), signal(2, 3, 12)
    output, info = model.model(x, T, **INPUTS, cfg_scale=3.0, return_info=True)
    assert output.shape == info["uncond_output"].shape and len(info["hidden_states"]) == 2
    assert "uncond_output" not in model.model(x, T, **INPUTS, return_info=True)[1]


def test_gradients_pass_through_a_denoiser():
    x = signal(2, 3, 12).requires_grad_()
    wrapper().denoiser(INPUTS, cfg_scale=3.0)(x, T).sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_host_knows_times_that_it_made_and_reads_others() -> None:
    x = torch.zeros(3, 2, 4)
    made = time_of_batch(0.3, x)
    assert made.tolist() == [pytest.approx(0.3)] * 3
    with_known_time(other := torch.tensor([0.5, 0.7]), 0.25)
    assert float(on_host(other)) == 0.25, "what was noted, without reading the tensor"
    assert float(on_host(torch.tensor([0.5, 0.7]))) == 0.5
