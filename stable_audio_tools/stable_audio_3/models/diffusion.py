"""Import path of the wrapped diffusion transformer."""

from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModelWrapper, DiTWrapper

__all__ = ["ConditionedDiffusionModelWrapper", "DiTWrapper"]
