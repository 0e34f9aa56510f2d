"""The whole journey in its shortest form: read a text, train a tokenizer and a GPT on it, let the GPT speak.

    python gpt.py                      learn from the stories at the end of this file, and tell one
    python gpt.py my.txt               learn from a text of your own
    python gpt.py --help               all settings

Everything is kept in the folder gpt-run. The same command again goes on where the last one stopped, or, when the
training is done, only tells; with more --steps it trains on. `main.py` is the same journey with all its comforts;
`ch10_onefile.py` writes this one, with everything it needs, into a single file.
"""

import argparse
import sys
from pathlib import Path

import torch

from chapters.ch02_tokenization import END_OF_TEXT, BPETokenizer
from chapters.ch07_config import GPTConfig
from chapters.ch07_gpt_model import GPT
from chapters.ch08_config import TrainConfig
from chapters.ch08_data import TokenRows
from chapters.ch08_training import Trainer
from chapters.ch09_config import SamplingConfig
from chapters.ch09_inference import stream_story
from corpora.stories import generate as tell_stories

# Enough stories to learn what a story is like; too few to learn to tell one well.
STORIES = tell_stories(60, seed=0)


def read_documents(path: Path | None) -> list[str]:
    """Return the documents of a text file, which <|endoftext|> separates; without a path, the stories.

    A text without that mark is cut at its paragraphs. Raises ValueError where it has fewer than two parts: one is
    learnt from, and another held out. Raises OSError and UnicodeDecodeError for a file that cannot be read.
    """
    # 1. Read.
    if path is None:
        return STORIES
    text = path.read_text(encoding="utf-8")

    # 2. Cut, and leave out what is empty.
    parts = [part.strip("\n") for part in text.split(END_OF_TEXT if END_OF_TEXT in text else "\n\n")]
    documents = [part for part in parts if part]
    if len(documents) < 2:
        raise ValueError(f"{path} has {len(documents)} paragraph: give at least 2, separated by empty lines")
    return documents


def train(documents: list[str], folder: Path, steps: int) -> tuple[GPT, BPETokenizer]:
    """Return a GPT that has learnt these documents, and its tokenizer; go on with the training kept in `folder`.

    One in twenty documents is held out, the last ones. Raises ValueError where `folder` keeps the training of another
    text or of other sizes.
    """
    # 1. Learn which letters belong together.
    held_out = -(-len(documents) // 20)
    learnt, examined = documents[:-held_out], documents[-held_out:]
    tokenizer = BPETokenizer.train(learnt, vocab_size=512)

    # 2. Build a small GPT. The seed decides its first weights, and a training that goes on needs the same ones.
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, d_model=128, num_layers=3, d_ff=384, max_seq_len=128, qk_norm=True))
    rows = [TokenRows(part, tokenizer, model.config.max_seq_len) for part in (learnt, examined)]

    # 3. Train it.
    settings = TrainConfig(max_steps=steps, warmup_steps=min(20, steps), batch_size=12, compile="off")
    folder.mkdir(exist_ok=True)
    trainer = Trainer(model, *rows, settings, folder, on_evaluation=report)
    trainer.resume()
    trainer.train()
    # 4. Hand it over, or end here where somebody has pressed Ctrl-C: all is saved.
    if trainer.step < steps:
        raise KeyboardInterrupt
    return model, tokenizer


def report(trainer: Trainer, metrics: dict) -> None:
    """Print how far the training is, and how surprised the model is by text that it has not seen.

    The Trainer calls it at each examination.
    """
    print(f"step {metrics['step']:4} of {trainer.config.max_steps}: "
          f"{metrics['validation_bits_per_byte']:.3f} bits per byte on held-out text", flush=True)


def tell(model: GPT, tokenizer: BPETokenizer, prompt: str, seed: int) -> None:
    """Print a text that begins with `prompt`, each piece as soon as it is made."""
    print(f"\n{prompt}", end="")
    for piece in stream_story(model, tokenizer, prompt, SamplingConfig(seed=seed)):
        print(piece, end="", flush=True)
    print()


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return what was asked for on the command line.

    A mistake ends in one line and exit code 2.
    """
    # 1. Say what is learnt, and how long.
    parser = argparse.ArgumentParser(description="Train a small GPT on a text, and let it speak.")
    parser.add_argument("text", nargs="?", type=Path, help="a text file (default: the stories in this file)")
    parser.add_argument("--steps", type=int, default=300, help="steps of training (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("gpt-run"), help="what is kept (default: %(default)s)")

    # 2. Say what is told then.
    parser.add_argument("--prompt", default="", help="how the text begins that the model goes on with")
    parser.add_argument("--seed", type=int, default=0, help="another number, another text")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Read the command line, train, and tell; return the exit code.

    0 is done, 2 a mistake in what was asked for, 130 stopped by Ctrl-C.
    """
    # 1. Read, train, then speak.
    args = read_arguments(argv)
    try:
        model, tokenizer = train(read_documents(args.text), args.folder, args.steps)
        tell(model, tokenizer, args.prompt, args.seed)
        return 0
    # 2. Answer in one line where something cannot be done, or somebody has pressed Ctrl-C.
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
