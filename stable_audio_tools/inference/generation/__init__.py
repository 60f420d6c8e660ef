"""From a request to audio, for every type of model. The published import path of the generate functions."""

from stable_audio_tools.inference.generation.diffusion import (
    generate_diffusion_cond,
    generate_diffusion_cond_inpaint,
    generate_diffusion_uncond,
)

__all__ = ["generate_diffusion_cond", "generate_diffusion_cond_inpaint", "generate_diffusion_uncond"]
