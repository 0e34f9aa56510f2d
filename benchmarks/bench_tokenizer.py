"""The tokenizer: training and bulk encoding, ours against Hugging Face `tokenizers`, written in Rust.

    python benchmarks/bench_tokenizer.py [TEXT_FILE ...] --write

One megabyte of the book's stories, one of the standard library's source, and one of each file named, of which
both learn 1 024 tokens; and fifty megabytes of the source of installed packages, of which both learn 8 192. Both
encode all documents, and ours closes each with the end token. `tokenizers` takes as many threads as it likes. A
speed is the median of the rounds, a ratio the median of the rounds' own ratios.
"""

import statistics
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from chapters.ch02_tokenization import END_OF_TEXT, BPETokenizer  # noqa: E402
from corpora import stories  # noqa: E402

# Bytes of text, tokens to learn, and rounds: of ordinary texts, and of the large one.
SMALL, LARGE = (1_000_000, 1024, 9), (50_000_000, 8192, 3)


def first_bytes(documents: Iterable[str], num_bytes: int) -> list[str]:
    """Return documents from the front until they make `num_bytes`."""
    # 1. Count bytes, not characters: both libraries work on bytes.
    chosen, size = [], 0
    for document in documents:
        if size >= num_bytes:
            break
        chosen.append(document)
        size += len(document.encode("utf-8"))
    return chosen


def source(folder: str, pattern: str) -> Iterator[str]:
    """Yield the text of every file of source code in one of Python's own folders."""
    for path in sorted(Path(sysconfig.get_paths()[folder]).glob(pattern)):
        yield path.read_text("utf-8", errors="replace")


def texts() -> dict[str, Iterable[str]]:
    """Return the documents of each ordinary text to measure, by its name."""
    # 1. Take what is on every disk.
    found = {"stories": stories.generate(8000, seed=0), "Python's library": source("stdlib", "*.py")}
    # 2. Add what the command names, a paragraph being a document.
    for name in sys.argv[1:]:
        if not name.startswith("--"):
            found[Path(name).name] = Path(name).read_text("utf-8").split("\n\n")
    return found


def train_theirs(documents: list[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained by `tokenizers` on the same terms as ours."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def measure(name: str, documents: Iterable[str], num_bytes: int, vocab_size: int, rounds: int) -> list[str]:
    """Return the table's row for one text."""
    # 1. Train and encode in turn. Each encodes with what it has trained itself.
    documents = first_bytes(documents, num_bytes)
    megabytes = sum(len(document.encode("utf-8")) for document in documents) / 1e6
    ours, theirs = BPETokenizer.train(documents, vocab_size), train_theirs(documents, vocab_size)
    whole = END_OF_TEXT.join(documents)
    times = seconds_in_turn(
        {
            "train": lambda: BPETokenizer.train(documents, vocab_size),
            "train theirs": lambda: train_theirs(documents, vocab_size),
            "bulk": lambda: ours.encode_documents(documents),
            "bulk theirs": lambda: theirs.encode_batch_fast(documents),
            "by hand": lambda: ours.encode(whole, allow_special=True),
        },
        rounds,
    )

    # 2. Turn seconds into speeds.
    median = {work: statistics.median(seconds) for work, seconds in times.items()}
    speed = {work: f"{megabytes / median[work]:.1f}" for work in ("bulk", "bulk theirs", "by hand")}
    faster = f"{ratio(times, 'train theirs', 'train'):.2f}"
    seconds = [f"{median[work]:.2f}" for work in ("train", "train theirs")]
    size, bulk = [f"{megabytes:.0f}", f"{vocab_size:,}"], f"{ratio(times, 'bulk theirs', 'bulk'):.2f}"
    return [name, *size, *seconds, faster, *speed.values(), bulk]


def main() -> None:
    """Measure every text and write the table."""
    header = ["text", "MB", "tokens learnt", "training, s", "`tokenizers`, s", "ours is × faster",
              "bulk encoding, MB/s", "`tokenizers`, MB/s", "by hand, MB/s", "bulk is × `tokenizers`"]
    rows = [measure(name, documents, *SMALL) for name, documents in texts().items()]
    write_table("tokenizer", [header, *rows, measure("source of packages", source("purelib", "**/*.py"), *LARGE)])


if __name__ == "__main__":
    main()
