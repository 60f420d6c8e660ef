"""Schedules, samplers and noise: tensors in, tensors out. The published import path of the sample functions."""

from stable_audio_tools.inference.sampling.published import (
    alpha_sigma_to_t,
    get_alphas_sigmas,
    get_bmask,
    make_cond_model_fn,
    sample,
    sample_discrete_euler,
    sample_flow_dpmpp,
    sample_flow_pingpong,
    sample_k,
    sample_rf,
    sample_rk4,
    sample_timesteps_logsnr,
    sample_timesteps_logsnr_uniform,
    t_to_alpha_sigma,
    truncated_logistic_normal_rescaled,
)
from stable_audio_tools.inference.sampling.shifted_schedules import build_schedule
from stable_audio_tools.inference.sampling.unified import sample_diffusion
from stable_audio_tools.models.diffusion.distribution_shift import (
    DistributionShift,
    FluxDistributionShift,
    IdentityDistributionShift,
    LogSNRShift,
)

__all__ = [
    "DistributionShift",
    "FluxDistributionShift",
    "IdentityDistributionShift",
    "LogSNRShift",
    "alpha_sigma_to_t",
    "build_schedule",
    "get_alphas_sigmas",
    "get_bmask",
    "make_cond_model_fn",
    "sample",
    "sample_diffusion",
    "sample_discrete_euler",
    "sample_flow_dpmpp",
    "sample_flow_pingpong",
    "sample_k",
    "sample_rf",
    "sample_rk4",
    "sample_timesteps_logsnr",
    "sample_timesteps_logsnr_uniform",
    "t_to_alpha_sigma",
    "truncated_logistic_normal_rescaled",
]
