"""Groups from pairs."""

import random
from itertools import combinations

import pytest

from stable_audio_tools.dedup.copies import complete_link, single_link


def test_chains_are_one_group_or_two() -> None:
    """a-b-c-d is a chain; a and c were never a pair."""
    pairs, similarity = [(0, 1), (1, 2), (2, 3)], [0.97, 0.99, 0.98]
    assert single_link(5, pairs) == [[0, 1, 2, 3]]
    assert complete_link(5, pairs, similarity) == [[1, 2]]
    assert complete_link(5, pairs, [0.99, 0.97, 0.98]) == [[0, 1], [2, 3]]


def test_whole_groups_are_the_same_either_way() -> None:
    pairs = [*combinations((0, 4, 7), 2), *combinations((1, 2), 2)]
    assert single_link(9, pairs) == complete_link(9, pairs, [0.9] * len(pairs)) == [[0, 4, 7], [1, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_pairs_does_not_matter_and_every_two_are_a_pair(seed: int) -> None:
    rng = random.Random(seed)
    pairs = [pair for pair in combinations(range(14), 2) if rng.random() < 0.4]
    similarity = {pair: rng.choice([0.95, 0.96, 0.97]) for pair in pairs}
    mixed = rng.sample(pairs, len(pairs))
    groups = complete_link(14, pairs, [similarity[pair] for pair in pairs])
    assert groups == complete_link(14, mixed, [similarity[pair] for pair in mixed])
    assert all(pair in similarity for group in groups for pair in combinations(group, 2))
    assert single_link(14, pairs) == single_link(14, mixed)


def test_no_pair_no_group() -> None:
    assert single_link(4, []) == complete_link(4, [], []) == []
