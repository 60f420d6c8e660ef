"""Published names: closed forms of the maths, and samplers called with a bare network."""

import math

import pytest
import torch

from stable_audio_tools.inference.sampling import (
    DistributionShift,
    alpha_sigma_to_t,
    get_alphas_sigmas,
    sample,
    sample_discrete_euler,
    sample_flow_dpmpp,
    sample_flow_pingpong,
    sample_k,
    sample_rf,
    sample_rk4,
    sample_timesteps_logsnr,
    t_to_alpha_sigma,
    truncated_logistic_normal_rescaled,
)

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
DATA = torch.linspace(-1, 1, 24).reshape(1, 3, 8)


def flow(x: torch.Tensor, t: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """The velocity towards gain * DATA, with the limit at t = 0."""
    return (x - gain * DATA) / t.clamp(min=1e-9)[:, None, None]


def v(x: torch.Tensor, t: torch.Tensor, gain: float = 1.0, return_info: bool = False):
    alpha, sigma = (part[:, None, None] for part in t_to_alpha_sigma(t))
    noise = (x - alpha * gain * DATA) / sigma
    out = alpha * noise - sigma * gain * DATA
    return (out, {"uncond_output": out}) if return_info else out


def test_alpha_sigma_and_t_are_inverse() -> None:
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    alpha, sigma = get_alphas_sigmas(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    torch.testing.assert_close(alpha_sigma_to_t(alpha, sigma), t)


def test_log_snr_law() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t = sample_timesteps_logsnr(20000, -0.5, 1.5).double()
    logsnr = torch.log((1 - t) / t)
    assert logsnr.mean() == pytest.approx(-0.5, abs=0.03)  # 1.5 / sqrt(20000) = 0.011, three times that
    assert logsnr.std() == pytest.approx(1.5, abs=0.03)
    assert sample_timesteps_logsnr(1000, 40.0, 0.1).min() >= 1e-4 * 0.999


def test_truncated_law() -> None:
    """Its distribution function: the normal's between the cuts, stretched."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = truncated_logistic_normal_rescaled(20000, 0.2).double()
    assert draws.min() >= 0
    assert draws.max() <= 1
    normal = torch.distributions.Normal(0.0, 1.0)
    low = normal.cdf(torch.logit(torch.tensor(0.2)))
    for point in (0.2, 0.5, 0.8):
        wanted = (normal.cdf(torch.logit(torch.tensor(0.2 + 0.8 * point))) - low) / (1 - low)
        # 20000 draws: a share is known to 0.0035, three times that
        assert float((draws < point).double().mean()) == pytest.approx(float(wanted), abs=0.011)


@pytest.mark.parametrize("call", [sample_discrete_euler, sample_rk4, sample_flow_dpmpp, sample_flow_pingpong])
def test_flow_samplers_with_a_bare_network(call) -> None:
    """rk4 asks for the slope at t = 0, which is 0 / 0 where the data is known; its times end before."""
    times = torch.tensor([1.0, 0.6, 0.3, 0.05 if call is sample_rk4 else 0.0])
    made = call(flow, X, sigmas=times, gain=0.5)
    noise_left = 0.05 if call is sample_rk4 else 0.0
    torch.testing.assert_close(made, (1 - noise_left) * 0.5 * DATA + noise_left * X, atol=1e-4, rtol=0)


@pytest.mark.parametrize("call", [sample_discrete_euler, sample_flow_dpmpp, sample_flow_pingpong])
def test_times_by_steps_are_equal_or_shifted(call) -> None:
    seen = []
    call(flow, X, 4, sigma_max=0.8, callback=lambda info: seen.append(float(info["t"])), disable_tqdm=True)
    assert seen == pytest.approx([0.8, 0.6, 0.4, 0.2])
    seen.clear()
    shift = DistributionShift(min_length=2, max_length=8)
    call(flow, X, 4, dist_shift=shift, callback=lambda info: seen.append(float(info["t"])))
    assert seen == pytest.approx(shift.time_shift(torch.tensor([1.0, 0.75, 0.5, 0.25]), 8).tolist())
    with pytest.raises(ValueError, match="give steps, or the times themselves"):
        call(flow, X)


@pytest.mark.parametrize("cfg_pp", [False, True])
def test_ddim_with_a_bare_network(cfg_pp: bool) -> None:
    torch.testing.assert_close(
        sample(v, X, 5, 0.0, cfg_pp=cfg_pp, gain=0.5), (0.5 * DATA).expand_as(X), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="cfg_pp is deterministic"):
        sample(v, X, 5, 0.5, cfg_pp=True)


def test_ddim_with_eta_draws_from_the_process() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = torch.get_rng_state()
        sample(v, X, 5, 1.0)
        assert not torch.equal(first, torch.get_rng_state())


@pytest.mark.parametrize("sampler", ["dpmpp-3m-sde", "dpmpp-2m", "k-heun", "v-ddim", "v-ddim-cfgpp"])
@pytest.mark.parametrize("init", [None, DATA.expand_as(X)])
def test_sample_k(sampler: str, init: torch.Tensor | None) -> None:
    made = sample_k(v, X, init, steps=6, sampler_type=sampler, sigma_max=0.7 if init is not None else 50)
    torch.testing.assert_close(made, DATA.expand_as(X), atol=1e-3, rtol=0)


def test_sample_k_starts_from_the_given_noise() -> None:
    """The first state is data + sigma * noise, or just that noise without data; DDIM's is noise as it is."""
    seen = {}
    for name, init in (("dpmpp-2m", None), ("dpmpp-2m", DATA.expand_as(X)), ("v-ddim", None)):
        sigma = 0.6 if name == "v-ddim" else 20.0
        states = []
        network = lambda x, t, states=states: (states.append(x), v(x, t))[1]  # noqa: E731
        sample_k(network, X, init, 4, name, sigma_max=sigma)
        seen[name, init is None] = states[0]
    scale = 1 / math.sqrt(1 + 20.0**2)  # the network sees unit variance
    torch.testing.assert_close(seen["dpmpp-2m", True], 20 * scale * X)
    torch.testing.assert_close(seen["dpmpp-2m", False], scale * (DATA + 20 * X))
    torch.testing.assert_close(seen["v-ddim", True], X)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp", "pingpong"])
def test_sample_rf(sampler: str) -> None:
    made = sample_rf(flow, X, DATA.expand_as(X), steps=6, sampler_type=sampler, sigma_max=0.7)
    torch.testing.assert_close(made, DATA.expand_as(X), atol=1e-4, rtol=0)


def test_only_rk4_uses_the_shift_as_published() -> None:
    shift = DistributionShift(min_length=2, max_length=8)
    times = {"euler": [], "rk4": []}
    for name, seen in times.items():
        sample_rf(flow, X, None, 4, name, dist_shift=shift, callback=lambda info, seen=seen: seen.append(info["t"]))
    assert times["rk4"] == pytest.approx(shift.time_shift(torch.tensor([1.0, 0.75, 0.5, 0.25]), 8).tolist())
    assert times["euler"] == pytest.approx([1.0, 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(-2)), 0.5])


def test_a_gradient_moves_the_prediction() -> None:
    """One step from sigma to the data: the prediction plus sigma^2 times the gradient."""

    def cond_fn(x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor, gain: float) -> torch.Tensor:
        assert x.requires_grad and sigma.shape == (2,)
        (gradient,) = torch.autograd.grad((3 * x).sum(), x)
        return 0.1 * gradient * gain

    made = sample_k(v, X, None, 1, "dpmpp-2m", sigma_max=2.0, cond_fn=cond_fn, gain=0.5)
    torch.testing.assert_close(made, (0.5 * DATA + 2.0**2 * 0.3 * 0.5).expand_as(X), atol=1e-4, rtol=0)
    assert not made.requires_grad
    with pytest.raises(ValueError, match="k-diffusion's samplers only"):
        sample_k(v, X, None, 1, "v-ddim", cond_fn=cond_fn)
    with pytest.raises(ValueError, match="samplers of sample_k only"):
        sample_rf(flow, X, cond_fn=cond_fn)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="no sampler named 'k-euler'"):
        sample_k(v, X, sampler_type="k-euler")
    with pytest.raises(ValueError, match="'dpmpp-2m' is not for a model with the objective 'rectified_flow'"):
        sample_rf(flow, X, sampler_type="dpmpp-2m")
