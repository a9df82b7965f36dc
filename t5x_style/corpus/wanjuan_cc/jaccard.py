"""Exact Jaccard similarity of many pairs of sets, and the components that pairs make.

Sets are compared where they lie together: pairs of one component in one block, in which values are
numbered while they are in the cache. What is found does not depend on the blocks, nor on hashes
beyond those that are the values.

Shapes: D sets, P pairs, V values of the sets of a block.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

_VALUES_PER_BLOCK = 1 << 16
_PAIRS_PER_PRODUCT = 1 << 11


def components(pairs_P2: np.ndarray, num_members: int) -> tuple[int, np.ndarray]:
    """Returns the number of connected components, and int [num_members], each member's."""
    graph = sparse.coo_matrix(
        (np.ones(len(pairs_P2), bool), (pairs_P2[:, 0], pairs_P2[:, 1])),
        shape=(num_members, num_members),
    )
    return connected_components(graph, directed=False)


def jaccard_of_pairs(sets: Sequence[np.ndarray], pairs_P2: np.ndarray) -> np.ndarray:
    """Returns the exact Jaccard similarity, float64 [P], of pairs of sorted sets of numbers."""
    sizes_D = np.fromiter(map(len, sets), np.int64, len(sets))
    common_P = np.zeros(len(pairs_P2), np.int64)
    for block in _blocks(sizes_D, pairs_P2):
        members, places = np.unique(pairs_P2[block], return_inverse=True)
        of_block = [sets[member] for member in members.tolist()]
        common_P[block] = _common(of_block, places.reshape(-1, 2))
    union_P = sizes_D[pairs_P2].sum(axis=1) - common_P
    return common_P / np.maximum(union_P, 1)


def _blocks(sizes_D: np.ndarray, pairs_P2: np.ndarray) -> Iterable[np.ndarray]:
    """Cuts pairs into blocks of whole components: int64 arrays of pairs' numbers."""
    if not len(pairs_P2):
        return []
    paired_D = np.zeros_like(sizes_D)
    paired_D[pairs_P2] = sizes_D[pairs_P2]
    num_components, component_D = components(pairs_P2, len(sizes_D))
    ends = np.cumsum(np.bincount(component_D, paired_D, num_components))
    block_P = (ends // _VALUES_PER_BLOCK)[component_D[pairs_P2[:, 0]]]
    by_block = np.argsort(block_P, kind="stable")
    return np.split(by_block, np.flatnonzero(np.diff(block_P[by_block])) + 1)


def _common(sets: Sequence[np.ndarray], pairs_P2: np.ndarray) -> np.ndarray:
    """Returns int [P]: how many values the sets of each pair have in common."""
    values_V = np.concatenate(sets)
    order = np.argsort(values_V)
    sorted_V = values_V[order]
    numbers_V = np.empty(len(order), np.int64)
    numbers_V[order] = np.append(0, np.cumsum(sorted_V[1:] != sorted_V[:-1]))[: len(order)]
    bounds = np.cumsum([0, *map(len, sets)])
    # One row for each set, a one in the column of each of its values.
    matrix = sparse.csr_matrix((np.ones(len(order), np.int8), numbers_V, bounds))
    common = []
    for start in range(0, len(pairs_P2), _PAIRS_PER_PRODUCT):
        first, second = pairs_P2[start : start + _PAIRS_PER_PRODUCT].T
        common.append(np.diff(matrix[first].multiply(matrix[second]).indptr))
    return np.concatenate(common)
