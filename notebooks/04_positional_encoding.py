# Imports that only quoted code needs look unused from here.
# ruff: noqa: F401

# %% [markdown]
# # 4. Positions, to play with
#
# Beside [the chapter](../chapters/04_positional_encoding.md): watches that turn, dot products that feel the distance
# alone, and the heads of the trained storyteller that have a favourite one.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch04_positional_encoding import scaled_frequencies, sinusoidal_positions
from chapters.ch07_gpt_model import GPT
from chapters.figures.ch05_trained_heads import attention_weights, pieces_of
from corpora.stories import generate

torch.set_num_threads(1)

# %% [markdown]
# ## Turning

# %%
# code: chapters/ch04_positional_encoding.py#rope_tables
# code: chapters/ch04_positional_encoding.py#apply_rope

# %% [markdown]
# The arrow (2, 1) and the arrow (1, 1), turned by 30° for each position. Change the arrows, the angle, the places.

# %%
angles = torch.arange(12)[:, None] * math.radians(30)
figure, panels = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for panel, (offers, looks) in zip(panels, ((0, 2), (1, 3), (5, 7)), strict=True):
    turned, both = [], ((looks, [2.0, 1.0], "#0072b2", "looks"), (offers, [1.0, 1.0], "#d55e00", "offers"))
    for place, arrow, colour, name in both:
        table = angles.cos()[place : place + 1], angles.sin()[place : place + 1]
        turned.append(apply_rope(torch.tensor([arrow]), *table)[0])
        x, y = turned[-1].tolist()
        panel.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
        panel.text(1.12 * x, 1.12 * y, f"{name}, {place}", color=colour, ha="center", va="center")
    panel.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"dot product {torch.dot(*turned):.3f}")
    panel.axhline(0, color="lightgrey", zorder=0)
    panel.axvline(0, color="lightgrey", zorder=0)
plt.show()

# %% [markdown]
# ## Many watches
#
# The cosine of every face at every position, for a head of 64 numbers. Fast faces on top: they tell neighbours apart,
# and repeat. Slow ones at the bottom: they hardly move.

# %%
cos, sin = rope_tables(head_dim=64, max_seq_len=160)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
image = left.imshow(cos.T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
left.set(xlabel="position", ylabel="face", title="cosine of the angle, theta 10,000")
figure.colorbar(image, ax=left)
for theta, colour in ((100.0, "#d55e00"), (10_000.0, "#0072b2"), (500_000.0, "#009e73")):
    c, s = rope_tables(64, 400, theta)
    turned = apply_rope(torch.ones(400, 64), c, s)
    right.plot(turned @ turned[0] / 64, color=colour, label=f"theta {theta:,.0f}")
right.set(xlabel="distance", title="dot product of two equal vectors, by distance")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Distance alone
#
# One random query and one random key, put at all places. Each diagonal is one distance, and has one colour.

# %%
torch.manual_seed(0)
c, s = rope_tables(16, 24)
query, key = torch.randn(2, 1, 16)
queries, keys = apply_rope(query.expand(24, 16), c, s), apply_rope(key.expand(24, 16), c, s)
added = sinusoidal_positions(24, 16)
figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
scores = {"turned (RoPE)": queries @ keys.T, "sines added": (query + added) @ (key + added).T}
for panel, (name, table) in zip(panels, scores.items(), strict=True):
    panel.imshow(table, cmap="viridis")
    panel.set(title=name, xlabel="place of the key", ylabel="place of the query")
plt.show()

# %% [markdown]
# With sines added, the diagonals are not even: place and meaning are mixed, and the model has to sort them out.
#
# ## What a trained model makes of it

# %%
model, tokenizer = GPT.from_pretrained("models/storyteller"), BPETokenizer.load("models/storyteller")
likes = torch.zeros(4, 4, 16)
for story in generate(20, seed=99):
    weights = attention_weights(model, pieces_of(tokenizer, story)[0])
    likes += torch.stack([weights.diagonal(-d, 2, 3)[..., 40:].mean(-1) for d in range(16)], dim=-1) / 20

figure, panels = plt.subplots(4, 4, figsize=(9, 6), sharex=True, sharey=True, layout="constrained")
for layer, row in enumerate(panels):
    for head, panel in enumerate(row):
        panel.bar(range(16), likes[layer, head], color="#0072b2")
        panel.set_title(f"layer {layer}, head {head}", fontsize=9)
figure.supxlabel("places back")
figure.supylabel("share of attention")
plt.show()

# %% [markdown]
# Some heads like one place back, some three, some five; the heads of layer 0 look everywhere.
#
# ## Spoil it

# %%
fresh = [[tokenizer.eot_id, *tokenizer.encode(story)][:160] for story in generate(20, seed=99)]


def bits_per_byte(tables: tuple[Tensor, Tensor]) -> float:
    """Return the storyteller's surprise with these tables of turns in place of its own."""
    kept, bits, size = (model.rope_cos, model.rope_sin), 0.0, 0
    model.rope_cos, model.rope_sin = tables
    for ids in fresh:
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]]))[0]
        bits += F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item() / math.log(2)
        size += len(tokenizer.decode_bytes(ids[1:]))
    model.rope_cos, model.rope_sin = kept
    return bits / size


thetas = [2000.0, 4000.0, 7000.0, 10_000.0, 14_000.0, 25_000.0, 50_000.0]
factors = [0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0]
by_theta = [bits_per_byte(rope_tables(64, 160, theta)) for theta in thetas]
by_factor = [bits_per_byte(rope_tables(64, 160, scaling={"rope_type": "linear", "factor": f})) for f in factors]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
left.semilogx(thetas, by_theta, marker="o", color="#0072b2")
left.set_xticks((2000, 10_000, 50_000), ("2,000", "10,000", "50,000"))
left.minorticks_off()
left.set(xlabel="theta (trained with 10,000)", ylabel="bits per byte")
right.plot(factors, by_factor, marker="o", color="#d55e00")
right.set(xlabel="all speeds divided by", ylim=(0, None))
plt.show()

# %% [markdown]
# **To try:** turn only the fast half of the faces by nothing, then only the slow half. Which half does the model need?
