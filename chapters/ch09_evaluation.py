"""Evaluation: how surprised a model is by text that it has not seen, and how sure that number is.

    bits per byte = Σ -log₂ p(token | tokens before it)  /  Σ bytes of the text in UTF-8

Surprise per token cannot be compared between vocabularies, because one cuts a text into fewer tokens than another;
the bytes are the same for all. So our own runs and published models stand on one scale, whatever their tokenizers.

The number comes from some documents, and others would have given another one. The bootstrap asks by how much:
draw as many documents again, with replacement, a thousand times, and look where the middle 95 % of the results lie.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from chapters.ch02_published import SentencePieceTokenizer
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from corpora import stories
from corpora.documents import VALIDATION, load_corpus

# The longest window unless another is asked for, and how many scores may be in memory at a time.
LONGEST_WINDOW, MOST_SCORES = 1024, 1 << 26


@dataclasses.dataclass(frozen=True)
class Surprise:
    """How many bits each document cost a model, in the order of the documents.

        text     for the tokens of the text
        end      for the mark behind it; 0 where the vocabulary has no such mark
        size     bytes of the text in UTF-8

    Shapes: each (documents,).
    """

    text: np.ndarray
    end: np.ndarray
    size: np.ndarray


def measure(model: GPT, tokenizer: BPETokenizer | SentencePieceTokenizer, documents: list[str],
            window: int) -> Surprise:
    """Return a model's surprise at each document, whichever kind of tokenizer it has.

    A document stands between what its tokenizer puts before every text and the mark that ends one. One longer than
    `window` tokens is cut into pieces of that many, and each piece is read without those before it, save for the
    last token of the one before: as in training (`TokenRows`). So the first tokens of a piece surprise more.
    Raises ValueError where there is nothing to put before a text: its first token would have no probability.
    """
    # 1. Find the mark between documents. A model that chats ends its turns with another one.
    end = [mark for mark in [tokenizer.eot_id, *tokenizer.stop_ids] if mark is not None][:1]
    start = tokenizer.start_ids or end
    if not start:
        raise ValueError("the tokenizer has no token to stand before a text: choose a model with an end-of-text token")

    # 2. Measure each token behind the start.
    rows = [[*start, *tokenizer.encode(text), *end] for text in documents]
    bits = [nats[len(start) - 1 :] / math.log(2) for nats in token_surprise(model, rows, window)]

    # 3. Tell the mark from the text before it.
    text = np.array([tokens[: len(tokens) - len(end)].sum() for tokens in bits])
    marks = np.array([tokens.sum() for tokens in bits]) - text
    return Surprise(text, marks, np.array([len(document.encode()) for document in documents]))


@torch.inference_mode()
def token_surprise(model: GPT, rows: list[list[int]], window: int) -> list[np.ndarray]:
    """Return -log of the probability, in nats, that a model gave to each token of each row but the first.

    Each row of n ids gives n - 1 numbers. The model's mode is left as it was found.
    """
    # 1. Lay out the pieces, the shortest first: pieces of one length waste nothing.
    nats, training, device = [np.empty(len(ids) - 1) for ids in rows], model.training, model.rope_cos.device
    pieces = [(i, at, min(window, len(ids) - 1 - at)) for i, ids in enumerate(rows)
              for at in range(0, len(ids) - 1, window)]
    pieces.sort(key=lambda piece: piece[2])
    model.eval()
    for batch in batches(pieces, MOST_SCORES // model.config.vocab_size):
        # 2. Fill short ones up behind their ends, where no token looks.
        block = torch.zeros(len(batch), batch[-1][2] + 1, dtype=torch.long)
        for row, (i, at, length) in zip(block, batch, strict=True):
            row[: length + 1] = torch.tensor(rows[i][at : at + length + 1])

        # 3. Predict, and look up what the true next token was given. In float32: differences are small.
        block = block.to(device)
        logits = model(block[:, :-1]).float()
        losses = F.cross_entropy(logits.transpose(1, 2), block[:, 1:], reduction="none").cpu().numpy()
        for row, (i, at, length) in zip(losses, batch, strict=True):
            nats[i][at : at + length] = row[:length]
    # 4. Leave the model as it was.
    model.train(training)
    return nats


def batches(pieces: list[tuple], most_tokens: int) -> Iterator[list[tuple]]:
    """Yield the pieces in groups of at most `most_tokens` tokens each, counted with what short ones are filled up by.

    A piece that is longer than that stands alone. Pieces are (row, place, length), the shortest first.
    """
    # 1. Close a group when one more piece, the longest so far, would make it too large.
    group = list[tuple]()
    for piece in pieces:
        if group and (len(group) + 1) * piece[2] > most_tokens:
            yield group
            group = []
        # 2. Take it in.
        group.append(piece)
    # 3. Give the rest.
    yield from [group] if group else []


def bootstrap_interval(bits: np.ndarray, size: np.ndarray, resamples: int = 1000, level: float = 0.95,
                       seed: int = 0) -> tuple[float, float]:
    """Return the ends of an interval that holds the bits per byte of all such text, about 95 times in 100.

    Whole documents are drawn again, because the bytes of one document are not independent of each other. It says how
    much chance lies in the choice of the documents; it says nothing about another training run.

    Shapes: bits and size (documents,). Raises ValueError for fewer than two documents: nothing varies then.
    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (the percentile interval).
    """
    # 1. Refuse what would look like certainty.
    if len(bits) < 2:
        raise ValueError(f"an interval over documents needs at least 2 of them, and here is {len(bits)}")

    # 2. Draw as many documents as there are, some twice, some not at all, and divide sum by sum as before.
    dice, ratios = np.random.default_rng(seed), np.empty(resamples)
    for i in range(resamples):
        drawn = dice.integers(len(bits), size=len(bits))
        ratios[i] = bits[drawn].sum() / size[drawn].sum()

    # 3. Cut off equal shares at both ends.
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def evaluate(model: GPT, tokenizer: BPETokenizer | SentencePieceTokenizer, documents: list[str],
             window: int | None = None, floor: float | None = None) -> list[str]:
    """Return what there is to say about a model's surprise at some documents, line by line.

    `window` is the most tokens that are read together, by default the model's context, up to 1024. `floor` is the
    lowest bits per byte that any model could reach, where it is known.
    Raises ValueError for a window that the model does not have, and for documents without text.
    """
    # 1. Settle the window.
    context = model.config.max_seq_len
    window = min(LONGEST_WINDOW, context) if window is None else window
    if not 1 <= window <= context:
        raise ValueError(f"--window is {window}: it must be 1 to {context}, the model's context")

    # 2. Measure.
    found = measure(model, tokenizer, documents, window)
    if not (size := int(found.size.sum())):
        raise ValueError("the held-out documents hold no text: give more with --data, or a larger --documents")
    score = (bits := found.text + found.end).sum() / size
    lines = [f"{len(documents):,} held-out documents, {size:,} bytes, read in windows of {window} tokens",
             f"bits per byte {score:.4f}, end tokens included ({found.text.sum() / size:.4f} without)"]

    # 3. Say how sure it is, or why that cannot be said.
    if len(documents) > 1:
        low, high = bootstrap_interval(bits, found.size)
        lines.append(f"95 % interval {low:.4f} to {high:.4f}, by 1000 draws of whole documents")
    else:
        lines.append("no interval: it needs at least 2 held-out documents")

    # 4. Compare with the best that is possible.
    return lines + ([] if floor is None else [f"floor {floor:.4f}, the lowest that any model can reach"])


def held_out(model: Path, data: str | None, most: int) -> tuple[list[str], float | None]:
    """Return up to `most` held-out documents of a text, and the lowest bits per byte on them where that is known.

    `model` is a model folder: without `data`, the text is the one that its run learnt from, and the documents are
    those that the run has held out; for a folder from elsewhere it is the stories.
    Raises ValueError, naming the place and the rule, where there is no such text.
    """
    # 1. Divide the text as the run did. The seed draws the stories.
    if most < 1:
        raise ValueError(f"--documents is {most}: it must be 1 or above")
    settings = run_settings(model)
    if data is not None and data != settings.get("data"):
        settings = {"data": data}
    corpus = load_corpus(**{"data": "stories"} | settings)

    # 2. Read no further than needed. Of some stories only, the floor is another one.
    held = (document.text for document in corpus.documents() if document.side == VALIDATION)
    documents = list(itertools.islice(held, most))
    floor = None if corpus.floor is None or not documents else stories.floor_bits_per_byte(documents)
    return documents, floor


def run_settings(folder: Path) -> dict:
    """Return the settings of the run that made a model folder, none for a folder from elsewhere.

    They say on which text, cut into which two sides, a model was trained. Raises ValueError where the file is
    damaged: a guess could examine a model on the text that it has learnt.
    """
    # 1. Tell a folder from elsewhere from a damaged one.
    path = folder / "settings.json"
    if not path.exists():
        return {}

    # 2. Read what decides the text.
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        names = ("data", "text_field", "clean")
        return {name: settings[name] for name in names} | {"seed": settings["train"]["seed"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it, and say --data") from None
