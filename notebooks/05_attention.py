# Imports that only quoted code needs look unused from here.
# ruff: noqa: F401

# %% [markdown]
# # 5. Attention, to play with
#
# Beside [the chapter](../chapters/05_attention.md): first the five lines on three tokens, then the heads of the
# trained storyteller. Which of them look back at a name or a thing, and what is lost without them?

# %%
import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch05_attention import causal_mask, repeat_kv, softmax
from chapters.ch07_gpt_model import GPT
from chapters.figures.ch05_trained_heads import NAMES, THINGS
from chapters.running_example import TOKENS, attention_layer, embed, no_rotation
from corpora.stories import generate

torch.set_num_threads(1)

# %% [markdown]
# ## The five lines

# %%
# code: chapters/ch05_attention.py#scaled_dot_product_attention

# %% [markdown]
# *Lily lost her* … Put Tom in Lily's place, or change a number in `chapters/running_example.py`, and run again.

# %%
q, k, v = attention_layer().project(embed("Lily", "lost", "her")[None], *no_rotation(3))
_, weights = scaled_dot_product_attention(q, k, v, causal_mask(3, 3))
for head, table in enumerate(weights[0]):
    print("head", head)
    for token, row in zip(TOKENS, table.tolist(), strict=True):
        print(f"  {token:5}", " ".join(f"{share:.3f}" for share in row))

# %% [markdown]
# ## A trained model reads a story it has never seen

# %%
# code: chapters/figures/ch05_trained_heads.py#pieces_of

# %%
model, tokenizer = GPT.from_pretrained("models/storyteller"), BPETokenizer.load("models/storyteller")
fresh = generate(200, seed=99)
ids, pieces = pieces_of(tokenizer, fresh[0])
print(len(ids), "tokens:", "|".join(pieces[1:]))

# %% [markdown]
# To see what its heads look at, listen in and repeat their work with the five lines:

# %%
# code: chapters/figures/ch05_trained_heads.py#attention_weights

# %%
weights = attention_weights(model, ids)
print("layers, heads, asks, looked at:", tuple(weights.shape))
figure, panels = plt.subplots(*weights.shape[:2], figsize=(9, 9), layout="constrained")
for layer, row in enumerate(panels):
    for head, panel in enumerate(row):
        panel.imshow(weights[layer, head, :48, :48] ** 0.5, cmap="Blues", vmin=0, vmax=1)
        panel.set(title=f"layer {layer}, head {head}", xticks=[], yticks=[])

# %% [markdown]
# All heads, the first 48 tokens; rows ask, columns are looked at (darker is more, on a root scale). The heads of
# layer 0 spread their attention wide. In the layers above most rows have one dark spot or a few, and neighbouring
# rows often share it: the short vertical bars.
#
# ## Who looks back? Measure, then look
#
# A moment counts when a name is about to be said *again*, and another name has been said as well. The same for
# things: toys, animals, colors, and people like the king.

# %%
# code: chapters/figures/ch05_trained_heads.py#Recall
# code: chapters/figures/ch05_trained_heads.py#recalls
# code: chapters/figures/ch05_trained_heads.py#look_back

# %%
figure, panels = plt.subplots(2, 2, figsize=(8, 7), layout="constrained")
picked = {}
for row, (kind, words) in zip(panels, (("name", NAMES), ("thing", THINGS)), strict=True):
    right, wrong, even = look_back(model, tokenizer, fresh, words)
    picked[kind] = divmod(int((right - wrong).argmax()), right.shape[1])
    print(f"{kind}: most on the right one: layer, head {picked[kind]}; a head that looks at all alike: {even:.3f}")
    for panel, table, title in zip(row, (right, wrong), (f"the {kind} that comes", "its rivals"), strict=True):
        panel.imshow(table, cmap="Blues", vmin=0, vmax=1)
        panel.set(title=title, xlabel="head", ylabel="layer", xticks=range(4), yticks=range(4))
        for number, share in enumerate(table.flatten().tolist()):
            layer, head = divmod(number, table.shape[1])
            panel.text(head, layer, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")

# %% [markdown]
# ## What they look at

# %%
# code: chapters/figures/ch05_trained_heads.py#draw_text

# %%
def show(story: str, recall, layer: int, head: int) -> None:
    ids, pieces = pieces_of(tokenizer, story)
    row = attention_weights(model, ids)[layer, head, recall.asks, 1:].tolist()
    _, panel = plt.subplots(figsize=(9, 3.2), layout="constrained")
    title = f"layer {layer}, head {head}: before {pieces[recall.asks + 1]!r}"
    draw_text(panel, pieces[1:], row, recall.asks - 1, title)


for story in fresh[:3]:
    for recall in [r for r in recalls(pieces_of(tokenizer, story)[1], NAMES) if r.rivals][-1:]:
        show(story, recall, *picked["name"])

# %%
for story in [story for story in fresh if recalls(pieces_of(tokenizer, story)[1], THINGS)][:2]:
    show(story, recalls(pieces_of(tokenizer, story)[1], THINGS)[-1], *picked["thing"])

# %% [markdown]
# And a head that does not care which name it is, at the same moments:

# %%
right, wrong, _ = look_back(model, tokenizer, fresh, NAMES)
careless = divmod(int((right - wrong).abs().argmin()), right.shape[1])
for story in fresh[:3]:
    for recall in [r for r in recalls(pieces_of(tokenizer, story)[1], NAMES) if r.rivals][-1:]:
        show(story, recall, *careless)

# %% [markdown]
# ## Does the model need them?
#
# Where a head looks does not prove what it is for. Silence it, and see what the model can no longer do.

# %%
# code: chapters/figures/ch05_trained_heads.py#silenced
# code: chapters/figures/ch05_trained_heads.py#chance_of_right_word

# %%
layers, heads = right.shape
best = [divmod(number, heads) for number in (right - wrong).flatten().argsort(descending=True).tolist()]
choices = {"none": [], "the best": best[:1], "the best two": best[:2], "the most careless": [careless]}
for name, chosen in choices.items():
    with silenced(model, chosen):
        chance = chance_of_right_word(model, tokenizer, fresh[:60], NAMES)
    print(f"silenced: {name:18} chance of the right name {chance:.3f}")

# %% [markdown]
# **To try:** silence each head in turn and list what it costs. Is the head that looks back most also the one the
# model needs most? Do the same for things. Which heads help with both?
