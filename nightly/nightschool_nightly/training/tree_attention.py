"""Attention over a token tree that computes only the pairs a tree has.

A dense [L, L] mask over a packed batch is mostly empty: a token sees its own path to the root and nothing of the other
prompts. So the tree is cut into blocks, the largest subtrees of at most `max_block` rows, and the rows above the cuts
(mostly the shared system prompt). The rows above attend among themselves. Every block attends to its own path to the
root and to itself; blocks are batched, padded to the widest. It is exact: the same pairs, and the same softmax, as
attention under the dense mask (softmax(q k / sqrt(D)) v, arXiv 1706.03762; with fewer key heads than query heads,
arXiv 2305.13245).

What architectures add to that is computed too: a window (Mistral: a token sees only the last W positions, itself
included), and soft-capping of scores (Gemma 2: cap * tanh(score / cap)). An argument that is not implemented is an
error: left out in silence, every log-probability would be a little wrong, and a night would learn from the difference.

Shapes: L rows of the tree; T rows above the cuts; K blocks; R rows and C keys of a padded block; H query heads; G key
heads, G divides H; D size of a head; B a batch of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nightschool.errors import NightError

NAME = "nightschool_tree"
# What layers hand over that changes no number: positions are in the rotated queries and keys already, and there is no
# cache of keys and values here.
_NEUTRAL = frozenset({"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"})


@dataclass(frozen=True, slots=True)
class TreePlan:
    """Which rows attend to which, as a few dense pieces. Build with `plan_attention`."""

    top_T: Tensor
    """Rows above the cuts."""
    top_bias_TT: Tensor
    """Added to the scores: 0 where a row sees a key, minus infinity where not."""
    rows_KR: Tensor
    """Rows of each block; padding repeats row 0."""
    keys_KC: Tensor
    """Path to the root, then the rows of the block; padding repeats row 0."""
    bias_KRC: Tensor
    """As `top_bias_TT`, for each block."""
    order_L: Tensor
    """Where each row of the tree is in the sequence (top rows, then the blocks row by row)."""
    depth_L: Tensor
    """Position of each row."""
    _windowed: dict[int, TreePlan] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device) -> TreePlan:
        """The same plan on `device`."""
        return TreePlan(*(getattr(self, name).to(device) for name in self.__slots__ if name != "_windowed"))

    def within(self, window: int | None) -> TreePlan:
        """The same plan where a row sees only the last `window` positions, its own included; None is no window."""
        if window is None or not len(self.depth_L) or int(self.depth_L.max()) < window:
            return self
        if window not in self._windowed:  # made once for all layers that have it
            top_D, rows_KR, keys_KC = self.depth_L[self.top_T], self.depth_L[self.rows_KR], self.depth_L[self.keys_KC]
            self._windowed[window] = replace(
                self,
                top_bias_TT=self.top_bias_TT.masked_fill(_too_far(top_D, top_D, window), float("-inf")),
                bias_KRC=self.bias_KRC.masked_fill(_too_far(rows_KR, keys_KC, window), float("-inf")),
                _windowed={},  # its own: a plan that holds itself would keep its tensors until Python looks for cycles
            )
        return self._windowed[window]

    @property
    def pairs(self) -> int:
        """Query-key pairs computed per head and layer, padding included; a dense mask takes L squared."""
        return self.top_bias_TT.numel() + self.bias_KRC.numel()


def plan_attention(end_L: Tensor, *, max_block: int = 96) -> TreePlan:
    """Cut a tree into blocks of at most `max_block` rows; `end_L` is where each row's descendants end (`TokenTree`).

    Larger blocks compute more pairs that the tree does not have; smaller ones repeat more of the path to the root. 96
    rows hold the end of a short prompt and the short answers to it. The result does not depend on it.
    """
    ends: list[int] = end_L.tolist()
    top: list[int] = []
    blocks: list[tuple[list[int], int, int]] = []  # path to the root, first row, one past the last
    path: list[int] = []  # rows above the cuts that the current row descends from
    row = 0
    while row < len(ends):
        while path and ends[path[-1]] <= row:
            path.pop()
        if ends[row] - row <= max_block:  # the whole subtree fits: cut here
            blocks.append((list(path), row, ends[row]))
            row = ends[row]
        else:
            top.append(row)
            path.append(row)
            row += 1
    top_T = torch.tensor(top, dtype=torch.long)
    rows_KR, keys_KC, mask_KRC = _pad_blocks(blocks, end_L)
    order_L = torch.empty(len(ends), dtype=torch.long)
    order_L[top_T] = torch.arange(len(top))
    width = rows_KR.shape[1]
    for number, (_, first, last) in enumerate(blocks):
        order_L[first:last] = torch.arange(last - first) + len(top) + number * width
    return TreePlan(top_T, _bias(_sees(top_T, top_T, end_L)), rows_KR, keys_KC, _bias(mask_KRC), order_L, _depths(end_L))


def _depths(end_L: Tensor) -> Tensor:
    """How many ancestors each row has: every row j is one for the rows j + 1 to end[j] - 1."""
    steps = torch.zeros(len(end_L) + 1, dtype=torch.long)
    steps[1:] += 1
    steps.index_add_(0, end_L, torch.full_like(end_L, -1))
    return steps.cumsum(0)[:-1]


def _too_far(queries_xR: Tensor, keys_xC: Tensor, window: int) -> Tensor:
    """Whether a key is outside the window of a query, [..., R, C], by their positions."""
    return queries_xR[..., :, None] - keys_xC[..., None, :] >= window


def _sees(rows: Tensor, keys: Tensor, end_L: Tensor) -> Tensor:
    """Whether each of `rows` may look at each of `keys`: itself and its ancestors."""
    return (keys[None, :] <= rows[:, None]) & (rows[:, None] < end_L[keys][None, :])


def _bias(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))


def _pad_blocks(blocks: list[tuple[list[int], int, int]], end_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [K, R], keys [K, C] and mask [K, R, C] of all blocks, padded to the widest."""
    num_rows = max((last - first for _, first, last in blocks), default=0)
    num_keys = max((len(path) + last - first for path, first, last in blocks), default=0)
    rows_KR = torch.zeros(len(blocks), num_rows, dtype=torch.long)
    keys_KC = torch.zeros(len(blocks), num_keys, dtype=torch.long)
    mask_KRC = torch.zeros(len(blocks), num_rows, num_keys, dtype=torch.bool)
    mask_KRC[:, :, :1] = True  # a padding row needs one key, or its softmax is NaN; its output is never read
    for number, (path, first, last) in enumerate(blocks):
        rows = torch.arange(first, last)
        keys = torch.cat([torch.tensor(path, dtype=torch.long), rows])
        rows_KR[number, : len(rows)] = rows
        keys_KC[number, : len(keys)] = keys
        mask_KRC[number, : len(rows), : len(keys)] = _sees(rows, keys, end_L)
    return rows_KR, keys_KC, mask_KRC


