"""Words as conditions, learned without a tokenizer."""

import pytest
import torch

from stable_audio_tools.models.conditioners.text import WordsConditioner, hash_pieces, split_words


def test_texts_are_split_into_words_and_marks_in_lower_case() -> None:
    assert split_words("Deep, dark BASS\n(90 BPM) é ﬁ") == [
        "deep",
        ",",
        "dark",
        "bass",
        "(",
        "90",
        "bpm",
        ")",
        "é",
        "fi",
    ]
    assert split_words("") == []


def test_words_hash_to_the_same_rows_in_every_process() -> None:
    assert hash_pieces("bass", 8192) == (2864, 7437, 7228, 4790, 6277)
    assert len(hash_pieces("a", 8192)) == 2


def test_each_word_is_one_token_behind_a_start() -> None:
    torch.manual_seed(0)
    conditioner = WordsConditioner(output_dim=16, max_length=4)
    tokens, mask = conditioner(["deep bass", "", "one two three four five"])
    assert tokens.shape == (3, 5, 16)
    assert mask is not None and mask.sum(1).tolist() == [3, 1, 5]
    assert not tokens[~mask].any()


def test_a_text_does_not_depend_on_its_batch() -> None:
    conditioner = WordsConditioner(output_dim=16)
    together, _ = conditioner(["deep bass", "a much longer text than the other one"])
    alone, _ = conditioner(["deep bass"])
    torch.testing.assert_close(together[:1, : alone.shape[1]], alone)


def test_words_that_share_letters_resemble_each_other() -> None:
    torch.manual_seed(0)
    conditioner = WordsConditioner(output_dim=256)
    words, _ = conditioner(["drumming", "drummer", "violins"])
    known, unseen, other = (words[number, 1] - conditioner.positions.weight[1] for number in range(3))
    assert torch.cosine_similarity(known, unseen, dim=0) > 0.4 > torch.cosine_similarity(known, other, dim=0) + 0.2


def test_the_vectors_are_learned() -> None:
    torch.manual_seed(0)
    conditioner = WordsConditioner(output_dim=8)
    optimizer = torch.optim.Adam(conditioner.parameters(), lr=0.05)
    target = torch.tensor([1.0, -1.0])
    losses = []
    for _ in range(60):
        tokens, _ = conditioner(["loud drums", "quiet drums"])
        loss = (tokens.mean((1, 2)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.05 * losses[0]


def test_what_is_not_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="a text condition must be a string, got 3"):
        WordsConditioner(output_dim=8)([3])
