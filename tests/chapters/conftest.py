"""What several chapters' tests share: a tokenizer, documents of unequal lengths, and rows cut from them."""

import pytest
import torch

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch08_training import TokenRows

# One is shorter than a context of 16 tokens, one empty, one several contexts long, one written in many bytes.
DOCUMENTS = ["the cat sat on the mat. ", "the dog sat on the log, and the frog sat on the bog. " * 3, "", "a",
             "ein Bär läßt größere Brötchen übrig. ", "the end, said the cat; the end, said the dog. "]


@pytest.fixture(scope="session")
def tokenizer() -> BPETokenizer:
    """A tokenizer of 300 tokens, the end token among them."""
    return BPETokenizer.train(DOCUMENTS, 300)


@pytest.fixture(scope="session")
def rows(tokenizer) -> TokenRows:
    """The documents in rows of 16 tokens."""
    return TokenRows(DOCUMENTS, tokenizer, 16)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are slower on many threads, and sums then depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