def attend(
    query_HLD: Tensor, key_GLD: Tensor, value_GLD: Tensor, plan: TreePlan, *, scaling: float, softcap: float | None = None
) -> Tensor:
    """Tree attention of one packed sequence: [L, H, D] from queries [H, L, D], keys and values [G, L, D]."""
    # Whole rows are taken, all heads at once, so that the backward pass adds contiguous memory.
    query_LHD, key_LGD, value_LGD = (x.transpose(0, 1).contiguous() for x in (query_HLD, key_GLD, value_GLD))

    def part(rows_BR: Tensor, keys_BC: Tensor, bias_BRC: Tensor) -> Tensor:
        """Attention of `rows` over `keys` under `bias`: [B * R, H, D]."""
        query, key, value = _take_rows(query_LHD, rows_BR), _take_rows(key_LGD, keys_BC), _take_rows(value_LGD, keys_BC)
        return _softmax_attention(query, key, value, bias_BRC, scaling=scaling, softcap=softcap)

    pieces = []
    if len(plan.top_T):
        pieces.append(part(plan.top_T[None], plan.top_T[None], plan.top_bias_TT[None]))
    if len(plan.rows_KR):
        pieces.append(part(plan.rows_KR, plan.keys_KC, plan.bias_KRC))
    return torch.cat(pieces).index_select(0, plan.order_L)


