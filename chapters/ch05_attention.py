"""Attention: every token looks back at the tokens before it and takes what it needs.

For one head, with a query, a key and a value for each token:

    attention(Q, K, V) = softmax(Q Kᵀ / √D + mask) V

A query says what its token is looking for, a key what a token offers, and a value what it hands
over. Where a query and a key agree, the softmax gives weight, and the weighted mean of the values is
what the token takes home. Chapter 4 turned queries and keys by their positions; chapter 6 wraps
this layer into a block, chapter 7 stacks the blocks.

`scaled_dot_product_attention` is the slow and obvious way, and the specification.
`attend` uses PyTorch's fused kernel, which never writes the table of weights to memory.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapters.ch04_positional_encoding import apply_rope


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Turn scores into weights: all above zero, together 1, the largest score getting most.

    Shapes: any shape -> the same shape; sums along `dim` are 1. A score of -inf gets weight 0.
    """
    # 1. Subtract the maximum. It cancels in the fraction, and exp can no longer overflow.
    shifted = x - x.max(dim=dim, keepdim=True).values
    weights = shifted.exp()
    return weights / weights.sum(dim=dim, keepdim=True)


def causal_mask(num_queries: int, num_keys: int, window: int | None = None, device=None) -> Tensor:
    """Return True where a query may look: at itself and at what came before it.

    The last query stands at the last key, so with cached keys the first query already has a past.
    With a `window` of W a query sees only the newest W keys, itself among them.

    Shapes: -> (T, S) of booleans with T = num_queries, S = num_keys.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3; window: Jiang et al. 2023 (2310.06825).
    """
    # 1. Number both sides on one scale, so that "before" is a comparison.
    query_positions = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]  # (T, 1)
    key_positions = torch.arange(num_keys, device=device)[None, :]  # (1, S)

    # 2. Forbid the future, and with a window the distant past.
    allowed = key_positions <= query_positions  # (T, S)
    if window is not None:
        allowed &= key_positions > query_positions - window  # (T, S)
    return allowed  # (T, S)


def padded_mask(mask: Tensor, pads: Tensor, num_tokens: int) -> Tensor:
    """Return one mask for each row of a batch whose texts, of unequal length, begin with padding.

    Text looks at text alone. Padding looks at padding: nobody reads what it finds, but a query that may look
    nowhere would divide zero by zero. `pads` counts the padding of each row; `num_tokens` are so far in
    a row with its padding, and the mask's last key is the last of them.

    Shapes: mask (T, S), pads (B,) -> (B, 1, T, S).
    """
    # 1. Mark the padding among the keys. The queries are the newest of these.
    num_queries, num_keys = mask.shape
    keys = torch.arange(num_tokens - num_keys, num_tokens, device=pads.device)  # (S,)
    padding = keys < pads[:, None]  # (B, S)

    # 2. Let like look at like.
    alike = padding[:, -num_queries:, None] == padding[:, None, :]  # (B, T, S)
    return (mask & alike)[:, None]  # (B, 1, T, S)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each token takes home, and the table of weights that says from whom.

    This is the specification that the fused kernel is tested against, and the way to see the weights.

    Shapes: q (B, H, T, D), k and v (B, H, S, D), mask (T, S) True where looking is allowed
    -> output (B, H, T, D), weights (B, H, T, S).
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.1.
    """
    # 1. Score every pair. The dot product is large where query and key point the same way.
    scores = q @ k.transpose(-2, -1)  # (B, H, T, S)

    # 2. Divide by √D. A sum of D products has a variance of about D; unscaled, softmax would be all-or-nothing.
    scores = scores / math.sqrt(q.shape[-1])  # (B, H, T, S)

    # 3. Hide the future. exp(-inf) is exactly 0, so nothing leaks back.
    scores = scores.masked_fill(~mask, -float("inf"))  # (B, H, T, S)

    # 4. Turn scores into shares of attention. Each row sums to 1.
    weights = softmax(scores)  # (B, H, T, S)

    # 5. Mix the values by these shares.
    return weights @ v, weights  # (B, H, T, D), (B, H, T, S)


def repeat_kv(x: Tensor, groups: int) -> Tensor:
    """Return each key/value head repeated for the `groups` query heads that share it.

    Shapes: x (B, K, S, D) -> (B, K*groups, S, D), with neighbouring heads sharing.
    Source: Ainslie et al. 2023 (arXiv 2305.13245).
    """
    return x.repeat_interleave(groups, dim=1)  # (B, H, S, D)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Return what each token takes home, by the fastest way that this machine has.

    Without a `mask` a single token sees all keys, several tokens see their past (causal).

    Shapes: q (B, H, T, D), k and v (B, H, S, D), mask (T, S) or (B, 1, T, S) of booleans -> (B, H, T, D).
    """
    # 1. Let a compiler fuse the steps of the by-hand version where that beats the ready-made kernel: on a
    # processor, in bfloat16, while the table of weights is small.
    length, keys = q.shape[2], k.shape[2]
    small = v.dtype == torch.bfloat16 and v.device.type == "cpu" and keys <= 512 and not dropout
    if torch.compiler.is_compiling() and small:
        allowed = causal_mask(length, keys) if mask is None else mask
        return scaled_dot_product_attention(q, k, v, allowed)[0]

    # 2. Everywhere else use the fused kernel: the same result, in one pass and little memory.
    causal = mask is None and length > 1
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)  # (B, H, T, D)


