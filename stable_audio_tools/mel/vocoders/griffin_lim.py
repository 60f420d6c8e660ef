"""Griffin-Lim with momentum (Perraudin, Balazs & Soendergaard 2013): phases that make neighbouring frames agree."""

import logging
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import register
from stable_audio_tools.mel.filterbank import check_filterbank
from stable_audio_tools.mel.inversion import Inversion, invert_mel
from stable_audio_tools.mel.spectra import Framing
from stable_audio_tools.mel.transforms import MelTransform
from stable_audio_tools.mel.vocoders.base import Vocoder

logger = logging.getLogger(__name__)


def find_phases(magnitude: Tensor, framing: Framing, n_iter: int = 32, momentum: float = 0.99, seed: int = 0) -> Tensor:
    """Magnitudes (b, bins, t) -> audio (b, t * hop). Every item starts from the same random phases."""
    noise = torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(seed))
    angle = noise.to(magnitude) * (2 * torch.pi)
    spectra = torch.polar(magnitude, angle.expand_as(magnitude))
    envelope = framing.envelope(magnitude.shape[2], magnitude)
    previous: Tensor | None = None
    for _ in range(n_iter):
        rebuilt = framing.analyse(framing.synthesise(spectra, envelope))
        moved = rebuilt if previous is None else torch.add(rebuilt, previous, alpha=-momentum / (1 + momentum))
        spectra, previous = magnitude * moved.sgn(), rebuilt
    return framing.synthesise(spectra, envelope)


@register("vocoder", "griffin_lim")
class GriffinLimVocoder(Vocoder):
    """Phases found by iteration; needs no training, for any mel transform."""

    def __init__(
        self,
        n_iter: Annotated[int, Field(ge=0, description="iterations; 0 keeps random phases")] = 32,
        momentum: Annotated[float, Field(ge=0, lt=1, description="0: the algorithm of 1984; 0.99 finds more")] = 0.99,
        inversion: Annotated[
            Inversion, Field(description="how bands become bins: pseudo-inverse, or least squares (slower)")
        ] = "pinv",
        seed: Annotated[int, Field(ge=0, description="of the first phases; the same bands give the same audio")] = 0,
    ) -> None:
        self.n_iter = n_iter
        self.momentum = momentum
        self.inversion: Inversion = inversion
        self.seed = seed

    def problem(self, transform: MelTransform) -> str | None:
        """Bands that cannot be told apart again are no mistake; what they lose is said, since it is lost here."""
        loss = check_filterbank(transform.bands).problem(transform.bands)
        if loss is not None:
            logger.warning("%s", loss)
        return None

    def decode(self, mel: Tensor, transform: MelTransform) -> Tensor:
        spectrum = invert_mel(transform.to_physical(mel), transform.bands, self.inversion)
        magnitude = spectrum.sqrt() if transform.power == 2 else spectrum
        return find_phases(magnitude, transform.framing, self.n_iter, self.momentum, self.seed)
