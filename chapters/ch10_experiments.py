"""Experiments: change one thing about the model or its training, train both ways, and see what it was good for.

    python -m chapters.ch10_experiments baseline deeper        train these two, and print a row for each
    python -m chapters.ch10_experiments --list                 what there is

Most experiments are a setting with another value. Some build what no published family has, as subclasses: norms
behind the layers and not before them, no positions or learnt ones, attention written by hand, a mask that leaks. They
live here and not in chapter 7's GPT, where each would be a branch in the code that every other page must read past.

All are small (the `nano` preset) and short, and are examined on the same held-out stories. So the rows may be compared
with each other; what holds at this size need not hold for a model a thousand times as large.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch05_attention import MultiHeadAttention, causal_mask, repeat_kv, scaled_dot_product_attention
from chapters.ch06_transformer_block import TransformerBlock
from chapters.ch07_gpt_model import GPT, PRESETS, GPTConfig
from chapters.ch08_training import TokenRows, TrainConfig, Trainer
from corpora import stories

# The tokenizer is not part of any experiment: all take the one that comes with the book.
TOKENIZER = Path(__file__).resolve().parent.parent / "models" / "storyteller"

# Held-out stories, the same for all. They are drawn by other dice than those to learn from.
HELD_OUT = 64


class Variant(GPT):
    """A GPT made of other parts: subclasses name the kind of attention and the kind of block."""

    attention, block = MultiHeadAttention, TransformerBlock

    def _block(self) -> TransformerBlock:
        """Return one block of the configured size, of this variant's kinds."""
        c = self.config
        attention = self.attention(
            c.d_model, c.num_heads, c.num_kv_heads, c.head_dim, c.qkv_bias, c.qk_norm, c.norm_eps, c.dropout
        )
        return self.block(attention, c.d_model, c.d_ff, c.norm_eps, c.dropout)


class PostNormBlock(TransformerBlock):
    """A block as in 2017: add first, normalise what came out. The straight road from top to bottom is gone.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.1.
    """

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Return the stream after one look around and one thought, its volume turned to 1 after each.

        Shapes: x (B, T, C), cos and sin (T, D/2), mask and cache as in `MultiHeadAttention` -> (B, T, C).
        """
        x = self.attention_norm(x + self.dropout(self.attention(x, cos, sin, mask, cache)))  # (B, T, C)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # (B, T, C)


class PostNorm(Variant):
    """A GPT of post-norm blocks."""

    block = PostNormBlock


class AttentionByHand(MultiHeadAttention):
    """Chapter 5's five lines in place of the fused kernel: the same numbers, with every table kept in memory."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Return what `MultiHeadAttention` returns, for a text without a cached past.

        Shapes: x (B, T, C), cos and sin (T, D/2), mask (T, S) -> (B, T, C).
        """
        # 1. Make queries, keys and values, as always.
        q, k, v = self.project(x, cos, sin)  # (B, H, T, D), (B, K, T, D), (B, K, T, D)
        groups = self.num_heads // self.num_kv_heads
        k, v = repeat_kv(k, groups), repeat_kv(v, groups)  # (B, H, S, D), (B, H, S, D)

        # 2. Score, scale, mask, share out, mix: one line after the other.
        allowed = causal_mask(x.shape[1], x.shape[1], device=x.device) if mask is None else mask  # (T, S)
        heads, _ = scaled_dot_product_attention(q, k, v, allowed)
        return self.output(heads.transpose(1, 2).flatten(2))  # (B, T, C)


class ByHand(Variant):
    """A GPT whose attention is chapter 5's specification."""

    attention = AttentionByHand


