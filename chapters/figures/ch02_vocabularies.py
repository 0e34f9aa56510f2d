"""Measure what a larger vocabulary saves and costs, and show what GPT-2's does with odd texts.

    python chapters/figures/ch02_vocabularies.py [FOLDER]

Two texts, the book's stories and the source of Python's standard library. Of each a part is kept aside; from
the rest the tokenizer learns, and the bytes that a token of the other part holds are counted. The second table
needs FOLDER, which holds GPT-2's vocabulary as OpenAI published it: `encoder.json` and `vocab.bpe`.

Writes `ch02_vocabularies.svg` beside this script, `benchmarks/results/vocabulary_size.md`, and with FOLDER
`benchmarks/results/gpt2_pieces.md`.
"""

import datetime
import json
import sys
import sysconfig
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch02_files import letters_to_bytes  # noqa: E402
from chapters.ch02_tokenization import END_OF_TEXT, BPETokenizer  # noqa: E402
from corpora.stories import generate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
HOW = f"{datetime.date.today()}, `python chapters/figures/ch02_vocabularies.py"
SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)

# The width of this book's `tiny` model: the numbers that each token needs in its table.
WIDTH = 256

# What GPT-2's vocabulary is asked to cut.
ODD_TEXTS = (
    "unbelievably", " unbelievably", " strawberry", " Lily", " lily", "LILY", "123", "1234567", "12345678",
    "The cat sits on the mat.", "Die Katze sitzt auf der Matte.", "x = 1\n        y = 2", "🙂", " SolidGoldMagikarp",
)  # fmt: skip


def bytes_per_token(train: list[str], held_out: list[str]) -> list[float | None]:
    """Return how many bytes a token of the held-out texts holds, for each size; None where pairs ran out.

    The merges are learned once: a small vocabulary is the beginning of a large one.
    """
    # 1. Learn the largest.
    whole = BPETokenizer.train(train, SIZES[-1], special_tokens=())
    size = sum(len(text.encode("utf-8")) for text in held_out)
    results: list[float | None] = []
    for vocab_size in SIZES:
        if vocab_size > whole.vocab_size:
            results.append(None)
            continue
        # 2. Keep its first merges alone.
        vocab = {number: token for number, token in whole.vocab.items() if number < vocab_size}
        small = BPETokenizer(vocab, whole.merges[: vocab_size - 256])
        results.append(size / sum(len(small.encode(text)) for text in held_out))
    return results


def library() -> tuple[list[str], list[str]]:
    """Return the files of Python's standard library: nine of ten to learn from, and the tenth ones."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [path.read_text("utf-8", errors="replace") for path in paths]
    return [text for i, text in enumerate(texts) if i % 10], texts[::10]


def read_gpt2(folder: Path) -> BPETokenizer:
    """Return GPT-2's tokenizer from the two files that OpenAI published."""
    # 1. Read the ids and the merges. The first line of the merges is a version.
    ids = json.loads((folder / "encoder.json").read_text("utf-8"))
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    merges = [tuple(map(letters_to_bytes, line.split(" "))) for line in lines if line]

    # 2. Set the special token apart.
    specials = {END_OF_TEXT: ids.pop(END_OF_TEXT)}
    return BPETokenizer({number: letters_to_bytes(token) for token, number in ids.items()}, merges, specials)


def show(token: bytes) -> str:
    """Return a token to be read by people: spaces as ␣, line ends as ⏎, and bytes that are no character as <F0>."""
    try:
        return token.decode("utf-8").replace(" ", "␣").replace("\n", "⏎")
    except UnicodeDecodeError:
        return f"<{token.hex(' ').upper()}>"


def gpt2_table(tokenizer: BPETokenizer) -> str:
    """Return the table of odd texts and their pieces."""
    # 1. Cut each text.
    lines = ["| text | tokens | pieces | ids |", "|---|---|---|---|"]
    for text in ODD_TEXTS:
        ids = tokenizer.encode(text)
        pieces = " · ".join(show(tokenizer.vocab[number]) for number in ids)
        lines.append(f"| `{show(text.encode())}` | {len(ids)} | `{pieces}` | {', '.join(map(str, ids))} |")
    # 2. Say where it comes from.
    note = f"*␣ is a space, ⏎ a line end, · stands between tokens, `<F0 9F>` are bytes. {HOW} FOLDER`.*"
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    """Measure both texts, write the tables, draw the curves."""
    # 1. Measure.
    texts = {"stories": (generate(8000, seed=0), generate(500, seed=99)), "Python's library": library()}
    curves = {name: bytes_per_token(*parts) for name, parts in texts.items()}

    # 2. Write the table.
    header = ["vocabulary", *(f"bytes per token, {name}" for name in curves), f"numbers in its table, {WIDTH} a token"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row, size in enumerate(SIZES):
        cells = [f"{curve[row]:.2f}" if curve[row] else "ran out of pairs" for curve in curves.values()]
        lines.append(f"| {size:,} | {' | '.join(cells)} | {size * WIDTH:,} |")
    note = "Measured on texts that the tokenizer did not learn from"
    lines += ["", f"*{note}. Python {sys.version.split()[0]}; {HOW}`.*"]
    (RESULTS / "vocabulary_size.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    # 3. Draw, and ask GPT-2's vocabulary where it is at hand.
    draw(curves, Path(__file__).with_suffix(".svg"))
    if sys.argv[1:]:
        (RESULTS / "gpt2_pieces.md").write_text(gpt2_table(read_gpt2(Path(sys.argv[1]))), encoding="utf-8")


def draw(curves: dict[str, list[float | None]], target: Path) -> None:
    """Draw the bytes per token against the size of the vocabulary, which doubles from mark to mark."""
    # 1. One colour and one mark per text.
    figure, panel = plt.subplots(figsize=(6.4, 3.2), facecolor="white", layout="constrained")
    styles = (("#0072b2", "-", "o"), ("#d55e00", "--", "s"))
    for (name, curve), (colour, dash, mark) in zip(curves.items(), styles, strict=True):
        points = [(size, value) for size, value in zip(SIZES, curve, strict=True) if value]
        panel.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker=mark, label=name)

    # 2. Name the axes.
    panel.set_xscale("log", base=2)
    panel.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    panel.set(xlabel="tokens in the vocabulary", ylabel="bytes per token", ylim=(0, None))
    panel.legend(loc="upper left", frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "ch02"
    main()
