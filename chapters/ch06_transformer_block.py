"""The transformer block: look around, then think, each time adding to what was there.

    x = x + attention(norm(x))          gather from the other tokens
    x = x + feed_forward(norm(x))       work on each token alone

Adding instead of replacing (a residual connection) leaves a straight road from the last layer back to
the first, along which gradients travel undamped. Normalising before each layer and not after it
(pre-norm) keeps that road free. The block of Llama, built here, uses RMSNorm and SwiGLU.
Chapter 5 built the attention; chapter 7 stacks blocks into a GPT.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapters.ch05_attention import MultiHeadAttention


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return each vector with its volume turned to 1, then each number scaled by `weight`.

    Shapes: x (B, T, C), weight (C,) -> (B, T, C).
    Source: Zhang & Sennrich 2019 (arXiv 1910.07467), equation 4.
    """
    mean_square = x.square().mean(dim=-1, keepdim=True)  # (B, T, 1)
    return x * torch.rsqrt(mean_square + eps) * weight  # (B, T, C)


class RMSNorm(nn.Module):
    """A volume knob with a trainable scale for each of the `d_model` numbers.

    `eps` keeps the division safe when a vector is all zeros.

    Source: Zhang & Sennrich 2019 (arXiv 1910.07467).
    """

    def __init__(self, d_model: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))  # (C,)

    def forward(self, x: Tensor) -> Tensor:
        """Return what `rms_norm` gives, by PyTorch's own operation, in float32 inside and the dtype of x outside.

        Shapes: x (B, T, C) -> (B, T, C).
        """
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)  # (B, T, C)


def silu(x: Tensor) -> Tensor:
    """Return x times its own sigmoid: about x for large x, about 0 for very negative x, smooth between.

    Shapes: any -> the same.
    """
    return x / (1 + torch.exp(-x))


class SwiGLU(nn.Module):
    """A feed-forward layer with a gate: one matrix proposes, another decides how much passes.

        SwiGLU(x) = W_down (silu(W_gate x) ⊙ W_up x)          ⊙ multiplies number by number

    Three matrices of hidden size 8/3·d_model cost what the older two of 4·d_model cost.

    Source: Shazeer 2020 (arXiv 2002.05202), equation 6.
    """

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return each token's vector after thinking about it alone.

        Shapes: x (B, T, C) -> (B, T, C), through a hidden size of F.
        """
        hidden = F.silu(self.gate(x)) * self.up(x)  # (B, T, F)
        return self.down(hidden)  # (B, T, C)


class TransformerBlock(nn.Module):
    """One storey of the GPT: attention and feed-forward, each on a normalised copy, each added back.

    Source: pre-norm: Radford et al. 2019 (GPT-2), Xiong et al. 2020 (arXiv 2002.04745);
    residuals: He et al. 2015 (1512.03385).
    """

    def __init__(
        self, attention: MultiHeadAttention, d_model: int, d_ff: int, norm_eps: float = 1e-5, dropout: float = 0.0
    ):
        super().__init__()
        self.attention_norm = RMSNorm(d_model, norm_eps)
        self.attention = attention
        self.feed_forward_norm = RMSNorm(d_model, norm_eps)
        self.feed_forward = SwiGLU(d_model, d_ff)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Return the residual stream after one look around and one thought.

        Shapes: x (B, T, C), cos and sin (T, D/2), mask and cache as in `MultiHeadAttention` -> (B, T, C).
        """
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, mask, cache))  # (B, T, C)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # (B, T, C)
