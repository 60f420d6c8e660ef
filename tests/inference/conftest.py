"""Fixtures of these tests."""

from support.small_diffusion import build_config, build_model, made, unconditional_model

__all__ = ["build_config", "build_model", "made", "unconditional_model"]
