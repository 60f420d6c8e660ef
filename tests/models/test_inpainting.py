"""Random masks: kinds, where they lie, what they keep, and the published order of draws."""

import random

import pytest
import torch

from stable_audio_tools.models.inpainting import MaskType, random_inpaint_mask

ONLY = {MaskType.RANDOM_SEGMENTS: (1, 0, 0), MaskType.FULL_MASK: (0, 1, 0), MaskType.CAUSAL_MASK: (0, 0, 1)}


def draw(kind, lengths, frames=40, seed=0, **options):
    latents = torch.randn(len(lengths), 3, frames)
    real = torch.arange(frames) < torch.tensor(lengths)[:, None]
    masked, mask = random_inpaint_mask(
        latents, real, mask_type_probabilities=ONLY[kind], rng=random.Random(seed), **options
    )
    assert mask.shape == (len(lengths), 1, frames) and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(masked, latents * mask)
    return mask[:, 0]


def test_a_full_mask_takes_the_padding_too():
    assert not draw(MaskType.FULL_MASK, [40, 7, 0]).any()


def test_a_causal_mask_keeps_a_beginning_and_the_padding():
    for length, row in zip([40, 25, 0] * 30, draw(MaskType.CAUSAL_MASK, [40, 25, 0] * 30)):
        kept = row[:length]
        assert torch.equal(kept, kept.sort(descending=True).values)
        assert row[length:].all()


def test_causal_masks_reach_from_nothing_to_everything():
    kept = {int(row.sum()) for row in draw(MaskType.CAUSAL_MASK, [3] * 300, frames=3)}
    assert kept == {0, 1, 2, 3}


@pytest.mark.parametrize("most", [1, 4])
def test_segments_lie_in_what_is_real(most):
    mask = draw(MaskType.RANDOM_SEGMENTS, [30] * 200, max_mask_segments=most)
    assert mask[:, 30:].all()
    taken = (mask == 0).int()
    starts = taken[:, 0] + (taken.diff(dim=1) == 1).sum(dim=1)
    assert starts.min() >= 1 and starts.max() == most  # they may touch, so fewer than drawn, never more


def test_segments_of_an_item_without_real_frames_take_nothing():
    assert draw(MaskType.RANDOM_SEGMENTS, [0]).all()


def test_more_segments_than_frames():
    assert not draw(MaskType.RANDOM_SEGMENTS, [1] * 20, max_mask_segments=10)[:, 0].any()


def test_the_draws_of_a_seed_are_those_of_published_training():
    random.seed(5)
    real = torch.arange(12) < torch.tensor([12, 9, 4, 12, 1])[:, None]
    _, mask = random_inpaint_mask(torch.ones(5, 1, 12), real, 3, [0.5, 0.1, 0.4])
    assert ["".join(str(int(value)) for value in row) for row in mask[:, 0]] == RECORDED


RECORDED = ["111111111110", "000000001111", "100011111111", "100000001111", "000000000000"]


def test_latents_keep_their_type():
    masked, _ = random_inpaint_mask(torch.ones(2, 3, 8, dtype=torch.float16), torch.ones(2, 8))
    assert masked.dtype == torch.float16


@pytest.mark.parametrize("shape", [(2, 1, 8), (2, 7), (1, 8)])
def test_a_mask_of_the_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"padding_masks must be shaped \(batch, frames\) = \(2, 8\), got"):
        random_inpaint_mask(torch.ones(2, 3, 8), torch.ones(shape))


@pytest.mark.parametrize(
    ("probabilities", "sentence"),
    [([0.5, 0.5], "must have 3 or 4 entries"), ([0.5, 0.5, 0.5], "sum to 1"), ([1.5, -0.5, 0], "must be at least 0")],
)
def test_wrong_probabilities(probabilities, sentence):
    with pytest.raises(ValueError, match=sentence):
        random_inpaint_mask(torch.ones(1, 1, 4), torch.ones(1, 4), mask_type_probabilities=probabilities)


def test_some_segment_must_be_possible():
    with pytest.raises(ValueError, match="max_mask_segments is 0"):
        random_inpaint_mask(torch.ones(1, 1, 4), torch.ones(1, 4), max_mask_segments=0)
