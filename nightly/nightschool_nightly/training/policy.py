"""The policy that learns: a frozen base model with one LoRA adapter, and its forward pass over a token tree.

Base weights stay in their serving type (bf16 by default); the LoRA matrices and their optimizer state are fp32. The adapter is
saved in the serving type, so what the gate measures is what is served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nightschool.errors import NightError
from nightschool.registry.release import ADAPTER_CONFIG, WEIGHTS
from nightschool_nightly.training import tree_attention
from nightschool_nightly.training.lora import add_lora, disabled, linear_targets
from nightschool_nightly.training.tree import TokenTree

_PREFIX = "base_model.model."
# All linear layers of the blocks and nothing else: adapters on embeddings or the output layer cannot be served on every backend.
_SKIPPED = frozenset({"lm_head", "embed_tokens"})


class Policy:
    """A base model with one trainable adapter on all linear layers."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, rank: int, alpha: int, seed: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)  # the A matrices are drawn below
        self.dtype, self.rank, self.alpha = dtype, rank, alpha
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=tree_attention.register())
        model.to(self.device).eval()
        self.targets = linear_targets(model, skip=_SKIPPED)
        self.layers = add_lora(model, frozenset(self.targets), rank=rank, alpha=alpha)
        self.body, self.head = model.model, model.lm_head
        self.parameters: dict[str, torch.nn.Parameter] = {}
        for name, layer in self.layers.items():
            self.parameters[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A
            self.parameters[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B

    # --- forward --------------------------------------------------------------------------------------------------------
    def hidden(self, input_ids: Tensor, position_ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Last hidden states [B, L, H] of `input_ids` [B, L] under a boolean mask [B, L, L]."""
        with self._autocast():
            bias = torch.zeros(mask.shape, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
            output = self.body(
                input_ids.to(self.device),
                position_ids=position_ids.to(self.device),
                attention_mask=bias[:, None].to(self.device),
                use_cache=False,
                **options,
            )
        states: Tensor = output.last_hidden_state
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits of hidden states [..., H]."""
        with self._autocast():
            logits: Tensor = self.head(hidden)
        return logits.float()

    def tree_logits(self, tree: TokenTree) -> Tensor:
        """fp32 logits [P, V] of the rows of a packed tree that predict something."""
        plan = tree_attention.plan_attention(tree.end_L).to(self.device)
        unused = torch.ones(1, 1, 1, dtype=torch.bool)
        hidden_LH = self.hidden(tree.input_ids_L[None], tree.position_ids_L[None], unused, tree_plan=plan)[0]
        return self.logits(hidden_LH[tree.rows_P.to(self.device)])

    def tree_logprobs(self, tree: TokenTree, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of every completion token [N], with gradient, and the entropy behind each [N], without."""
        logits_PV = self.tree_logits(tree)
        if temperature != 1.0:
            logits_PV = logits_PV / temperature
        normaliser_P = torch.logsumexp(logits_PV, dim=-1)
        row_E, token_E = tree.edge_row_E.to(self.device), tree.edge_token_E.to(self.device)
        logprobs_E = logits_PV[row_E, token_E] - normaliser_P[row_E]
        with torch.no_grad():
            weighted_PV = torch.exp_(logits_PV - normaliser_P[:, None]).mul_(logits_PV)
            entropy_P = normaliser_P - weighted_PV.sum(-1)
        return logprobs_E.cpu()[tree.edges_N], entropy_P[row_E].cpu()[tree.edges_N]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside, the adapter is off: this is the base model."""
        with disabled(self.layers):
            yield

    # --- adapter in and out ---------------------------------------------------------------------------------------------
    def load(self, weights: Path) -> None:
        """Continue from the adapter in `weights`."""
        tensors = load_file(weights)
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: p.shape for name, p in self.parameters.items()}:
            raise NightError(f"the adapter in {weights} has other matrices than rank {self.rank} on {', '.join(self.targets)}")
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[name].to(parameter))

    def state(self) -> dict[str, Tensor]:
        """The adapter's matrices in fp32, by their file name."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def save(self, folder: Path) -> None:
        """Write the adapter as vLLM and PEFT read it, in the serving type; `NightError` if a number in it is not finite."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().to("cpu", self.dtype).contiguous() for name, p in self.parameters.items()}
        if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            raise NightError(f"{len(broken)} adapter matrices hold numbers that are not finite, first {broken[0]}")
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": list(self.targets),
        }
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))