class LeakingAttention(MultiHeadAttention):
    """Attention whose mask is wrong by one while training: each token sees the next one, which is the answer.

    In use the mask is right, because there the next token does not exist yet.
    """

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Return what the heads gathered.

        Shapes: x (B, T, C), cos and sin (T, D/2), mask (T, S) -> (B, T, C).
        """
        if self.training:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril(1)  # (T, S)
        return super().forward(x, cos, sin, mask, cache)  # (B, T, C)


class Leaking(Variant):
    """A GPT that may cheat at its exercises and not in its examination."""

    attention = LeakingAttention


class NoPositions(GPT):
    """A GPT that is not told which token came first: every angle of RoPE is zero.

    What is left of the order is the mask: the third token sees three, the fourth sees four.
    """

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.rope_cos.fill_(1)
        self.rope_sin.zero_()


class LearnedPositions(NoPositions):
    """A GPT that adds a learnt vector for each position to the embeddings, as GPT-2 does.

    For training and examination alone: it knows nothing of a cached past.

    Source: Radford et al. 2019 (GPT-2).
    """

    def __init__(self, config: GPTConfig):
        # 1. Keep one vector a position, small at first like those of the tokens.
        super().__init__(config)
        self.positions = nn.Parameter(0.02 * torch.randn(config.max_seq_len, config.d_model))  # (T, C)
        # 2. Step in where tokens have become vectors.
        self.token_embedding.register_forward_hook(self._add_positions)

    def _add_positions(self, layer: nn.Module, given: tuple, vectors: Tensor) -> Tensor:
        """Return the tokens' vectors with those of their places added."""
        return vectors + self.positions[: vectors.shape[1]]  # (B, T, C)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What one experiment does otherwise than the baseline.

        title      in the reader's words
        model      fields of `GPTConfig` that differ
        train      fields of `TrainConfig` that differ
        stories    how many different stories there are to learn from
        kind       the class of the model
    """

    title: str
    model: dict = dataclasses.field(default_factory=dict)
    train: dict = dataclasses.field(default_factory=dict)
    stories: int = 2400
    kind: type[GPT] = GPT


# Context times batch is kept, so that every step reads as many tokens.
EXPERIMENTS = {
    "baseline": Experiment("the baseline"),
    "deeper": Experiment("deeper: 8 blocks, not 4", {"num_layers": 8}),
    "wider": Experiment("wider: 192 numbers, not 128", {"d_model": 192, "d_ff": 576}),
    "fewer-stories": Experiment("less text: 60 stories, again and again", stories=60),
    "longer": Experiment("longer: twice the steps", train={"max_steps": 120}),
    "one-kv-head": Experiment("one key/value head, not 4", {"num_kv_heads": 1}),
    "short-context": Experiment("half the context: 80 tokens", {"max_seq_len": 80}, {"batch_size": 16}),
    "long-context": Experiment("twice the context: 320 tokens", {"max_seq_len": 320}, {"batch_size": 4}),
    "untied": Experiment("output head of its own (untied)", {"tie_embeddings": False}),
    "by-hand": Experiment("attention by hand, not fused", kind=ByHand),
    "learned-positions": Experiment("learnt positions, no RoPE", kind=LearnedPositions),
    "no-positions": Experiment("no positions at all", kind=NoPositions),
    "post-norm": Experiment("post-norm, not pre-norm", kind=PostNorm),
    "no-qk-norm": Experiment("no QK-norm", {"qk_norm": False}),
    "adamw": Experiment("AdamW at 0.01, not Muon at 0.03", train={"optimizer": "adamw", "learning_rate": 1e-2}),
    "adamw-slow": Experiment("AdamW at 0.003", train={"optimizer": "adamw", "learning_rate": 3e-3}),
    "leak": Experiment("a mask that leaks", kind=Leaking),
}


def look_up(name: str) -> Experiment:
    """Return the experiment of this name. Raises ValueError for a name that is not in EXPERIMENTS."""
    if name not in EXPERIMENTS:
        raise ValueError(f"{name!r} is no experiment: choose among {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def prepare(name: str, seed: int, folder: Path) -> Trainer:
    """Return a trainer for an experiment, at its beginning.

    `folder` is where the trainer may write. Raises ValueError for a name that is not in EXPERIMENTS.
    """
    # 1. Build the model. One seed decides its first numbers and the order of the texts.
    experiment = look_up(name)
    tokenizer = BPETokenizer.load(TOKENIZER)
    torch.manual_seed(seed)
    sizes = {"vocab_size": tokenizer.vocab_size, "qk_norm": True} | experiment.model
    model = experiment.kind(PRESETS["nano"].resized(**sizes))

    # 2. Draw the texts, the same for all seeds and all experiments.
    texts = stories.generate(experiment.stories, seed=0), stories.generate(HELD_OUT, seed=1)
    rows = [TokenRows(part, tokenizer, model.config.max_seq_len) for part in texts]
    settings = {"max_steps": 60, "batch_size": 8, "compile": "off", "seed": seed} | experiment.train
    return Trainer(model, *rows, TrainConfig(**settings), folder)


def run(name: str, seed: int = 0) -> dict:
    """Return what became of an experiment: its parameters, its last losses, and its examination in bits per byte.

    `loss` is the mean of the last ten steps, per token in nats; `held_out` is the surprise in use, on stories that
    were not learnt from.
    """
    # 1. Train.
    with tempfile.TemporaryDirectory() as folder:
        trainer = prepare(name, seed, Path(folder))
        trainer.model.train()
        losses = [trainer.train_step()["loss"] for _ in range(trainer.config.max_steps)]
        # 2. Examine. What no dataclass can count is counted on the model itself.
        parameters = sum(p.numel() for p in trainer.whole.parameters())
        return {"name": name, "seed": seed, "parameters": parameters, "loss": sum(losses[-10:]) / 10,
                "held_out": trainer.evaluate()}


def main(argv: list[str] | None = None) -> None:
    """Run the experiments that are named on the command line, and print a row for each."""
    # 1. Read what to do.
    parser = argparse.ArgumentParser(prog="python -m chapters.ch10_experiments", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["baseline"], metavar="NAME", help="default baseline")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--list", action="store_true", help="print all names")
    args = parser.parse_args(argv)

    # 2. Only list what there is, where that is asked.
    if args.list:
        print(*(f"{name:18} {experiment.title}" for name, experiment in EXPERIMENTS.items()), sep="\n")
        return

    # 3. Refuse an unknown name before anything is trained.
    try:
        for name in args.names:
            look_up(name)
    except ValueError as error:
        parser.error(str(error))

    # 4. Train one after the other.
    for name in args.names:
        made = run(name, args.seed)
        print(f"{name:18} {made['parameters']:>9,} parameters  training loss {made['loss']:.3f}  "
              f"held out {made['held_out']:.3f} bits per byte", flush=True)


if __name__ == "__main__":
    main()
