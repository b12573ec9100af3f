"""A packed tree against the same sequences one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nightschool_nightly.training.loss import MemberTerms, policy_loss
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, TokenTree, pack_tree

SYSTEM = (1, 5, 9, 2, 7)
BATCHES: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "one": [(SYSTEM, (3, 4))],
    "no completion tokens": [(SYSTEM, ()), (SYSTEM, (8,))],
    "one completion token": [(SYSTEM, (3,)), (SYSTEM, (4,)), (SYSTEM, (3,))],
    "same opening": [(SYSTEM, (3, 4, 5)), (SYSTEM, (3, 4, 6, 7)), (SYSTEM, (3, 8))],
    "same completion": [(SYSTEM, (3, 4, 5)), (SYSTEM, (3, 4, 5)), (SYSTEM, (3, 4, 5)), (SYSTEM, (9,))],
    "completion starts another": [(SYSTEM, (3, 4)), (SYSTEM, (3, 4, 5, 6))],
    "unequal groups with shared prefix": [((*SYSTEM, 11), (3, 4)), ((*SYSTEM, 12, 13), (3,)), ((*SYSTEM, 12, 13), (3, 4, 5))],
    "groups without shared prefix": [((20, 21), (3, 4)), ((30,), (3, 4, 5)), ((30,), ())],
    "prompt is another's prompt and completion": [((1, 2), (3, 4)), ((1, 2, 3, 4), (5, 6)), ((1, 2, 3), (4, 7))],
}
rows = st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.lists(st.integers(0, 2), max_size=5))
batches = st.lists(rows, min_size=1, max_size=8).map(lambda found: [Sample(tuple(p), tuple(c)) for p, c in found])


def plain_logprobs(policy: Policy, sample: Sample, *, temperature: float) -> Tensor:
    """Log-probabilities of a sample's completion, computed from its own row under a causal mask."""
    ids = torch.tensor([*sample.prompt_ids, *sample.completion_ids])
    mask = torch.ones(1, len(ids), len(ids), dtype=torch.bool).tril()
    logits = policy.logits(policy.hidden(ids[None], torch.arange(len(ids))[None], mask)[0]) / temperature
    first = len(sample.prompt_ids)
    predictions = torch.log_softmax(logits[first - 1 : len(ids) - 1], -1)
    return predictions.gather(1, ids[first:, None])[:, 0]


def gradient(policy: Policy, objective: Tensor) -> Tensor:
    """The gradient over all LoRA matrices as one float64 vector."""
    found = torch.autograd.grad(objective, list(policy.parameters.values()))
    return torch.cat([part.flatten().double() for part in found])


