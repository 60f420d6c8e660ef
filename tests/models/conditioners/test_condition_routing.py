"""From conditions by id to tokens and vectors."""

import pytest
import torch

from stable_audio_tools.models.conditioners import join_tokens, join_vectors

CONDITIONS = {
    "text": (torch.randn(2, 5, 4), torch.tensor([[True] * 5, [True, True, False, False, False]])),
    "number": [torch.randn(2, 1, 4), torch.ones(2, 1)],
    "vector": (torch.randn(2, 4), None),
    "encoded": [torch.randn(2, 3, 4), None],
    "bare": [torch.randn(2, 2, 4)],
}


def test_tokens_stand_one_after_the_other_with_their_masks():
    tokens, mask = join_tokens(CONDITIONS, ["text", "number", "vector", "encoded", "bare"])
    assert tokens.shape == (2, 5 + 1 + 1 + 3 + 2, 4) and mask.dtype == torch.bool
    torch.testing.assert_close(tokens[:, :5], CONDITIONS["text"][0])
    torch.testing.assert_close(tokens[:, 6], CONDITIONS["vector"][0])
    assert torch.equal(mask[:, :5], CONDITIONS["text"][1]) and mask[:, 5:].all()


def test_vectors_stand_beside_each_other():
    vectors = join_vectors(CONDITIONS, ["number", "vector"])
    torch.testing.assert_close(vectors, torch.cat([CONDITIONS["number"][0][:, 0], CONDITIONS["vector"][0]], dim=1))


def test_nothing_of_nothing():
    assert join_tokens(CONDITIONS, []) is None and join_vectors({}, []) is None


def test_tokens_are_no_global_condition():
    with pytest.raises(ValueError, match="'text' has 5 tokens, and a global condition is one vector"):
        join_vectors(CONDITIONS, ["text"])


def test_a_missing_condition_is_named_with_those_that_were_given():
    with pytest.raises(ValueError, match=r"'mood' is missing \(conditions given: number, text\)"):
        join_tokens({key: CONDITIONS[key] for key in ("text", "number")}, ["mood"])
