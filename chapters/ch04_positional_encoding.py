"""Positional encoding: how a model that compares tokens in pairs learns which came first.

Attention (chapter 5) sees a set, not a row: shuffle the tokens and each would still find the same
partners. So order must be written into the numbers. This file builds two ways:

    sinusoids (2017)  add to each vector a pattern of sines that belongs to its position
    RoPE (2021)       turn each query and key by an angle that grows with its position

RoPE is what Llama, Mistral and Qwen use, and what our GPT uses. A head's vector is read as D/2
points on D/2 clock faces. At position p, face i is turned by the angle

    p · theta^(-2i/D)        i = 0 … D/2 - 1

so the first faces turn fast, the last ones slowly. A dot product of two turned vectors depends on the
difference of their positions alone: that is how attention learns "three tokens ago".
"""

import math

import torch
from torch import Tensor


def sinusoidal_positions(max_seq_len: int, d_model: int) -> Tensor:
    """Return the pattern of sines and cosines that the first Transformer added to its embeddings.

    Shapes: -> (max_seq_len, d_model), even columns sines, odd columns cosines; d_model must be even.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.
    """
    # 1. Give each pair of columns its own speed, from one turn in about 6 tokens to one in about 60 000.
    speed = 10000.0 ** (-torch.arange(0, d_model, 2) / d_model)  # (C/2,)
    angles = torch.arange(max_seq_len)[:, None] * speed  # (T, C/2)

    # 2. Interleave sine and cosine. Together they name a point on a circle, which one alone cannot.
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (T, C)


def scaled_frequencies(speed: Tensor, scaling: dict | None) -> Tensor:
    """Return the turning speeds of RoPE after the context scaling that a `config.json` asks for.

    `scaling` is None, or a dict whose `rope_type` is "linear" (all speeds divided by `factor`: positions
    are squeezed into the range known from training) or "llama3" (slow faces are divided, fast ones
    kept, those between blended).

    Shapes: speed (D/2,) in radians per token -> (D/2,). Raises ValueError for an unknown rope_type.
    Source: Chen et al. 2023 (arXiv 2306.15595) for "linear"; Llama 3.1's published code for "llama3".
    """
    # 1. Leave the speeds alone unless asked.
    kind = (scaling or {}).get("rope_type", "default")
    if kind == "default":
        return speed

    # 2. Slow all faces alike, or refuse a name not known here: turned by other angles than in training,
    # a model would run without an error and speak nonsense.
    if kind == "linear":
        return speed / scaling["factor"]
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r} is not known here: use 'default', 'linear' or 'llama3'")

    # 3. Measure how often each face turned within the context the model was first trained on.
    turns = scaling["original_max_position_embeddings"] * speed / (2 * math.pi)  # (D/2,)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]

    # 4. Blend. Fast faces (many turns) keep their speed, slow ones are divided by the factor.
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # (D/2,)
    return keep * speed + (1 - keep) * speed / scaling["factor"]  # (D/2,)


def rope_tables(
    head_dim: int, max_seq_len: int, theta: float = 10000.0, scaling: dict | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of every angle RoPE needs, one row per position.

    They depend on nothing that is learnt, so they are computed once. In float32 always: in
    bfloat16 the positions above 256 could no longer be told apart.

    Shapes: -> cos (T, D/2) and sin (T, D/2) with T = max_seq_len, D = head_dim.
    Raises ValueError when head_dim is odd: RoPE turns pairs.
    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2.2.
    """
    # 1. Refuse what cannot be paired.
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd: RoPE turns pairs of numbers, choose an even head_dim")

    # 2. Set the speeds. Face 0 turns by one radian a token, the last one nearly theta times slower.
    speed = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (D/2,)
    speed = scaled_frequencies(speed, scaling)  # (D/2,)

    # 3. Multiply speed by position: angle = speed · time, as on any clock.
    angles = torch.arange(max_seq_len, dtype=torch.float32)[:, None] * speed  # (T, D/2)
    return angles.cos(), angles.sin()  # (T, D/2), (T, D/2)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Return queries or keys, each turned by the angles of its position; lengths stay the same.

    The D numbers of a head form D/2 pairs. Which two make a pair is a convention: half-split (number
    i with number i + D/2, as in Hugging Face's files and here) or interleaved (2i with 2i + 1, as in
    the paper and llama2.c). The two differ by a fixed reordering; weights trained with one need
    their rows reordered for the other.

    Shapes: x (..., T, D), cos and sin (T, D/2) -> (..., T, D), in the dtype of x.
    Source: Su et al. 2021 (arXiv 2104.09864), equation 34.
    """
    # 1. Stay in the dtype of x. Turn every point of the interleaved layout: (x, y) goes to
    # (x·cos − y·sin, x·sin + y·cos).
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # (T, D/2), (T, D/2)
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]  # (B, H, T, D/2), (B, H, T, D/2)
        turned = first * cos - second * sin, first * sin + second * cos  # (B, H, T, D/2), (B, H, T, D/2)
        return torch.stack(turned, dim=-1).flatten(-2)  # (B, H, T, D)

    # 2. Turn half-split vectors whole, which takes fewer passes over memory: each number times the cosine,
    # plus its partner, half a vector away, times the sine. The sine has a minus for the first of a pair.
    cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)  # (T, D), (T, D)
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin  # (B, H, T, D)
