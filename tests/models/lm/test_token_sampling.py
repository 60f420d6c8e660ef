"""Drawing tokens: greedy, top-k, top-p, the distribution itself, seeds."""

import pytest
import torch

from stable_audio_tools.models.lm.generation import sample_tokens

LOGITS = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()


def shares(**options):
    generator = torch.Generator().manual_seed(0)
    tokens = sample_tokens(LOGITS.expand(20000, 4), generator=generator, **options)
    return torch.bincount(tokens, minlength=4) / 20000


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0.05, 0.5, 0.15, 0.3]),
        ({"top_k": 2}, [0, 0.625, 0, 0.375]),
        ({"top_k": 250}, [0.05, 0.5, 0.15, 0.3]),
        ({"top_p": 0.6}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.6, "top_k": 1}, [0, 0.625, 0, 0.375]),
        ({"temperature": 0.5}, [0.0025 / 0.365, 0.25 / 0.365, 0.0225 / 0.365, 0.09 / 0.365]),
        ({"temperature": 0.0, "top_k": 3}, [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_shares(options, wanted):
    found = shares(**options)
    # Four standard deviations of a share of one half of 20000 draws.
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float32), atol=0.0142, rtol=0)
    assert all(share == 0 for share, exact in zip(found.tolist(), wanted) if exact == 0)


def test_the_shape_is_that_of_the_logits_without_their_last_axis():
    assert sample_tokens(torch.randn(2, 3, 7)).shape == (2, 3)


def test_one_seed_one_draw():
    logits = torch.randn(50, 9)
    draws = [sample_tokens(logits, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_half_precision_logits():
    assert sample_tokens(torch.tensor([0.0, 60000.0, 0.0], dtype=torch.float16)) == 1


def test_items_with_generators_of_their_own_are_what_they_would_be_alone():
    logits = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0))

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]

    together = sample_tokens(logits, top_k=20, generator=generators())
    alone = [sample_tokens(logits[item : item + 1], top_k=20, generator=own) for item, own in enumerate(generators())]
    assert torch.equal(together, torch.cat(alone))
    with pytest.raises(ValueError, match="2 generators for 3 items; give one, or one per item"):
        sample_tokens(logits, generator=generators()[:2])
