"""Layers: the few small functions that a language model repeats thousands of times, on NumPy arrays.

    linear        every number out is a weighted sum of all numbers in:  y = x Wᵀ + b
    norms         bring a token's vector to one typical size:            x / √mean(x²)  (RMSNorm)
    activations   the bend between two matrices; without it two would be no more than one
    softmax       turns scores into shares:                              exp(xᵢ) / Σ exp(xⱼ)

A layer here is a function: weights in, array in, array out. Nothing is remembered and nothing is hidden, so each
can be tried alone. Softmax is built three times, because the way from the first to the third is how fast attention
came about. `attention.py` mixes tokens with them, `model.py` stacks everything into a tower.
"""

import math

import numpy as np

# The exact bend of GELU needs the error function, which NumPy does not have. Python's own takes one number at a
# time: right, and slow.
_erf = np.vectorize(math.erf, otypes=[np.float32])


def linear(x: np.ndarray, weight, bias: np.ndarray | None = None) -> np.ndarray:
    """Return weighted sums of the numbers of each token, one sum for each row of `weight`.

    A row of the matrix holds the weights of one sum; that is how models are saved. The matrix may also be a
    quantised one (`quantize.py`), which knows how to multiply itself.

    Shapes: x (T, C), weight (N, C), bias (N,) -> (T, N).
    """
    y = x @ weight.T if isinstance(weight, np.ndarray) else weight.product(x)
    return y if bias is None else y + bias


def gelu(x: np.ndarray) -> np.ndarray:
    """Return each number times the chance that a bell-shaped dice falls below it: large ones stay, negative ones go.

    Exact, and slow: the error function is asked for one number after the other in Python. Models that want speed
    take `gelu_tanh`, which differs by less than 0.0005.

    Shapes: any -> the same.
    Source: Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 2.
    """
    return 0.5 * x * (1 + _erf(x / np.float32(math.sqrt(2))))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Return GELU by a formula of whole-array steps; this is the bend that GPT-2 was trained with.

    Shapes: any -> the same.
    Source: Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 2.
    """
    return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + 0.044715 * x * x * x)))


def silu(x: np.ndarray) -> np.ndarray:
    """Return x · sigmoid(x), a bend like GELU's; Llama's networks use it.

    The sigmoid is written with tanh, which cannot overflow: exp(-x) would, for x below -88.

    Shapes: any -> the same.
    Source: Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 2; in networks: Elfwing et al. 2017 (1702.03118).
    """
    return 0.5 * x * (1 + np.tanh(0.5 * x))


# What config.py calls the activations.
ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """Return each token's vector with mean 0 and a typical size of 1, then scaled and shifted as was learnt.

    Shapes: x (..., C), weight and bias (C,) -> (..., C).
    Source: Ba, Kiros, Hinton 2016 (arXiv 1607.06450), section 3.
    """
    # 1. Move the middle to zero.
    centred = x - x.mean(axis=-1, keepdims=True)

    # 2. Divide by the typical distance from it. `eps` keeps a vector of equal numbers from dividing by zero.
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """Return each token's vector with a typical size of 1, then scaled as was learnt; its mean stays.

    Shapes: x (..., C), weight (C,) -> (..., C).
    Source: Zhang & Sennrich 2019 (arXiv 1910.07467), section 4.
    """
    mean_square = np.square(x).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + np.float32(eps)) * weight


def softmax_naive(x: np.ndarray) -> np.ndarray:
    """Return the shares that the formula gives, as long as no score is large.

    In float32 exp(89) is infinite already, and infinite by infinite is no number.

    Shapes: (..., S) -> (..., S).
    """
    powers = np.exp(x)
    return powers / powers.sum(axis=-1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    """Return the shares for scores of any size: all above zero, together 1, the largest score getting most.

    Shapes: (..., S) -> (..., S). A score of -inf gets exactly 0.
    """
    # 1. Subtract the largest score. It cancels in the fraction, and no power is above 1 any more.
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def softmax_online(x: np.ndarray, block: int = 64) -> np.ndarray:
    """Return what `softmax` returns, but look at the scores in blocks and never at all of them for their maximum.

    Largest score and sum are kept up to date while walking along. When a larger score turns up, the sum so far
    is corrected by one factor: all its terms were made with the old maximum. So the sum is ready after one walk,
    and attention can use scores that are never all in memory at once.

    Shapes: (..., S) -> (..., S).
    Source: Milakov & Gimelshein 2018 (arXiv 1805.02867), algorithm 3.
    """
    # 1. Begin with nothing seen.
    largest = np.full((*x.shape[:-1], 1), -np.inf, x.dtype)
    total = np.zeros_like(largest)

    # 2. Walk along. Where all scores so far are -inf, the difference of two infinities would be no number: take 0.
    for start in range(0, x.shape[-1], block):
        scores = x[..., start : start + block]
        new = np.maximum(largest, scores.max(axis=-1, keepdims=True))
        base = np.where(np.isneginf(new), np.float32(0), new)
        total = total * np.exp(largest - base) + np.exp(scores - base).sum(axis=-1, keepdims=True)

        # 3. Go on with the new maximum.
        largest = new

    # 4. Share out.
    return np.exp(x - largest) / total


def mlp(x: np.ndarray, up, up_bias: np.ndarray, down, down_bias: np.ndarray, activation=gelu_tanh) -> np.ndarray:
    """Return what each token thinks by itself, in GPT-2's way: widen, bend, narrow.

    Shapes: x (T, C), up (F, C), up_bias (F,), down (C, F), down_bias (C,) -> (T, C).
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.3; with GELU: Radford et al. 2019 (GPT-2).
    """
    hidden = activation(linear(x, up, up_bias))  # (T, F)
    return linear(hidden, down, down_bias)  # (T, C)


def swiglu(x: np.ndarray, gate, up, down, activation=silu) -> np.ndarray:
    """Return what each token thinks by itself, in Llama's way: one matrix says what, another how much of it.

    Shapes: x (T, C), gate and up (F, C), down (C, F) -> (T, C).
    Source: Shazeer 2020 (arXiv 2002.05202), section 2.
    """
    hidden = activation(linear(x, gate)) * linear(x, up)  # (T, F)
    return linear(hidden, down)  # (T, C)