def _take_rows(source_LHD: Tensor, rows_BR: Tensor) -> Tensor:
    """[B, R, H, D] of the rows [B, R]."""
    return source_LHD.index_select(0, rows_BR.flatten()).view(*rows_BR.shape, *source_LHD.shape[1:])


def _softmax_attention(
    query_BRHD: Tensor, key_BCGD: Tensor, value_BCGD: Tensor, bias_BRC: Tensor, *, scaling: float, softcap: float | None
) -> Tensor:
    """Plain attention, [B * R, H, D]. On a CPU PyTorch's fused kernel takes five times as long on such small blocks."""
    batch, rows, heads, size = query_BRHD.shape
    keys, groups = key_BCGD.shape[1:3]
    shared = heads // groups  # query heads that share a key head are rows of one product
    query = query_BRHD.view(batch, rows, groups, shared, size).permute(0, 2, 3, 1, 4).reshape(batch * groups, shared * rows, size)
    key = key_BCGD.permute(0, 2, 3, 1).reshape(batch * groups, size, keys)
    value = value_BCGD.transpose(1, 2).reshape(batch * groups, keys, size)
    bias = bias_BRC.to(query.dtype)[:, None, None].expand(-1, groups, shared, -1, -1).reshape(batch * groups, shared * rows, keys)
    if softcap is None:
        # The bias is a constant and is added inside the product: the backward pass costs nothing for it.
        scores = torch.baddbmm(bias, query, key, alpha=scaling)
    else:
        scores = torch.tanh(torch.bmm(query, key) * (scaling / softcap)) * softcap + bias
    weights = scores.softmax(-1)  # which computes in fp32 whatever the type of its input
    output = torch.bmm(weights, value)
    return output.view(batch, groups, shared, rows, size).permute(0, 3, 1, 2, 4).reshape(batch * rows, heads, size)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    tree_plan: TreePlan | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_ids: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: tree attention when a plan is given, else attention under the mask."""
    _refuse_unknown(module, others)
    if tree_plan is not None:
        plan = tree_plan.within(sliding_window)
        return attend(query[0], key[0], value[0], plan, scaling=scaling, softcap=softcap)[None], None
    if attention_mask is None:
        raise NightError("attention was called with neither a tree nor a mask, and would have seen the future; report this")
    if sliding_window is not None:
        if position_ids is None:
            raise _unsupported(module, "sliding_window without position_ids")
        far_BLL = _too_far(position_ids, position_ids, sliding_window)
        attention_mask = attention_mask.masked_fill(far_BLL[:, None], torch.finfo(attention_mask.dtype).min)
    if softcap is None:
        output = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True)
        return output.transpose(1, 2), None
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    bias_BLL = attention_mask[:, 0].expand(len(query), -1, -1)
    output = _softmax_attention(query, key, value, bias_BLL, scaling=scaling, softcap=softcap)
    return output.view(query.shape), None


def _refuse_unknown(module: torch.nn.Module, others: dict[str, Any]) -> None:
    """`NightError` for an argument that would change the numbers; None is an argument that is not given."""
    causal = others.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise _unsupported(module, "is_causal = False")
    for name, value in others.items():
        if name in _NEUTRAL or name == "is_causal" or value is None or (name == "dropout" and not value):
            continue
        raise _unsupported(module, name)


def _unsupported(module: torch.nn.Module, argument: str) -> NightError:
    model = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
    return NightError(
        f"the model type {model!r} gives its attention the argument {argument}, which training over a token tree does not "
        "implement; nothing was published; name a base model of another type in [model] path"
    )


def register() -> str:
    """Make the attention known to transformers; returns the name to load a model with."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention_forward)
    return NAME
