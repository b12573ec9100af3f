"""Packs a batch of rollouts as one token tree, so that every shared prefix is computed once.

All sequences of a batch go into one trie: system prompt -> few-shot examples -> message -> completion, merged wherever
tokens are equal, completions included. The rows of the trie are in depth-first order, so the descendants of row j are
exactly the rows j+1 .. end[j]-1, and row i may attend to row j if and only if j <= i < end[j]: one integer for each
row is the whole mask. The position of a token is its depth. (Sharing the prompt of a group: Prefix Grouper, arXiv
2506.05433. A trie shares every prefix of the whole batch, across groups too.)

A next-token prediction is an edge: a row, and the token that follows it. Equal edges of several rollouts are computed
once, and each rollout uses them with its own weight. So merging equal completion tokens changes no gradient: the
log-probability is the same number, and the weights add up.

Shapes: L rows of the tree, one for each token in it; P rows that predict something; E distinct edges; N trained tokens
over all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence of a batch: a prompt, and the completion whose tokens are scored."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A packed batch. Build with `pack_tree`."""

    input_ids_L: Tensor
    """Token of each row."""
    position_ids_L: Tensor
    """Depth of each row: its position in every sequence that runs through it."""
    end_L: Tensor
    """One past the last descendant of each row."""
    rows_P: Tensor
    """Rows whose hidden state predicts at least one edge."""
    edge_row_E: Tensor
    """For each edge, the index into `rows_P` that predicts it."""
    edge_token_E: Tensor
    """For each edge, the token it predicts."""
    edges_N: Tensor
    """For each completion token of each sample, in order, its edge."""
    lengths: tuple[int, ...]
    """Completion length of each sample; they add up to N."""
    padded_tokens: int
    """Tokens that the same batch takes as padded rows: samples times the longest."""

    def __len__(self) -> int:
        return len(self.input_ids_L)

    def mask_LL(self) -> Tensor:
        """Boolean attention mask [L, L]: row i may look at column j if j is i or an ancestor of i."""
        row = torch.arange(len(self))
        return (row[None, :] <= row[:, None]) & (row[:, None] < self.end_L[None, :])


class _Node:
    """A token after a given prefix; its row is known once the trie is complete."""

    __slots__ = ("children", "depth", "row", "token")

    def __init__(self, token: int, depth: int) -> None:
        self.token, self.depth, self.row = token, depth, -1
        self.children: dict[int, _Node] = {}


def pack_tree(samples: Sequence[Sample]) -> TokenTree:
    """Pack `samples` into one tree; `ValueError` for an empty prompt: nothing would predict the token after it."""
    root = _Node(-1, -1)
    edges: dict[tuple[int, int], int] = {}
    nodes: list[_Node] = []  # by edge: the node that predicts it
    tokens: list[int] = []  # by edge: the token predicted
    used: list[int] = []  # by completion token: its edge
    for sample in samples:
        if not sample.prompt_ids:
            raise ValueError("a sample has an empty prompt; at least one token (BOS) must come before a completion")
        node = _insert(root, sample.prompt_ids)
        for position, token in enumerate(sample.completion_ids):
            edge = edges.setdefault((id(node), token), len(edges))
            if edge == len(nodes):
                nodes.append(node)
                tokens.append(token)
            used.append(edge)
            # The last token of a completion predicts nothing, so it is never an input.
            if position + 1 < len(sample.completion_ids):
                node = _insert(node, (token,))
    ids, depths, ends = _depth_first(root)
    predicting = sorted({node.row for node in nodes})
    index = {row: place for place, row in enumerate(predicting)}
    return TokenTree(
        input_ids_L=torch.tensor(ids, dtype=torch.long),
        position_ids_L=torch.tensor(depths, dtype=torch.long),
        end_L=torch.tensor(ends, dtype=torch.long),
        rows_P=torch.tensor(predicting, dtype=torch.long),
        edge_row_E=torch.tensor([index[node.row] for node in nodes], dtype=torch.long),
        edge_token_E=torch.tensor(tokens, dtype=torch.long),
        edges_N=torch.tensor(used, dtype=torch.long),
        lengths=tuple(len(sample.completion_ids) for sample in samples),
        padded_tokens=len(samples) * max((len(s.prompt_ids) + len(s.completion_ids) for s in samples), default=0),
    )


def _insert(node: _Node, tokens: Sequence[int]) -> _Node:
    for token in tokens:
        child = node.children.get(token)
        if child is None:
            child = node.children[token] = _Node(token, node.depth + 1)
        node = child
    return node


def _depth_first(root: _Node) -> tuple[list[int], list[int], list[int]]:
    """Number the nodes in depth-first order; token, depth and end of each row.

    With a stack of its own: a prompt is deeper than Python's recursion limit. Each node is taken twice, the second
    time when all its descendants have a row.
    """
    ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    stack: list[tuple[_Node, bool]] = [(child, False) for child in reversed(root.children.values())]
    while stack:
        node, left = stack.pop()
        if left:
            ends[node.row] = len(ids)
            continue
        node.row = len(ids)
        ids.append(node.token)
        depths.append(node.depth)
        ends.append(0)
        stack.append((node, True))
        stack.extend((child, False) for child in reversed(node.children.values()))
    return ids, depths, ends
