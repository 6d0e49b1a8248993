"""Labels as a tree of tokens, so that one pass over a query scores all of them.

Written one after the other, every label would need its own copy of the query. Here the labels'
tokens stand behind a single <|answer|> as a prefix tree: a token sees the query and its own
ancestors only, and its rotary position is its depth. Its output is then the same as if its label
stood there alone (tree attention: Miao et al., SpecInfer, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelTree:
    """A prefix tree of K nodes, parents before children; the root is <|answer|> and no node."""

    labels: NDArray[np.int64]  # [n], which labels it holds
    # [n], the last node of each label; -1: the root (a label without tokens)
    ends: NDArray[np.int64]
    tokens: NDArray[np.int64]  # [K], token id
    parents: NDArray[np.int64]  # [K], parent node; -1: the root
    depths: NDArray[np.int64]  # [K], tokens between the root and this node
    sees: NDArray[np.bool_]  # [K, K], sees[i, j]: node j is node i or an ancestor of it


def build_trees(labels: Sequence[Sequence[int]], max_nodes: int) -> list[LabelTree]:
    """Trees that hold every label of ``labels`` (token ids) once.

    Neighbours in lexicographic order share prefixes, so they are put in the same tree. A tree has
    at most ``max_nodes`` nodes, unless a single label is longer.
    """
    trees: list[LabelTree] = []
    nodes: dict[tuple[int, ...], int] = {}
    held: list[int] = []
    for label in sorted(range(len(labels)), key=lambda number: tuple(labels[number])):
        ids = tuple(labels[label])
        prefixes = [ids[: n + 1] for n in range(len(ids))]
        if held and len(nodes) + sum(prefix not in nodes for prefix in prefixes) > max_nodes:
            trees.append(_tree(nodes, held, labels))
            nodes, held = {}, []
        for prefix in prefixes:
            nodes.setdefault(prefix, len(nodes))
        held.append(label)
    if held:
        trees.append(_tree(nodes, held, labels))
    return trees


def _tree(
    nodes: dict[tuple[int, ...], int], held: list[int], labels: Sequence[Sequence[int]]
) -> LabelTree:
    parents = [nodes.get(path[:-1], -1) for path in nodes]
    sees = np.eye(len(nodes), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    return LabelTree(
        labels=np.array(held, np.int64),
        ends=np.array([nodes.get(tuple(labels[label]), -1) for label in held], np.int64),
        tokens=np.array([path[-1] for path in nodes], np.int64),
        parents=np.array(parents, np.int64),
        depths=np.array([len(path) - 1 for path in nodes], np.int64),
        sees=sees,
    )
