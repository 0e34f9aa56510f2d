"""Data for training: documents in a row of token ids, and batches drawn from it.

    documents   ->  one long array of ids, an end token in front of and behind each
    rows        ->  places in it where a training example of `context` tokens begins
    batch       ->  some rows in shuffled order: x is what the model reads, y the same one place further on

`TokenRows` holds all of it in memory, which is the simplest and the specification; `ch08_store.py` keeps the ids in
files that may be larger than the memory, and gives the very same rows. The loop that reads them is `ch08_training.py`.
"""

import copy
import functools

import numpy as np
import torch
from torch import Tensor

from chapters.ch02_tokenization import BPETokenizer


class TokenRows:
    """Documents as one long array of token ids, cut into rows that training and validation read.

    Every document is preceded and followed by the end token, so a model learns to begin and to stop. A row
    starts where a document starts; a document longer than `context` gives several rows. `counts` says how
    many targets of a row belong to its document, so that validation counts each token once.
    """

    def __init__(self, documents: list[str], tokenizer: BPETokenizer, context: int):
        # 1. Tokenize in bulk. The end token closes each document and opens the next.
        tokens, ends = tokenizer.encode_documents(documents)
        first = np.full(1, tokenizer.eot_id, tokens.dtype)
        self.num_bytes = sum(len(text.encode("utf-8")) for text in documents)
        self.cut(np.concatenate([first, tokens]), ends, context)

    def cut(self, tokens: np.ndarray, ends: np.ndarray, context: int) -> None:
        """Cut rows: at each document's start, then every `context` tokens until its end token is predicted.

        Shapes: tokens (N,), of which the first is an end token; ends (documents,), the place of each one's end token.
        """
        # 1. Count the rows of each document. The last one may be shorter.
        self.tokens, self.context = tokens, context
        lengths = np.diff(ends, prepend=0)
        rows = -(-lengths // context)

        # 2. Number the rows inside their documents, and find where each starts and how much of it counts.
        number = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        self.starts = np.repeat(ends - lengths, rows) + number * context
        self.counts = np.minimum(np.repeat(ends, rows) - self.starts, context)

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of these rows: the same tokens, one place apart.

        What lies behind the last document is end tokens.

        Shapes: indices (B,) -> x (B, T) and y (B, T) with T = context, where y[:, t] follows x[:, t].
        """
        window = self.starts[indices][:, None] + np.arange(self.context + 1)  # (B, T+1)
        ids = self.tokens[np.minimum(window, len(self.tokens) - 1)]  # (B, T+1)
        block = torch.from_numpy(ids.astype(np.int64))  # (B, T+1)
        return block[:, :-1], block[:, 1:]  # (B, T), (B, T)

    def sample(self, num_tokens: int, tokenizer: BPETokenizer) -> "TokenRows":
        """Return every n-th of the rows, about `num_tokens` targets in all, or all rows where there are no more.

        A look at an even part of the held-out text says nearly as much as all of it, and takes less time.
        """
        # 1. Step through the rows, so that each region of the text is met.
        step = int(-(-self.counts.sum() // num_tokens))
        if step == 1:
            return self
        some = copy.copy(self)
        some.starts, some.counts = self.starts[::step], self.counts[::step]

        # 2. Count the bytes of these targets; end tokens have none.
        parts = (self.tokens[a + 1 : a + 1 + n] for a, n in zip(some.starts, some.counts, strict=True))
        ids = np.concatenate(list(parts))
        some.num_bytes = len(tokenizer.decode_bytes(ids[ids != tokenizer.eot_id]))
        return some


@functools.lru_cache(maxsize=2)
def shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers below `size` in the order of one pass over the data: for one seed and pass always the same.

    The last two are remembered, since many batches in a row ask for the same, and one may straddle two.
    """
    return np.random.default_rng([seed, epoch]).permutation(size)


def get_batch(data: TokenRows, index: int, batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return batch number `index` of an endless, seeded shuffle of the rows.

    Each pass over the data has its own order, and each row comes once per pass. A batch depends on its
    number alone, so a resumed run sees what an undisturbed one would have seen.

    Shapes: -> x (B, T) and y (B, T).
    """
    # 1. Find which rows these are, counted from the beginning of the run.
    numbers = np.arange(index * batch_size, (index + 1) * batch_size)  # (B,)
    rows = np.empty_like(numbers)  # (B,)

    # 2. Look each up in the order of its pass; one batch may straddle two passes.
    for epoch in np.unique(numbers // len(data)):
        mine = numbers // len(data) == epoch  # (B,)
        rows[mine] = shuffled(len(data), seed, int(epoch))[numbers[mine] % len(data)]
    return data.rows(rows)  # (B, T), (B, T)
