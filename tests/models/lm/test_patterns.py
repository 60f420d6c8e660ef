"""Patterns: drawn layouts, round trips, and which code each logit predicts."""

import pytest
import torch

from stable_audio_tools.models.lm.patterns import delay, musiclm, pattern_by_name

NAMES = ["delay", "parallel", "unroll", "musiclm", "coarse_first"]

DRAWN = {  # frames 0..3 of three codebooks
    "parallel": (". 0 1 2 3", ". 0 1 2 3", ". 0 1 2 3"),
    "delay": (". 0 1 2 3 . .", ". . 0 1 2 3 .", ". . . 0 1 2 3"),
    "unroll": (
        ". 0 . . 1 . . 2 . . 3 . .",
        ". . 0 . . 1 . . 2 . . 3 .",
        ". . . 0 . . 1 . . 2 . . 3",
    ),
    "musiclm": (
        ". 0 . 1 . 2 . 3 . . . . .",
        ". . 0 . 1 . 2 . 3 . . . .",
        ". . . . . . . . . 0 1 2 3",
    ),
    "coarse_first": (". 0 1 2 3 . . . .", ". . . . . 0 1 2 3", ". . . . . 0 1 2 3"),
}


@pytest.mark.parametrize("name", NAMES)
def test_layouts(name):
    frames = torch.arange(4).expand(1, 3, 4)
    sequence = pattern_by_name(name, 3).get_pattern(4).build_sequence(frames, mask_token=9)[0]
    assert tuple(" ".join("." if code == 9 else str(int(code)) for code in row) for row in sequence) == DRAWN[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("codebooks", [1, 2, 3, 5])
@pytest.mark.parametrize("frames", [1, 6])
def test_sequences_revert_to_their_codes(name, codebooks, frames):
    pattern = pattern_by_name(name, codebooks).get_pattern(frames)
    codes = torch.randint(0, 99, (2, codebooks, frames))
    sequence = pattern.build_sequence(codes, mask_token=99)
    assert torch.equal(pattern.revert_sequence(sequence), codes)
    assert (sequence != 99).sum() == codes.numel() and (sequence[..., 0] == 99).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("codebooks", [1, 3, 4])
def test_a_logit_belongs_to_the_code_of_the_next_step(name, codebooks):
    """Logits that are the next step's codes themselves, one-hot, must come back as the codes."""
    pattern = pattern_by_name(name, codebooks).get_pattern(5)
    codes = torch.randint(0, 9, (2, codebooks, 5))
    sequence = pattern.build_sequence(codes, mask_token=9)
    next_step = torch.cat([sequence[..., 1:], sequence[..., :1]], dim=-1)
    logits, mask = pattern.revert_logits(torch.nn.functional.one_hot(next_step, 10).float())
    assert mask.all() and torch.equal(logits.argmax(-1), codes)


def test_training_drops_what_was_delayed_beyond_the_end():
    pattern = delay(3, 4)
    assert pattern.num_steps == 7 and pattern.num_training_steps == 5
    logits, mask = pattern.revert_logits(torch.zeros(1, 3, 5, 2))
    assert mask.tolist() == [[True] * 4, [True] * 3 + [False], [True] * 2 + [False] * 2]
    assert torch.equal(logits[0].isnan().all(-1), ~mask) and logits[0][mask].eq(0).all()


def test_delays_of_ones_own():
    assert delay(2, 3, [0, 4]).steps.tolist() == [[1, 2, 3], [5, 6, 7]]


def test_groups_that_do_not_divide():
    assert musiclm(3, 2).steps.tolist() == [[1, 3], [2, 4], [5, 6]]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step_of_a_frame(name):
    pattern = pattern_by_name(name, 3).get_pattern(4)
    assert [pattern.first_step(time) for time in range(4)] == pattern.steps.min(dim=0).values.tolist()


def test_wrong_shapes_and_names():
    with pytest.raises(ValueError, match=r"codes must be \(batch, 3 codebooks, 4 frames\), got \(2, 3, 5\)"):
        delay(3, 4).build_sequence(torch.zeros(2, 3, 5, dtype=torch.long), 9)
    with pytest.raises(ValueError, match="no pattern named 'delayed'; allowed: delay, parallel"):
        pattern_by_name("delayed", 3)
