"""Adversarial losses, and the critic that turns opinions on real and fake audio into them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AdversarialName = Literal["hinge", "lsgan", "rpgan", "sigmoid_rpgan"]


class AdversarialLoss(NamedTuple):
    """Two functions of (real scores, fake scores), each averaged over everything."""

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]


# Lim & Ye 2017: margins at +1 and -1, and a generator without margin.
HINGE = AdversarialLoss(
    critic=lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    generator=lambda real, fake: -fake.mean(),
)
# Margins at 1 and 0 on either side, with the targets of least squares.
UNIT_HINGE = AdversarialLoss(
    critic=lambda real, fake: F.relu(fake).mean() + F.relu(1 - real).mean(),
    generator=lambda real, fake: F.relu(1 - fake).mean(),
)
# Mao et al. 2017: real is 1, fake is 0.
LEAST_SQUARES = AdversarialLoss(
    critic=lambda real, fake: fake.square().mean() + (1 - real).square().mean(),
    generator=lambda real, fake: (1 - fake).square().mean(),
)
# Jolicoeur-Martineau 2018, pairwise: only the difference between real and fake matters.
RELATIVISTIC = AdversarialLoss(
    critic=lambda real, fake: F.softplus(fake - real).mean(),
    generator=lambda real, fake: F.softplus(real - fake).mean(),
)
# The same with bounded losses: twice the sigmoid of half the difference.
BOUNDED_RELATIVISTIC = AdversarialLoss(
    critic=lambda real, fake: 2 * torch.sigmoid((fake - real) / 2).mean(),
    generator=lambda real, fake: 2 * torch.sigmoid((real - fake) / 2).mean(),
)

ADVERSARIAL = {
    "hinge": HINGE,
    "unit_hinge": UNIT_HINGE,
    "lsgan": LEAST_SQUARES,
    "rpgan": RELATIVISTIC,
    "sigmoid_rpgan": BOUNDED_RELATIVISTIC,
}


def get_hinge_losses(score_real: Tensor, score_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hinge losses of the discriminator and of the generator."""
    return HINGE.critic(score_real, score_fake), HINGE.generator(score_real, score_fake)


class Opinion(NamedTuple):
    """Output of one sub-discriminator for a batch: scores (higher is more real) and activations."""

    score: Tensor
    features: list[Tensor]


class GeneratorLosses(NamedTuple):
    """Terms that the generator minimises; the caller weighs them."""

    adversarial: Tensor
    feature_matching: Tensor


class CriticLosses(NamedTuple):
    """All loss terms, in the order of the published `loss`."""

    discriminator: Tensor
    adversarial: Tensor
    feature_matching: Tensor


class AudioCritic(nn.Module, ABC):
    """A discriminator with its losses; one method per side of the game computes only that side."""

    def __init__(self, adversarial: str) -> None:
        super().__init__()
        self.loss_type = adversarial

    @property
    def adversarial(self) -> AdversarialLoss:
        return ADVERSARIAL[self.loss_type]

    @abstractmethod
    def forward(self, audio: Tensor) -> list[Opinion]:
        """Return the opinion of every sub-discriminator on audio (b, c, n) in [-1, 1]."""

    def judge(self, audio: Tensor) -> list[Opinion]:
        """Return the opinion of every sub-discriminator, whatever the published `forward` returns."""
        opinions: list[Opinion] = self(audio)
        return opinions

    @abstractmethod
    def match_features(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        """Return the distance between the activations for real and fake audio."""

    def discriminator_loss(self, fake: Tensor, real: Tensor) -> Tensor:
        """Return the loss of the discriminator; no gradient reaches the fakes. `loss` takes the real audio first."""
        return self._criticise(self.judge(real), self.judge(fake.detach()))

    def generator_loss(self, fake: Tensor, real: Tensor) -> GeneratorLosses:
        """Return the losses of the generator; opinions on real audio are constants here."""
        with torch.no_grad():
            opinions = self.judge(real)
        return self._persuade(opinions, self.judge(fake))

    def loss(self, reals: Tensor, fakes: Tensor) -> CriticLosses:
        """Return all terms, for logs and for trainers that use one call for both sides."""
        real, fake = self.judge(reals), self.judge(fakes)
        detached = self.judge(fakes.detach()) if fakes.requires_grad else fake
        return CriticLosses(self._criticise(real, detached), *self._persuade(real, fake))

    def _criticise(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
        return mean(self.adversarial.critic(r.score, f.score) for r, f in zip(real, fake))

    def _persuade(self, real: Sequence[Opinion], fake: Sequence[Opinion]) -> GeneratorLosses:
        real = [Opinion(r.score.detach(), [feature.detach() for feature in r.features]) for r in real]
        adversarial = mean(self.adversarial.generator(r.score, f.score) for r, f in zip(real, fake))
        return GeneratorLosses(adversarial, self.match_features(real, fake))


def mean(values: Iterable[Tensor]) -> Tensor:
    """Return the average of scalars."""
    return torch.stack(list(values)).mean()


def distances(real: Opinion, fake: Opinion) -> list[Tensor]:
    """Return the mean absolute difference of each activation."""
    return [F.l1_loss(f, r) for r, f in zip(real.features, fake.features)]


def relative_distances(real: Opinion, fake: Opinion) -> list[Tensor]:
    """Mean absolute difference of each activation, relative to the size of the real one."""
    return [
        value / (feature.detach().abs().mean() + 1e-3) for value, feature in zip(distances(real, fake), real.features)
    ]
