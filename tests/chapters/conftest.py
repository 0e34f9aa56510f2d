"""What several chapters' tests share: a tokenizer, documents of unequal lengths, and rows, and trainers."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch08_training import TokenRows, TrainConfig, Trainer

# One is shorter than a context of 16 tokens, one empty, one several contexts long, one written in many bytes.
DOCUMENTS = [
    "the cat sat on the mat. ",
    "the dog sat on the log, and the frog sat on the bog. " * 3,
    "",
    "a",
    "ein Bär läßt größere Brötchen übrig. ",
    "the end, said the cat; the end, said the dog. ",
]


# A model and a run over in a blink.
SMALL = GPTConfig(
    vocab_size=300, d_model=24, num_layers=2, num_heads=3, num_kv_heads=1, d_ff=35, max_seq_len=16
)
QUICK = TrainConfig(
    max_steps=9,
    warmup_steps=3,
    batch_size=4,
    eval_every=4,
    checkpoint_every=100,
    dtype="float32",
    compile="off",
    learning_rate=1e-2,
    final_lr_fraction=0.05,
    weight_decay=0.1,
    beta2=0.95,
    optimizer="adamw",
)


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Texts whose lengths differ as much as texts do."""
    return DOCUMENTS


@pytest.fixture(scope="session")
def tokenizer(documents) -> BPETokenizer:
    """A tokenizer of 300 tokens, the end token among them."""
    return BPETokenizer.train(documents, 300)


@pytest.fixture(scope="session")
def rows(documents, tokenizer) -> TokenRows:
    """The documents in rows of 16 tokens."""
    return TokenRows(documents, tokenizer, 16)


@pytest.fixture
def trainer(rows, tmp_path) -> Callable[..., Trainer]:
    """Make trainers on the same rows and first weights, each with a run folder of its own."""

    def make(
        name: str = "run", dropout: float = 0.0, tied: bool = True, on_evaluation=None, **changes
    ) -> Trainer:
        torch.manual_seed(8)
        (tmp_path / name).mkdir(exist_ok=True)
        model = GPT(dataclasses.replace(SMALL, dropout=dropout, tie_embeddings=tied))
        return Trainer(
            model, rows, rows, dataclasses.replace(QUICK, **changes), tmp_path / name, on_evaluation
        )

    return make


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are slower on many threads, and sums then depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
