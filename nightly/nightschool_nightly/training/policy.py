"""The policy that learns: a frozen base model with one LoRA adapter, and its forward pass over a token tree.

Base weights stay in the type they are served in (bf16 by default). The LoRA matrices and their optimizer state are
fp32: an update of a learning rate's size would be lost in the rounding of bf16. The adapter is saved in the type it is
served in, so what the gate measures is what is served.

Shapes: B rows, L tokens of a row or of a tree, H hidden size, V vocabulary; P, E and N as in `tree`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nightschool.errors import NightError
from nightschool_nightly.training import tree_attention
from nightschool_nightly.training.adapter_file import matrix_name, write_adapter
from nightschool_nightly.training.lora import add_lora, disabled, linear_targets
from nightschool_nightly.training.tree import TokenTree

# All linear layers of the blocks and nothing else: adapters on embeddings or the output layer cannot be served on
# every backend.
_SKIPPED = frozenset({"lm_head", "embed_tokens"})


class Policy:
    """A base model with one trainable adapter on all linear layers."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, rank: int, alpha: int, seed: int) -> None:
        """Load the base model in `folder` as `dtype`; `seed` draws the adapter, which changes nothing yet (B is 0)."""
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
        """The trainable matrices by their name in the adapter's file, in the order of the layers' names."""
        for name, layer in self.layers.items():
            self.parameters[matrix_name(name, "lora_A")] = layer.lora_A
            self.parameters[matrix_name(name, "lora_B")] = layer.lora_B

    # --- forward --------------------------------------------------------------------------------------------------------
    def hidden(self, input_ids_BL: Tensor, position_ids_BL: Tensor, mask_BLL: Tensor, **options: Any) -> Tensor:
        """Last hidden states [B, L, H]; row i of a boolean mask says which tokens token i may look at.

        A leading dimension of 1 in positions or mask stands for every row. `options` go to the attention layers.
        """
        with self._autocast():
            # The smallest finite number and not minus infinity: a row that sees nothing must not become NaN.
            bias_BLL = torch.zeros(mask_BLL.shape, dtype=self.dtype).masked_fill(~mask_BLL, torch.finfo(self.dtype).min)
            output = self.body(
                input_ids_BL.to(self.device),
                position_ids=position_ids_BL.to(self.device),
                attention_mask=bias_BLL[:, None].to(self.device),
                use_cache=False,
                **options,
            )
        states_BLH: Tensor = output.last_hidden_state
        return states_BLH

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits [..., V] of hidden states [..., H]."""
        with self._autocast():
            logits: Tensor = self.head(hidden)
        return logits.float()

    def tree_logits(self, tree: TokenTree) -> Tensor:
        """fp32 logits [P, V] of the rows of a packed tree that predict something."""
        plan = tree_attention.plan_attention(tree.end_L).to(self.device)
        unused_mask = torch.ones(1, 1, 1, dtype=torch.bool)  # the plan says who sees whom
        hidden_LH = self.hidden(tree.input_ids_L[None], tree.position_ids_L[None], unused_mask, tree_plan=plan)[0]
        # The output layer is a small model's largest product: only rows that predict a trained token go through it.
        return self.logits(hidden_LH[tree.rows_P.to(self.device)])

    def tree_logprobs(self, tree: TokenTree, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of every completion token [N] with gradient, and the entropy behind each [N]; in nats."""
        logits_PV = self.tree_logits(tree)
        if temperature != 1.0:
            logits_PV = logits_PV / temperature
        normalizer_P = torch.logsumexp(logits_PV, dim=-1)
        row_E, token_E = tree.edge_row_E.to(self.device), tree.edge_token_E.to(self.device)
        # log softmax(x)[t] = x[t] - logsumexp(x), only at the tokens that are needed and not for all of [P, V].
        logprobs_E = logits_PV[row_E, token_E] - normalizer_P[row_E]
        with torch.no_grad():
            # Entropy = logsumexp(x) - sum_v p_v x_v. In place, because [P, V] is the largest tensor of a step.
            weighted_PV = torch.exp_(logits_PV - normalizer_P[:, None]).mul_(logits_PV)
            entropy_P = normalizer_P - weighted_PV.sum(-1)
        return logprobs_E.cpu()[tree.edges_N], entropy_P[row_E].cpu()[tree.edges_N]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside, the adapter is off: this is the base model."""
        with disabled(self.layers):
            yield

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Bytes of keys and values that a sampler keeps for each token; None for a model whose layers are not all alike."""
        config = self.body.config
        if len(set(getattr(config, "layer_types", None) or ())) > 1:
            return None  # vLLM keeps a cache for each kind, of sizes that it computes itself
        heads = getattr(config, "num_key_value_heads", None)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * size * self.dtype.itemsize if isinstance(heads, int) else None

    # --- adapter in and out ---------------------------------------------------------------------------------------------
    def load(self, weights: Path) -> None:
        """Continue from the adapter in the file `weights`; `NightError` unless it has this policy's matrices."""
        tensors = load_file(weights)
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: p.shape for name, p in self.parameters.items()}:
            raise NightError(
                f"the adapter in {weights} has other matrices than rank {self.rank} on {', '.join(self.targets)}; "
                "it was made for another base model or another rank"
            )
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[name].to(parameter))

    def state(self) -> dict[str, Tensor]:
        """A copy of the adapter's matrices in fp32, by their name in the file."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def save(self, folder: Path) -> None:
        """Write the adapter in the type it is served in; `NightError` if a number in it is not finite."""
        tensors = {name: p.detach().to("cpu", self.dtype).contiguous() for name, p in self.parameters.items()}
        write_adapter(folder, tensors, rank=self.rank, alpha=self.alpha, targets=self.targets)
