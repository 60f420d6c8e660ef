"""Schedules, samplers and noise: tensors in, tensors out. The published import path of the sample functions."""

from stable_audio_tools.inference.sampling.published import (
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

__all__ = [
    "DistributionShift",
    "alpha_sigma_to_t",
    "get_alphas_sigmas",
    "sample",
    "sample_discrete_euler",
    "sample_flow_dpmpp",
    "sample_flow_pingpong",
    "sample_k",
    "sample_rf",
    "sample_rk4",
    "sample_timesteps_logsnr",
    "t_to_alpha_sigma",
    "truncated_logistic_normal_rescaled",
]
