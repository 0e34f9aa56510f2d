"""The tokenizer: training and bulk encoding, ours against Hugging Face `tokenizers`, written in Rust.

    python benchmarks/bench_tokenizer.py [TEXT_FILE ...] --write

One megabyte of the book's stories, one of the standard library's source, and one of each file named. Both
learn 1 024 tokens; both encode all documents, and ours closes each with the end token. `tokenizers` takes as
many threads as it likes. A speed is the median of the rounds, a ratio the median of the rounds' own ratios.
"""

import statistics
import sys
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from chapters.ch02_tokenization import END_OF_TEXT, BPETokenizer  # noqa: E402
from corpora import stories  # noqa: E402

NUM_BYTES, VOCAB_SIZE, ROUNDS = 1_000_000, 1024, 9


def first_megabyte(documents: list[str]) -> list[str]:
    """Return documents from the front until they make a megabyte."""
    # 1. Count bytes, not characters: both libraries work on bytes.
    chosen, size = [], 0
    for document in documents:
        if size >= NUM_BYTES:
            break
        chosen.append(document)
        size += len(document.encode("utf-8"))
    return chosen


def texts() -> dict[str, list[str]]:
    """Return the documents of each text to measure, by its name."""
    # 1. Take what is on every disk.
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    found = {
        "stories": stories.generate(8000, seed=0),
        "Python's library": [path.read_text("utf-8", errors="replace") for path in library],
    }
    # 2. Add what the command names, a paragraph being a document.
    for name in sys.argv[1:]:
        if not name.startswith("--"):
            found[Path(name).name] = Path(name).read_text("utf-8").split("\n\n")
    return {name: first_megabyte(documents) for name, documents in found.items()}


def train_theirs(documents: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained by `tokenizers` on the same terms as ours."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def measure(name: str, documents: list[str]) -> list[str]:
    """Return the table's row for one text."""
    # 1. Train and encode in turn. Each encodes with what it has trained itself.
    megabytes = sum(len(document.encode("utf-8")) for document in documents) / 1e6
    ours, theirs = BPETokenizer.train(documents, VOCAB_SIZE), train_theirs(documents)
    whole = END_OF_TEXT.join(documents)
    times = seconds_in_turn(
        {
            "train": lambda: BPETokenizer.train(documents, VOCAB_SIZE),
            "train theirs": lambda: train_theirs(documents),
            "bulk": lambda: ours.encode_documents(documents),
            "bulk theirs": lambda: theirs.encode_batch_fast(documents),
            "by hand": lambda: ours.encode(whole, allow_special=True),
        },
        ROUNDS,
    )

    # 2. Turn seconds into speeds.
    median = {work: statistics.median(seconds) for work, seconds in times.items()}
    speed = {work: f"{megabytes / median[work]:.1f}" for work in ("bulk", "bulk theirs", "by hand")}
    faster = f"{ratio(times, 'train theirs', 'train'):.2f}"
    seconds = [f"{median[work]:.2f}" for work in ("train", "train theirs")]
    return [name, *seconds, faster, *speed.values(), f"{ratio(times, 'bulk theirs', 'bulk'):.2f}"]


def main() -> None:
    """Measure every text and write the table."""
    header = ["1 MB of", "training, s", "`tokenizers`, s", "ours is × faster", "bulk encoding, MB/s",
              "`tokenizers`, MB/s", "by hand, MB/s", "bulk is × `tokenizers`"]
    write_table("tokenizer", [header, *(measure(name, documents) for name, documents in texts().items())])


if __name__ == "__main__":
    main()
