"""For step 7 of a night: held-out prompts answered by one policy as production asks them, and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nightschool_nightly.examples.example import Example
from nightschool_nightly.gate.evaluation import Answers, Contender
from nightschool_nightly.rewards.items import Answer
from nightschool_nightly.rewards.rubric import Rubric
from nightschool_nightly.rollouts.sampler import Rollout, Sampler, SampleRequest, SaveAdapter, seed_of

_REFUSED = Rollout((), (), "", finished=True)
"""In place of an answer where the engine refuses the request: no policy has one, so the prompt is unscored for all."""


def answer_holdout(
    policy: Contender,
    sampler: Sampler,
    save: SaveAdapter | None,
    examples: Sequence[Example],
    rubrics: Mapping[str, Rubric],
    *,
    night: str,
) -> Answers:
    """Answer each held-out prompt once as serving would, with a seed that all policies share.

    The limit is production's too: an answer that it cuts off is scored as the user would have got it. `save` writes
    the policy's adapter, None for the base model; `night` is the manifest's digest. With the same seed two policies
    that agree on a token draw the same one, which makes their difference less noisy.
    """
    sampler.use_adapter(save)
    requests = [
        SampleRequest(
            prompt_ids=example.prompt_ids,
            num_samples=1,
            max_tokens=example.max_tokens,
            temperature=example.temperature,
            seed=seed_of(night, "holdout", example.id),
            top_p=example.top_p,
            stop=example.stop,
            others=example.others,
        )
        for example in examples
    ]
    rollouts = [answers[0] if answers else _REFUSED for answers in sampler.sample(requests)]
    rewards = tuple(
        None if rollout is _REFUSED else rubrics[example.task].score(example, Answer(rollout.text)).reward
        for example, rollout in zip(examples, rollouts, strict=True)
    )
    cut = tuple(not rollout.finished for rollout in rollouts)
    return Answers(policy, tuple(rollout.text for rollout in rollouts), rewards, cut)
