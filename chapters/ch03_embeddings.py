"""Token embeddings: each token id becomes a vector that training can move.

The tokenizer of chapter 2 turns text into whole numbers. A number such as 417 says nothing
about its meaning: 418 is not "a little more" than 417. So the model keeps a table with one row
of `d_model` numbers per token, and reading a token means copying its row:

    vector of token i = E[i],        E has the shape (vocab_size, d_model)

The rows start as noise. Training moves them, and tokens that are used alike end up close to each
other. Chapter 4 tells these vectors their order, chapter 5 lets them look at each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def one_hot_lookup(ids: Tensor, weight: Tensor) -> Tensor:
    """Return the rows of `weight` that `ids` name, the slow way: as a matrix product.

    A one-hot row is all zeros with a single 1; multiplied by the table, it keeps one row of it.
    This is what a lookup means, and why a lookup has a gradient.

    Shapes: ids (B, T), weight (V, C) -> (B, T, C).
    """
    one_hot = F.one_hot(ids, weight.shape[0]).to(weight.dtype)  # (B, T, V)
    return one_hot @ weight  # (B, T, C)


class TokenEmbedding(nn.Module):
    """A table with one trainable row of `d_model` numbers for each token of the vocabulary.

    The rows begin as normal noise of standard deviation 0.02, as in GPT-2. They are not
    multiplied by the square root of `d_model`: the Transformer of 2017 did that, GPT-2 and Llama do not.

    Source: Radford et al. 2019 (GPT-2); Vaswani et al. 2017 (arXiv 1706.03762), section 3.4.
    """

    def __init__(self, vocab_size: int, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))  # (V, C)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the row of every id; equal to `one_hot_lookup`, without the product by zeros.

        Shapes: ids (B, T) of whole numbers below `vocab_size` -> (B, T, C).
        """
        return F.embedding(ids, self.weight)  # (B, T, C)


def nearest_tokens(
    weight: Tensor, vector: Tensor, k: int = 5, exclude: tuple[int, ...] = ()
) -> list[tuple[int, float]]:
    """Return the `k` token ids whose rows point most nearly the way `vector` points.

    Nearness is the cosine of the angle: 1 for the same direction, 0 for a right angle. The
    length of a row does not count; by dot products, the longest rows would be near to everything.

    Shapes: weight (V, C), vector (C,) -> pairs of (id, cosine), best first, without the ids in `exclude`.
    """
    # 1. Compare directions. Rows and vector are scaled to length 1, so a dot product is the cosine.
    rows = F.normalize(weight.float(), dim=-1)  # (V, C)
    cosines = rows @ F.normalize(vector.float(), dim=-1)  # (V,)

    # 2. Bar what the caller knows already. A word is always its own nearest neighbour.
    cosines[list(exclude)] = -float("inf")
    best = torch.topk(cosines, k)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def analogy(weight: Tensor, a: int, b: int, c: int, k: int = 5) -> list[tuple[int, float]]:
    """Return the ids nearest to `a - b + c`: king − man + woman asks what is to woman as king is to man.

    The three words of the question are left out of the answer, as is usual; without that the
    nearest row is nearly always one of them, most often `a`, which is worth knowing.

    Shapes: weight (V, C), ids a, b, c -> pairs of (id, cosine), best first.
    Source: Mikolov, Yih, Zweig 2013 (NAACL), "Linguistic Regularities in Continuous Space Word Representations".
    """
    rows = F.normalize(weight.float(), dim=-1)  # (V, C)
    return nearest_tokens(weight, rows[a] - rows[b] + rows[c], k, exclude=(a, b, c))
