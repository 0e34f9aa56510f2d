"""The book's running example: three tokens, small enough to follow every number on paper.

The sentence is "Lily lost her", and the next word is missing: her what? To guess it, the last token has
to look back. Whose? Lily's. What happened to it? It was lost. So the example has two heads, one that looks
for the name and one that looks for the action, and all pages share its numbers.

Each token is a vector of four numbers, and here each number has a meaning that a person can read:

    names   1 if the token names somebody
    acts    1 if the token tells an action
    asks    how much is still open after this token ("her" what? "lost" what?)
    girl    1 for a girl, -1 for a boy, 0 where neither is meant

A trained model has hundreds of columns, and nobody labels them. The labels are ours; the arithmetic is real.
Scores are whole numbers, and with a head size of 2 one point of score multiplies a share of attention
by exp(1/√2) = 2.03: on paper, each point doubles it. Positions (chapter 4) are left out.
"""

import torch
from torch import Tensor

from chapters.ch05_attention import MultiHeadAttention
from chapters.ch06_transformer_block import SwiGLU, TransformerBlock

# The sentence, the meaning of each number in a vector, and the sizes.
TOKENS = ("Lily", "lost", "her")
COLUMNS = ("names", "acts", "asks", "girl")
D_MODEL, NUM_HEADS, HEAD_DIM = 4, 2, 2

# What chapter 3's table would hold for these tokens, in the order of COLUMNS.
VECTORS = {
    "Lily": (1.0, 0.0, 0.0, 1.0),
    "lost": (0.0, 1.0, 1.0, 0.0),
    "her": (0.0, 0.0, 2.0, 1.0),
    "Tom": (1.0, 0.0, 0.0, -1.0),
}

# Each row is a recipe for one number: how much of names, acts, asks and girl goes into it.
# Rows 0 and 1 belong to the head that looks for the name, rows 2 and 3 to the one that looks for the action.
W_Q = torch.tensor([
    [0.0, 0.0, 1.0, 0.0],
    [0.0, 0.0, 0.0, 1.0],
    [0.0, 0.0, 1.0, 0.0],
    [1.0, 0.0, 0.0, 0.0],
])
W_K = torch.tensor([
    [1.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 1.0],
    [0.0, 1.0, 0.0, 0.0],
    [0.0, 1.0, 0.0, 0.0],
])
W_V = torch.tensor([
    [1.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.5],
    [0.0, 1.0, 0.0, 0.0],
    [0.0, 0.0, 1.0, 0.0],
])

# The output's rows are recipes too: how much of the four gathered numbers goes back into each column.
W_O = torch.tensor([
    [1.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 1.0, 0.0],
    [-1.0, 0.0, 0.0, 0.5],
    [0.0, 1.0, 0.0, 0.0],
])

# The feed-forward layer has two hidden numbers. The first thinks "I ask, and I know what happened": its gate is
# how much is asked, and what it lets through is the action. The second thinks "I name somebody and ask nothing,
# and it is a girl". The first is added to what is asked, the second to the girl.
W_GATE = torch.tensor([
    [0.0, 0.0, 1.0, 0.0],
    [1.0, 0.0, -1.0, 0.0],
])
W_UP = torch.tensor([
    [0.0, 1.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 1.0],
])
W_DOWN = torch.tensor([
    [0.0, 0.0],
    [0.0, 0.0],
    [1.0, 0.0],
    [0.0, 1.0],
])


def embed(*tokens: str) -> Tensor:
    """Return the vectors of these tokens, one row each; without arguments, those of "Lily lost her".

    Shapes: -> (T, C). Raises ValueError for a token that the example does not know.
    """
    # 1. Refuse strangers by name, and say who is known.
    tokens = tokens or TOKENS
    for token in tokens:
        if token not in VECTORS:
            raise ValueError(f"{token!r} is not in the running example: use one of {', '.join(VECTORS)}")

    # 2. Stack the rows, as an embedding table would.
    return torch.tensor([VECTORS[token] for token in tokens])  # (T, C)


def no_rotation(length: int) -> tuple[Tensor, Tensor]:
    """Return chapter 4's tables for "turn by nothing": cosines 1, sines 0, so that positions play no part.

    Shapes: -> cos and sin, each (T, D/2).
    """
    return torch.ones(length, HEAD_DIM // 2), torch.zeros(length, HEAD_DIM // 2)  # (T, D/2), (T, D/2)


def attention_layer() -> MultiHeadAttention:
    """Return the model's own attention layer, holding the four matrices of this example.

    Its `forward` gives the same numbers that the by-hand steps of chapter 5 give.
    """
    layer = MultiHeadAttention(D_MODEL, NUM_HEADS)
    layer.load_state_dict({"query.weight": W_Q, "key.weight": W_K, "value.weight": W_V, "output.weight": W_O})
    return layer.requires_grad_(False)


def feed_forward_layer() -> SwiGLU:
    """Return the model's own feed-forward layer, holding the three matrices of this example."""
    layer = SwiGLU(D_MODEL, len(W_GATE))
    layer.load_state_dict({"gate.weight": W_GATE, "up.weight": W_UP, "down.weight": W_DOWN})
    return layer.requires_grad_(False)


def block() -> TransformerBlock:
    """Return a whole block of the model that holds both layers of this example; its norms scale nothing.

    In it attention hears normalised vectors, so its numbers are not those of chapter 5, which shows attention alone.
    """
    made = TransformerBlock(attention_layer(), D_MODEL, len(W_GATE))
    made.feed_forward.load_state_dict(feed_forward_layer().state_dict())
    return made.requires_grad_(False)