def assert_same_direction_and_size(found: Tensor, expected: Tensor) -> None:
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) >= 0.9999
    torch.testing.assert_close(found.norm(), expected.norm(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", BATCHES)
def test_a_tree_gives_the_numbers_of_plain_rows(name: str, make_policy: Callable[..., Policy]) -> None:
    """Log-probabilities and LoRA gradients of a packed batch are those of its sequences computed one by one."""
    policy, samples = make_policy(moved=0.2), [Sample(*row) for row in BATCHES[name]]
    tree = pack_tree(samples)
    packed_N, _ = policy.tree_logprobs(tree, temperature=0.7)
    plain_N = torch.cat([plain_logprobs(policy, sample, temperature=0.7) for sample in samples])
    torch.testing.assert_close(packed_N, plain_N, rtol=1e-5, atol=1e-5)
    # Members disagree on equal tokens.
    weights_N = torch.randn(len(plain_N), generator=torch.Generator().manual_seed(1))
    assert_same_direction_and_size(gradient(policy, packed_N @ weights_N), gradient(policy, plain_N @ weights_N))


def test_equal_completions_add_their_advantages_up(make_policy: Callable[..., Policy]) -> None:
    """Equal completions share one path through the tree, which pulls with the sum of their advantages."""
    policy, sample = make_policy(moved=0.2), Sample((1, 2), (3, 4))
    tree = pack_tree([sample, sample, Sample((1, 2), (5,))])
    assert len(tree.edge_token_E) == 3
    logprobs_N, _ = policy.tree_logprobs(tree, temperature=1.0)
    members = [MemberTerms(advantage, None) for advantage in (1.0, -0.25, 0.0)]
    loss, _ = policy_loss(logprobs_N, tree.lengths, members, total_tokens=5)
    alone_N = plain_logprobs(policy, sample, temperature=1.0)
    assert_same_direction_and_size(gradient(policy, loss), gradient(policy, -0.75 * alone_N.sum() / 5))


def test_any_split_into_trees_has_the_same_gradient(make_policy: Callable[..., Policy]) -> None:
    """A batch in one tree and the same batch in several trees give one gradient."""
    policy = make_policy(moved=0.2)
    samples = [Sample(*row) for rows in BATCHES.values() for row in rows if row[1]]
    members = [MemberTerms((-1) ** n * (n + 1) / 10, (-3.0,) * len(s.completion_ids)) for n, s in enumerate(samples)]
    total = sum(len(sample.completion_ids) for sample in samples)

    def in_trees_of(size: int) -> Tensor:
        whole = torch.zeros(())
        for start in range(0, len(samples), size):
            part = slice(start, start + size)
            tree = pack_tree(samples[part])
            logprobs_N, _ = policy.tree_logprobs(tree, temperature=1.0)
            whole = whole + policy_loss(logprobs_N, tree.lengths, members[part], total_tokens=total)[0]
        return gradient(policy, whole)

    for size in (1, 2, 5):
        assert_same_direction_and_size(in_trees_of(size), in_trees_of(len(samples)))


@settings(max_examples=60, deadline=None)
@given(batches)
def test_every_row_sees_itself_and_its_ancestors_only(samples: Sequence[Sample]) -> None:
    """Rows are the distinct prefixes of the inputs; each sees its own prefixes and has its depth as position."""
    tree = pack_tree(samples)
    mask_LL = tree.mask_LL()
    paths = paths_of(tree)
    inputs = [(*s.prompt_ids, *s.completion_ids[:-1]) for s in samples]
    assert sorted(paths) == sorted({row[:end] for row in inputs for end in range(1, len(row) + 1)})
    for i, mine in enumerate(paths):
        assert [bool(seen) for seen in mask_LL[i]] == [other == mine[: len(other)] for other in paths]
        assert int(tree.position_ids_L[i]) == len(mine) - 1


@settings(max_examples=60, deadline=None)
@given(batches)
def test_every_completion_token_is_predicted_from_what_came_before_it(samples: Sequence[Sample]) -> None:
    """A completion token is predicted by the row of everything before it; the first one by the prompt's last token."""
    tree = pack_tree(samples)
    paths, edges = paths_of(tree), iter(tree.edges_N.tolist())
    for sample in samples:
        for position, token in enumerate(sample.completion_ids):
            edge = next(edges)
            row = int(tree.rows_P[tree.edge_row_E[edge]])
            assert paths[row] == (*sample.prompt_ids, *sample.completion_ids[:position])
            assert int(tree.edge_token_E[edge]) == token
    assert next(edges, None) is None


def paths_of(tree: TokenTree) -> list[tuple[int, ...]]:
    """For each row the tokens it sees, in order."""
    return [tuple(tree.input_ids_L[seen].tolist()) for seen in tree.mask_LL()]


def test_an_empty_prompt_is_refused() -> None:
    """A prompt without a token is an error that says what is missing."""
    with pytest.raises(ValueError, match="empty prompt; at least one token"):
        pack_tree([Sample((1,), (2,)), Sample((), (2,))])


def test_padded_tokens_are_samples_times_the_longest() -> None:
    """The figure to compare with is what padded rows would have taken."""
    tree = pack_tree([Sample((1, 2), (3,)), Sample((1, 2), (3, 4, 5)), Sample((1,), ())])
    assert tree.padded_tokens == 3 * 5
    assert len(tree) == 4  # 1 2 3 4: the 5 predicts nothing


def test_entropy_is_that_of_the_prediction(make_policy: Callable[..., Policy]) -> None:
    """The entropy beside each token is that of the distribution it was drawn from, at the same temperature."""
    policy, tree = make_policy(moved=0.2), pack_tree([Sample((1, 2), (3,)), Sample((1, 2), (4,))])
    _, entropy_N = policy.tree_logprobs(tree, temperature=0.5)
    chances_V = (policy.tree_logits(tree)[0].detach() / 0.5).softmax(-1)
    torch.testing.assert_close(entropy_N, -(chances_V * chances_V.log()).sum().expand(2))
