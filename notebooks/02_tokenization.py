# Imports that only quoted code needs look unused from here.
# ruff: noqa: F401

# %% [markdown]
# # 2. Tokenization, to play with
#
# Beside [the chapter](../chapters/02_tokenization.md): watch merges being learned, see texts in pieces, and measure
# what a vocabulary of each size is worth.

# %%
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt

from chapters.ch02_merges import Pair
from chapters.ch02_splitting import GPT2_PATTERN, WordSplitter
from chapters.ch02_tokenization import BPETokenizer
from corpora.stories import generate

# %% [markdown]
# ## Learning, merge by merge

# %%
# code: chapters/ch02_merges.py#glue
# code: chapters/ch02_merges.py#learn_merges_slow

# %%
words = Counter(["her", " hen", " the", " then", " her"])
for number, pair in enumerate(learn_merges_slow({word.encode(): count for word, count in words.items()}, 8), 1):
    print(number, pair)

# %% [markdown]
# Change the words, and guess before you run. The same, on 300 stories: what is glued, and how often did the pair
# stand there at that moment?

# %%
stories = generate(300, seed=0)
splitter = WordSplitter(GPT2_PATTERN, ())
counts = Counter(word for story in stories for word in splitter.words(story))
print(sum(counts.values()), "words,", len(counts), "different; most frequent:", counts.most_common(5))

parts = {word: [bytes([byte]) for byte in word.encode()] for word in counts}
merges, times = learn_merges_slow({word.encode(): count for word, count in counts.items()}, 500), []
for pair in merges:
    times.append(sum(count * list(pairwise(parts[word])).count(pair) for word, count in counts.items()))
    parts = {word: glue(split, pair) for word, split in parts.items()}

figure, panel = plt.subplots(figsize=(8, 3.2), layout="constrained")
panel.loglog(range(1, 501), times, color="#0072b2")
for number in (1, 4, 12, 40, 120, 350):
    token = b"".join(merges[number - 1]).decode().replace(" ", "␣")
    panel.annotate(token, (number, times[number - 1]), xytext=(4, 6), textcoords="offset points")
    panel.plot(number, times[number - 1], "o", markersize=4, color="#d55e00")
panel.set(xlabel="merge", ylabel="times the pair was met")
plt.show()

# %% [markdown]
# Frequent things come first: letters that stand together, then short words, then longer ones.
#
# ## A text in pieces

# %%
tokenizer = BPETokenizer.load("models/storyteller")
COLOURS = ("#cce4f6", "#fde3c8", "#d3efe1", "#f6d9ea")


def show(*texts: str) -> None:
    """Draw each text as a row of coloured boxes, one for each token, with its id below."""
    figure, panel = plt.subplots(figsize=(10, 0.75 * len(texts)), layout="constrained")
    panel.set(xlim=(0, 62), ylim=(-len(texts), 0))
    panel.axis("off")
    for row, text in enumerate(texts):
        column = 0.0
        for place, number in enumerate(tokenizer.encode(text)):
            token = tokenizer.vocab[number]
            try:
                name = token.decode().replace(" ", "␣")
            except UnicodeDecodeError:
                name = token.hex().upper()
            width = max(len(name), len(str(number)) * 0.7, 1) + 0.8
            panel.barh(-row - 0.4, width - 0.2, 0.72, column, align="center", color=COLOURS[place % 4])
            panel.text(column + width / 2, -row - 0.33, name, ha="center", va="center", family="monospace", fontsize=9)
            panel.text(column + width / 2, -row - 0.62, number, ha="center", va="center", fontsize=6, color="grey")
            column += width


show(
    "Once upon a time there was a girl named Lily.",
    "once upon a time there was a girl named lily.",
    "unbelievably",
    "a naïve kite 🙂",
    "Lily is 12345 days old",
)

# %% [markdown]
# One lost capital letter, and two words fall apart. Put in your own name.
#
# ## Encoding, step by step

# %%
# code: chapters/ch02_merges.py#apply_merges

# %%
ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}


def steps(word: bytes) -> None:
    """Print a word after every merge that changed it, with the place of that merge in the order of learning."""
    parts = [bytes([byte]) for byte in word]
    print("      ", "·".join(part.decode() for part in parts).replace(" ", "␣"))
    while known := [pair for pair in pairwise(parts) if pair in ranks]:
        best = min(known, key=ranks.__getitem__)
        parts = glue(parts, best)
        print(f"{ranks[best]:6}", "·".join(part.decode() for part in parts).replace(" ", "␣"))


steps(b" something")
steps(b" sometimes")

# %% [markdown]
# ## What a larger vocabulary is worth

# %%
fresh = generate(200, seed=99)
size = sum(len(story.encode()) for story in fresh)
sizes = [256, 272, 288, 320, 384, 512, 640, 768, 896, 1024, 1123]
packed = []
for vocab_size in sizes:
    vocab = {number: tokenizer.vocab[number] for number in range(min(vocab_size, 1122))}
    small = BPETokenizer(vocab, tokenizer.merges[: len(vocab) - 256])
    packed.append(size / sum(len(small.encode(story)) for story in fresh))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
left.plot(sizes, packed, marker="o", color="#0072b2")
left.set(xlabel="tokens in the vocabulary", ylabel="bytes per token, fresh stories", ylim=(0, None))
lengths = Counter(len(tokenizer.vocab[number]) for story in fresh for number in tokenizer.encode(story))
right.bar(list(lengths), list(lengths.values()), color="#d55e00")
right.set(xlabel="bytes in a token", ylabel="times met")
plt.show()

# %% [markdown]
# A vocabulary of 512 is the first half of the work: the merges of a small one are the first merges of a large one.
#
# **To try:** train on a text of your own (`BPETokenizer.train(open("FILE").read(), 2000)`), look at its longest tokens,
# and see what it does with a story. Which of the two tokenizers needs fewer tokens for an e-mail of yours?
