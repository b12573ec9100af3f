"""What a night does when its last step is over the KL budget: it looks for a smaller change that keeps it.

The budget is a constraint and not only a verdict: a night that learned its task and moved too far has a smaller
version of the same change that may be good enough. Candidates are

- the largest share of tonight's change that keeps the budget (`training.share_of_change`), and
- the adapters of earlier steps that kept it, the newest few.

One of them is chosen, by the mean reward on prompts of a share of the training users. Held-out users have no part in
it, so the gate's figure stays that of one candidate that was not picked by it. The night has trained with those users,
so the figures flatter all candidates alike; users who are kept out of training for a rescue that most nights do not
need would cost every night.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from nightschool_nightly.examples.example import Example
from nightschool_nightly.gate.evaluation import Alternative
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.share_of_change import share_of_change

State = Mapping[str, torch.Tensor]

# From measurements on two tenants (shared change, new messages): at 0.5 most of the gain is left at a fifth of the KL.
SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)
_VALIDATION_SHARE = 0.25  # of the training users
_MOST_PROMPTS = 64  # each candidate answers them once; two that differ by 0.1 are told apart two times in three


def validation_examples(train: Sequence[Example], *, seed: int) -> list[Example]:
    """At most 64 prompts of a quarter of the training users, whom the seed draws."""
    users = sorted({example.cluster for example in train})
    drawn = random.Random(seed).sample(users, math.ceil(_VALIDATION_SHARE * len(users)))  # noqa: S311 -- a choice that a night repeats
    chosen = set(drawn)
    return [example for example in train if example.cluster in chosen][:_MOST_PROMPTS]


class Rescue:
    """Finds the best smaller change of one night."""

    def __init__(
        self,
        policy: Policy,
        parent: State,
        *,
        kl_budget: float,
        measure_kl: Callable[[], float],
        validate: Callable[[], Sequence[float | None]],
    ) -> None:
        """`policy` holds what was learned and `parent` what it began with.

        `measure_kl` and `validate` say the KL of the policy as it is, and its rewards on the validation prompts.
        """
        self._policy, self._parent, self._learned = policy, parent, policy.state()
        self._kl_budget, self._measure_kl, self._validate = kl_budget, measure_kl, validate

    def choose(self, last_step: int, last_kl: float, earlier: Sequence[tuple[int, float, State]]) -> tuple[Alternative, ...]:
        """What was looked at, best first; the policy is then the first of them.

        `earlier` are the steps before the last with their KL and their adapter. When nothing keeps the budget the policy
        is as the last step left it.
        """
        found = list(self._weigh(last_step, last_kl, earlier))
        # A candidate without a single scored answer is the worst of those that keep the budget.
        found.sort(key=lambda item: (not self._keeps(item[0]), -_known(item[0].reward), item[0].kl))
        best, state = found[0] if self._keeps(found[0][0]) else (None, self._learned)
        self._policy.put(state)
        return tuple(
            Alternative(each.step, each.share, each.kl, each.reward, each.num_prompts, chosen=each is best) for each, _ in found
        )

    def _weigh(
        self, last_step: int, last_kl: float, earlier: Sequence[tuple[int, float, State]]
    ) -> Iterator[tuple[Alternative, State]]:
        for share in SHARES:
            state: State = self._learned if share == 1 else share_of_change(self._parent, self._learned, share)
            self._policy.put(state)
            kl = last_kl if share == 1 else self._measure_kl()
            alternative = self._validated(last_step, share, kl)
            yield alternative, state
            if self._keeps(alternative):
                break  # smaller shares of the same change give less
        for step, kl, state in earlier:
            if kl <= self._kl_budget:
                self._policy.put(state)
                yield self._validated(step, 1.0, kl), state

    def _validated(self, step: int, share: float, kl: float) -> Alternative:
        rewards = [reward for reward in self._validate() if reward is not None]
        mean = math.fsum(rewards) / len(rewards) if rewards else None
        return Alternative(step, share, kl, mean, len(rewards), chosen=False)

    def _keeps(self, alternative: Alternative) -> bool:
        return alternative.kl <= self._kl_budget


def _known(reward: float | None) -> float:
    return -1.0 if reward is None else reward
