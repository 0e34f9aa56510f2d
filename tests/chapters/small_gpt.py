"""A GPT that is made in a blink, for the tests of chapter 9: unequal sizes, and strong opinions."""

import dataclasses

import torch

from chapters.ch07_gpt_model import GPT, GPTConfig

SMALL = GPTConfig(
    vocab_size=53, d_model=30, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=4, d_ff=47, max_seq_len=29
)


def model_of(seed: int = 11, std: float = 0.4, **changes) -> GPT:
    """Return a small model with opinions as strong as `std`, from one seed."""
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(SMALL, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def some_ids(batch: int, length: int) -> torch.Tensor:
    """Return the same random ids each time."""
    return torch.randint(53, (batch, length), generator=torch.Generator().manual_seed(1))
