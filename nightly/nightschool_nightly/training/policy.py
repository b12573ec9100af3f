"""The policy that learns: a frozen base model with one LoRA adapter, and its forward pass over a token tree.

Base weights stay in the type they are served in (bf16 by default). The LoRA matrices and their optimizer state are
fp32: an update of a learning rate's size would be lost in the rounding of bf16. The adapter is saved in the type it is
served in, so what the gate measures is what is served.

Shapes: B rows, L tokens of a row or of a tree, H hidden size, V vocabulary; P, E and N as in `tree`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nightschool.errors import NightError
from nightschool_nightly.training import tree_attention
from nightschool_nightly.training.adapter_file import matrix_name, write_adapter
from nightschool_nightly.training.head import edge_logprobs, output_layer, rows_at_a_time
from nightschool_nightly.training.lora import add_lora, disabled, linear_targets
from nightschool_nightly.training.own_forward import check_own_forward
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
        self.body, self._output_layer = model.base_model, output_layer(model)
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self.parameters: dict[str, torch.nn.Parameter] = {}
        """The trainable matrices by their name in the adapter's file, in the order of the layers' names."""
        for name, layer in self.layers.items():
            self.parameters[matrix_name(name, "lora_A")] = layer.lora_A
            self.parameters[matrix_name(name, "lora_B")] = layer.lora_B
        check_own_forward(model, self.tree_logits)

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
            logits = self._output_layer(hidden.reshape(-1, hidden.shape[-1]))
        return logits.float().view(*hidden.shape[:-1], -1)

    def tree_hidden(self, tree: TokenTree) -> Tensor:
        """Last hidden states [P, H] of the rows of a packed tree that predict something."""
        plan = tree_attention.plan_attention(tree.end_L).to(self.device)
        unused_mask = torch.ones(1, 1, 1, dtype=torch.bool)  # the plan says who sees whom
        hidden_LH = self.hidden(tree.input_ids_L[None], tree.position_ids_L[None], unused_mask, tree_plan=plan)[0]
        # The output layer is a small model's largest product: only rows that predict a trained token go through it.
        return hidden_LH[tree.rows_P.to(self.device)]

    def tree_logits(self, tree: TokenTree) -> Tensor:
        """fp32 logits [P, V] of the rows of a packed tree that predict something."""
        return self.logits(self.tree_hidden(tree))

    def tree_logprobs(self, tree: TokenTree, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of every completion token [N] with gradient, and the entropy behind each [N]; in nats."""
        return self.token_logprobs(tree, self.tree_hidden(tree), num_samples=len(tree.lengths), temperature=temperature)

    def token_logprobs(
        self, tree: TokenTree, hidden_PH: Tensor, *, num_samples: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """As `tree_logprobs`, from the tree's hidden states, for the tokens of its first `num_samples` samples only."""
        edges_N = tree.edges_N[: sum(tree.lengths[:num_samples])]
        num_edges = int(edges_N.max()) + 1 if len(edges_N) else 0  # edges are numbered as the samples use them first
        rows_P, row_E = torch.unique(tree.edge_row_E[:num_edges].to(self.device), return_inverse=True)
        logprobs_E, entropy_E = edge_logprobs(
            self.logits,
            hidden_PH[rows_P],
            row_E,
            tree.edge_token_E[:num_edges].to(self.device),
            temperature=temperature,
            num_rows=rows_at_a_time(self.vocabulary),
        )
        return logprobs_E.cpu()[edges_N], entropy_E.cpu()[edges_N]

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

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` gave."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Write the adapter in the type it is served in; `NightError` if a number in it is not finite."""
        tensors = {name: p.detach().to("cpu", self.dtype).contiguous() for name, p in self.parameters.items()}
        write_adapter(folder, tensors, rank=self.rank, alpha=self.alpha, targets=self.targets)
