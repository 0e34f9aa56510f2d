"""RoPE: a token's place in the text, written into its queries and keys as angles.

A head's vector is read as D/2 points on D/2 clock faces. For the token at position p, face i is turned by

    p · theta^(-2i/D)        i = 0 … D/2 - 1

so the first faces turn fast and the last ones slowly. The dot product of two turned vectors depends on the
difference of their positions alone: that is how attention can learn "three tokens ago". Nothing here is learnt,
and the angles are worked out for the positions at hand, so no table has to guess how long a text will be.
"""

import math

import numpy as np


def rope_frequencies(head_dim: int, theta: float = 10000.0, scaling: dict | None = None) -> np.ndarray:
    """Return how many radians each clock face turns per token, after the scaling that a model asks for.

    `scaling` is None, or a dict whose `rope_type` is "linear" (every face slower by `factor`, so that longer texts
    stay within the angles known from training) or "llama3" (slow faces slower, fast ones as they were, those
    between blended).

    Shapes: -> (D/2,) in float32. Raises ValueError for an odd head_dim, and for another rope_type.
    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2.2; "linear": Chen et al. 2023 (2306.15595); "llama3":
    Llama 3.1's published code.
    """
    # 1. Set the speeds. Face 0 turns by one radian a token, the last one nearly theta times slower.
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd: RoPE turns pairs of numbers, choose an even head_dim")
    powers = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)  # (D/2,)
    speed = 1 / np.float32(theta) ** powers  # (D/2,)

    # 2. Leave them alone unless asked, or slow all faces alike. A kind not known here is refused: with other angles
    # than in training, a model runs without an error and speaks nonsense.
    kind = (scaling or {}).get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rope_type {kind!r} is not known here: use 'default', 'linear' or 'llama3'")
    if kind != "llama3":
        return speed / np.float32(scaling["factor"] if kind == "linear" else 1)  # (D/2,)

    # 3. Count how often each face turned within the context that the model was first trained on.
    turns = speed * np.float32(scaling["original_max_position_embeddings"] / (2 * math.pi))  # (D/2,)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]

    # 4. Blend: many turns keep their speed, few are divided by the factor.
    keep = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1)  # (D/2,)
    return keep * speed + (1 - keep) * speed / np.float32(scaling["factor"])  # (D/2,)


def rope_tables(positions: np.ndarray, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosine and the sine of every angle that tokens at these positions are turned by.

    Shapes: positions (T,), frequencies (D/2,) -> cos (T, D/2), sin (T, D/2).
    """
    angles = positions.astype(np.float32)[:, None] * frequencies  # (T, D/2)
    return np.cos(angles), np.sin(angles)  # (T, D/2), (T, D/2)


def apply_rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool = False) -> np.ndarray:
    """Return queries or keys, each turned by the angles of its position; lengths stay the same.

    Which two of a head's D numbers make a pair is a convention: half-split (i with i + D/2, Hugging Face's files) or
    interleaved (2i with 2i + 1, the paper and llama2.c). Weights trained with one are of no use with the other.

    Shapes: x (H, T, D), cos and sin (T, D/2) -> (H, T, D).
    Source: Su et al. 2021 (arXiv 2104.09864), equation 34.
    """
    # 1. Look at both points of each pair, as views: what is written to them is written to the result.
    turned, half = np.empty_like(x), x.shape[-1] // 2
    pair = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    first, second = x[..., pair[0]], x[..., pair[1]]  # (H, T, D/2), (H, T, D/2)

    # 2. Turn: (x, y) goes to (x·cos − y·sin, x·sin + y·cos), as for any point on a circle.
    turned[..., pair[0]] = first * cos - second * sin
    turned[..., pair[1]] = first * sin + second * cos
    return turned  # (H, T, D)