class HeadNorm(nn.RMSNorm):
    """Brings every query or key to one length, times a learnt scale per number: chapter 6's RMSNorm, for a head.

    Source: Henry et al. 2020 (arXiv 2010.04245) for the idea; with RMSNorm: Qwen 3.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the levelled vectors, computed in float32 inside and in the dtype of x outside.

        Shapes: x (..., D) -> (..., D).
        """
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each in its own slice of the vector, then mixed by one matrix.

    One head can look at one thing at a time; H heads can look at H things. With fewer key/value heads
    than query heads (`num_kv_heads`), groups of query heads share keys and values, and the cache
    of chapter 9 shrinks by that factor.

    Raises ValueError when the heads do not divide as they must.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2; grouped: Ainslie et al. 2023 (2305.13245).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ):
        super().__init__()
        # 1. Settle the sizes. Without a word to the contrary the heads share d_model evenly.
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads or num_heads
        self.head_dim, self.dropout = head_dim or d_model // num_heads, dropout
        if head_dim is None and d_model % num_heads:
            raise ValueError(f"d_model {d_model} is not divisible by num_heads {num_heads}: change one or set head_dim")
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {num_heads} is not divisible by num_kv_heads {num_kv_heads}: change one")

        # 2. Make the four matrices. Queries, keys and values are three readings of the same vector.
        kv_dim = self.num_kv_heads * self.head_dim
        self.query = nn.Linear(d_model, num_heads * self.head_dim, bias=qkv_bias)
        self.key = nn.Linear(d_model, kv_dim, bias=qkv_bias)
        self.value = nn.Linear(d_model, kv_dim, bias=qkv_bias)
        self.output = nn.Linear(num_heads * self.head_dim, d_model, bias=False)

        # 3. Optionally bring every query and key to a typical size of 1 (QK-norm), so that no score can run away.
        self.query_norm = HeadNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.key_norm = HeadNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values per head, queries and keys turned by their positions.

        Shapes: x (B, T, C), cos and sin (T, D/2) -> q (B, H, T, D), k and v (B, K, T, D).
        """
        # 1. Read each vector three ways, and cut the result into heads.
        batch, length, _ = x.shape
        q = self.query(x).view(batch, length, self.num_heads, self.head_dim)  # (B, T, H, D)
        k = self.key(x).view(batch, length, self.num_kv_heads, self.head_dim)  # (B, T, K, D)
        v = self.value(x).view(batch, length, self.num_kv_heads, self.head_dim)  # (B, T, K, D)

        # 2. Put heads before tokens, so that each head is a small attention of its own.
        q, k = self.query_norm(q).transpose(1, 2), self.key_norm(k).transpose(1, 2)  # (B, H, T, D), (B, K, T, D)
        v = v.transpose(1, 2)  # (B, K, T, D)

        # 3. Write the order in. Values carry content, not position, so they are not turned.
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v  # (B, H, T, D), (B, K, T, D), (B, K, T, D)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Return, for each token, what its heads gathered from the tokens it may see.

        Without a `mask` a single token sees all keys, several tokens see their past (causal). `cache` is one
        layer of chapter 9's `KVCache`: new keys and values are appended, and all so far are attended.

        Shapes: x (B, T, C), cos and sin (T, D/2), mask (T, S) or (B, 1, T, S) of booleans -> (B, T, C).
        """
        # 1. Make queries, keys and values, and remember the latter two when generating. The kernel's own causal
        # rule counts from the oldest key, so several tokens behind a cached past need a mask.
        q, k, v = self.project(x, cos, sin)  # (B, H, T, D), (B, K, T, D), (B, K, T, D)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, K, S, D), (B, K, S, D)
            if mask is None and 1 < q.shape[2] < k.shape[2]:
                mask = causal_mask(q.shape[2], k.shape[2], device=x.device)  # (T, S)

        # 2. Let groups of query heads share keys and values, where there are fewer of these.
        if self.num_kv_heads < self.num_heads:
            groups = self.num_heads // self.num_kv_heads
            k, v = repeat_kv(k, groups), repeat_kv(v, groups)  # (B, H, S, D), (B, H, S, D)

        # 3. Attend: the result of the by-hand version, faster.
        heads = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)

        # 4. Lay the heads side by side again and let one matrix mix them.
        return self.output(heads.transpose(1, 2).flatten(2))  # (B, T, C)
