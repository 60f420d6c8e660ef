"""From pairs of copies to groups of copies."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def single_link(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of two or more that chains of pairs connect."""
    if not pairs:
        return []
    first, second = np.asarray(pairs).T
    graph = coo_matrix((np.ones(len(pairs), bool), (first, second)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


def complete_link(count: int, pairs: Sequence[tuple[int, int]], similarity: Sequence[float]) -> list[list[int]]:
    """Groups in which every two are a pair: the most similar are joined first, and chains are not followed."""
    known = {frozenset(pair) for pair in pairs}
    group = {member: [member] for pair in pairs for member in pair}
    for _, first, second in sorted((-value, *pair) for pair, value in zip(pairs, similarity)):
        one, other = group[first], group[second]
        if one is not other and all(frozenset((a, b)) in known for a in one for b in other):
            joined = one + other
            group.update(dict.fromkeys(joined, joined))
    unique = {min(members): sorted(members) for members in group.values() if len(members) > 1}
    return [unique[first] for first in sorted(unique)]
