"""Find out which heads of the trained storyteller look back at a word, which ones it needs, and draw two.

    python chapters/figures/ch05_trained_heads.py

By measurement and not by eye: in fresh stories, find each moment before a name (or a thing) is said *again*.
The token that is about to say it asks. How much of its attention goes to the earlier mentions of that very
word, and how much to its rivals, other words of the same kind? And how much less probable does the right word
become when a head is silenced?

Writes `ch05_trained_heads.svg` beside this script.
"""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch02_tokenization import BPETokenizer  # noqa: E402
from chapters.ch05_attention import causal_mask, repeat_kv, scaled_dot_product_attention  # noqa: E402
from chapters.ch07_gpt_model import GPT  # noqa: E402
from corpora.stories import _grammar, generate  # noqa: E402

MODEL = ROOT / "models" / "storyteller"
# Stories to measure on, told with dice that no training set uses.
FRESH = generate(200, seed=99)


def words_of(kind: str) -> re.Pattern:
    """Return a pattern that finds the words of a kind, "name" or "thing", as the grammar of the stories lists them."""
    classes = _grammar()._classes.values()
    words = {member["noun"] for its_kind, members in classes for member in members if its_kind == kind}
    return re.compile(rf"\b(?:{'|'.join(sorted(words))})\b")


# Names are those of children; things are toys, animals, colors and people like the king.
NAMES, THINGS = words_of("name"), words_of("thing")
KINDS = {"name": NAMES, "thing": THINGS}


@dataclasses.dataclass(frozen=True)
class Recall:
    """A moment before a word is said again: who asks, where the word stood before, where its rivals stood."""

    asks: int
    mentions: list[int]
    rivals: list[int]


@torch.no_grad()
def attention_weights(model: GPT, ids: list[int]) -> Tensor:
    """Return what every head of every layer looks at, worked out with the five lines of chapter 5.

    Shapes: ids of T tokens -> (layers, H, T, T), rows ask, columns are looked at.
    """
    # 1. Listen in: before each attention layer runs, repeat its work in the way that shows the weights.
    found = []

    def listen(attention, arguments):
        q, k, _ = attention.project(*arguments[:3])
        k = repeat_kv(k, attention.num_heads // attention.num_kv_heads)
        found.append(scaled_dot_product_attention(q, k, k, causal_mask(len(ids), len(ids)))[1][0])

    # 2. Let the model read the text once, and stop listening.
    listeners = [block.attention.register_forward_pre_hook(listen) for block in model.blocks]
    model(torch.tensor([ids]))
    for listener in listeners:
        listener.remove()
    return torch.stack(found)


def pieces_of(tokenizer: BPETokenizer, story: str) -> tuple[list[int], list[str]]:
    """Return the ids of a story behind an end token, as in training, and the text of each token."""
    ids = [tokenizer.eot_id, *tokenizer.encode(story)]
    return ids, [tokenizer.decode([token]) for token in ids]


def recalls(pieces: list[str], words: re.Pattern) -> list[Recall]:
    """Return every moment in a text before one of the `words` is said again.

    The first piece is the end token and no part of the text.
    """
    # 1. Number the letters by token, so that a word found in the text names the tokens that spell it.
    owner = [number for number, piece in enumerate(pieces) if number for _ in piece]
    spoken = [(m[0], owner[m.start()], owner[m.end() - 1]) for m in words.finditer("".join(pieces[1:]))]

    # 2. Look from each mention at those before it: the same word, or another of its kind.
    found = []
    for number, (word, first, _) in enumerate(spoken):
        earlier = {True: [], False: []}
        for other, start, end in spoken[:number]:
            earlier[other == word] += range(start, end + 1)
        if earlier[True]:
            found.append(Recall(first - 1, earlier[True], earlier[False]))
    return found


def look_back(
    model: GPT, tokenizer: BPETokenizer, stories: list[str], words: re.Pattern
) -> tuple[Tensor, Tensor, float]:
    """Return, per head, the mean share of attention on earlier mentions of the word that comes next.

    Shapes: -> share on that word (layers, H), share on its rivals (layers, H), and the share from
    a head that looks at all earlier tokens alike. Only moments that have a rival count.
    """
    # 1. Collect all moments of all stories.
    right, wrong, even = [], [], []
    for story in stories:
        ids, pieces = pieces_of(tokenizer, story)
        weights = attention_weights(model, ids)
        for recall in recalls(pieces, words):
            if recall.rivals:
                row = weights[:, :, recall.asks]
                right.append(row[..., recall.mentions].sum(-1))
                wrong.append(row[..., recall.rivals].sum(-1))
                even.append(len(recall.mentions) / (recall.asks + 1))
    return torch.stack(right).mean(0), torch.stack(wrong).mean(0), sum(even) / len(even)


def draw_text(panel, pieces: list[str], shares: list[float], asks: int, title: str, width: int = 92) -> None:
    """Write a text into a panel: the darker a token's ground, the larger its share; who asks is framed."""
    # 1. Lay the tokens out in lines, as on a typewriter.
    column, line = 0, 0
    for number, (piece, share) in enumerate(zip(pieces, shares, strict=True)):
        if column + len(piece) > width:
            column, line = 0, line + 1
        # 2. Paint the ground, frame who asks, and write the share where it is large enough to matter.
        colour, y = plt.cm.Blues(min(1.0, share)), -2 * line
        ground = plt.Rectangle((column, y - 0.55), len(piece), 1.1, facecolor=colour)
        panel.add_patch(ground)
        if number == asks:
            ground.set(edgecolor="#d55e00", linewidth=2, zorder=3)
        ink = "white" if share > 0.5 else "black"
        panel.text(column, y, piece, family="monospace", fontsize=9, va="center", color=ink, zorder=4)
        if share >= 0.05:
            middle = column + len(piece) / 2
            panel.text(middle, y + 0.95, f"{share:.0%}", fontsize=7, ha="center", va="center")
        column += len(piece)
    panel.set(xlim=(0, width), ylim=(-2 * line - 1, 1.8))
    panel.set_title(title, fontsize=10, loc="left")
    panel.axis("off")


@contextlib.contextmanager
def silenced(model: GPT, heads: list[tuple[int, int]]) -> Iterator[None]:
    """Let the model run without some heads, given as (layer, head): what they gathered becomes zero."""

    # 1. Step in where the heads lie side by side, before the output projection mixes them.
    def hush(layer):
        def zero(projection, arguments):
            gathered = arguments[0].clone()
            for _, head in (pair for pair in heads if pair[0] == layer):
                size = model.config.head_dim
                gathered[..., head * size : (head + 1) * size] = 0
            return gathered

        return zero

    # 2. Whatever happens inside the with-block, the model speaks with all its heads again afterwards.
    blocks = enumerate(model.blocks)
    hooks = [block.attention.output.register_forward_pre_hook(hush(layer)) for layer, block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def chance_of_right_word(model: GPT, tokenizer: BPETokenizer, stories: list[str], words: re.Pattern) -> float:
    """Return the probability that the model gives, on average, to a word that is about to be said again.

    Only the first token of the word counts, and only moments at which a rival has been mentioned.
    """
    # 1. Let the model guess every next token of every story.
    chances = []
    for story in stories:
        ids, pieces = pieces_of(tokenizer, story)
        probabilities = model(torch.tensor([ids]))[0].softmax(-1)

        # 2. Keep the moments before a word returns.
        moments = [recall.asks for recall in recalls(pieces, words) if recall.rivals]
        chances += [probabilities[asks, ids[asks + 1]].item() for asks in moments]
    return sum(chances) / len(chances)


def highest(table: Tensor) -> tuple[int, int]:
    """Return (layer, head) of the largest number in a table with one row per layer."""
    return divmod(int(table.argmax()), table.shape[1])


def example_with_both(tokenizer: BPETokenizer, stories: list[str]) -> tuple[str, Recall, Recall]:
    """Return the first story in which a name and a thing are said again, and the last such moments in it.

    The first that qualifies, so that nobody can choose the prettiest.
    """
    # 1. Walk through the stories and stop at the first that qualifies.
    for story in stories:
        pieces = pieces_of(tokenizer, story)[1]
        names = [recall for recall in recalls(pieces, NAMES) if recall.rivals]
        things = recalls(pieces, THINGS)
        if names and things:
            return story, names[-1], things[-1]

    # 2. Refuse when there is none.
    raise ValueError(f"none of {len(stories)} stories says a name and a thing again: give more stories")


def cost_of_silence(model: GPT, tokenizer: BPETokenizer, stories: list[str], words: re.Pattern) -> Tensor:
    """Return how much of the right word's probability is lost when each head is silenced alone.

    Shapes: -> (layers, H).
    """
    # 1. Measure the whole model first: all losses are counted from there.
    whole, heads = chance_of_right_word(model, tokenizer, stories, words), model.config.num_heads
    cost = torch.zeros(len(model.blocks), heads)

    # 2. Silence one head at a time.
    for layer, head in ((layer, head) for layer in range(len(model.blocks)) for head in range(heads)):
        with silenced(model, [(layer, head)]):
            cost[layer, head] = whole - chance_of_right_word(model, tokenizer, stories, words)
    return cost


def main() -> None:
    """Measure all heads, say which stand out, and draw two of them on one story."""
    # 1. Find the head that names need most, and the one that things need most.
    model, tokenizer = GPT.from_pretrained(MODEL), BPETokenizer.load(MODEL)
    costs = {kind: cost_of_silence(model, tokenizer, FRESH[:20], words) for kind, words in KINDS.items()}
    picked = {f"{kind}s need it most": highest(cost) for kind, cost in costs.items()}

    # 2. Say where they look, and what it costs to silence them.
    looks = {kind: look_back(model, tokenizer, FRESH, words) for kind, words in KINDS.items()}
    for what, (layer, head) in picked.items():
        print(f"{what}: layer {layer}, head {head}")
        for kind, (right, wrong, even) in looks.items():
            shares = [f"{share:.0%}" for share in (right[layer, head], wrong[layer, head], even)]
            print(f"  {kind}: {shares[0]} on the right one, {shares[1]} on rivals, {shares[2]} if all were equal; "
                  f"silenced, it costs {costs[kind][layer, head]:.3f}")

    # 3. Let the model read one story, the same for all.
    story, name, thing = example_with_both(tokenizer, FRESH)
    ids, pieces = pieces_of(tokenizer, story)
    weights = attention_weights(model, ids)

    # 4. Draw them one below the other.
    figure, panels = plt.subplots(2, 1, figsize=(7.6, 6), facecolor="white", layout="constrained")
    for panel, (what, (layer, head)), moment in zip(panels, picked.items(), (name, thing), strict=True):
        at = moment.asks
        title = f"layer {layer}, head {head} ({what}): before {pieces[at + 1]!r} is said again"
        draw_text(panel, pieces[1:], weights[layer, head, at, 1:].tolist(), at - 1, title)

    # 5. Keep the picture, without a date, so that a second run gives the same file.
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "ch05"
    main()
