# Imports that only quoted code needs look unused from here.
# ruff: noqa: F401

# %% [markdown]
# # 3. Embeddings, to play with
#
# Beside [the chapter](../chapters/03_embeddings.md): look into the trained table, watch it form, and try your own
# analogies.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.figures.ch03_map import GROUPS, draw, rows_of
from corpora.stories import generate

torch.set_num_threads(1)

# %% [markdown]
# ## A lookup is a product

# %%
# code: chapters/ch03_embeddings.py#one_hot_lookup
# code: chapters/ch03_embeddings.py#TokenEmbedding

# %% [markdown]
# Left the one-hot rows of a text, in the middle the table, right their product: rows of the table.

# %%
torch.manual_seed(0)
layer, ids = TokenEmbedding(10, 6), torch.tensor([[3, 7, 3, 0]])
one_hot = F.one_hot(ids[0], 10).float()
tables = {"one-hot (4, 10)": one_hot, "table (10, 6)": layer.weight.detach(), "product (4, 6)": layer(ids)[0].detach()}
figure, panels = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for panel, (title, numbers) in zip(panels, tables.items(), strict=True):
    panel.imshow(numbers, **({"cmap": "Greys"} if "hot" in title else {"cmap": "RdBu", "vmin": -0.05, "vmax": 0.05}))
    panel.set_title(title)
plt.show()
print("equal:", torch.equal(layer(ids), one_hot_lookup(ids, layer.weight)))

# %% [markdown]
# Which rows get a gradient? Change the ids.

# %%
layer(ids).square().sum().backward()
plt.figure(figsize=(5, 1.8), layout="constrained")
plt.bar(range(10), layer.weight.grad.norm(dim=1), color="#0072b2")
plt.xlabel("row")
plt.ylabel("length of gradient")
plt.show()

# %% [markdown]
# ## Neighbours

# %%
# code: chapters/ch03_embeddings.py#nearest_tokens
# code: chapters/ch03_embeddings.py#analogy

# %%
model, tokenizer = GPT.from_pretrained("models/storyteller"), BPETokenizer.load("models/storyteller")
rows = model.token_embedding.weight.detach()


def id_of(word: str) -> int:
    """Return the id of a word that is one token, with the space before it."""
    (number,) = tokenizer.encode(" " + word)
    return number


for word in ("pink", "Friday", "duck", "bridge", "cheese", "whistle", "she", "sang", "very"):
    found = nearest_tokens(rows, rows[id_of(word)], k=5, exclude=(id_of(word),))
    print(f"{word:8}", ", ".join(f"{tokenizer.decode([i]).strip()} {cosine:.2f}" for i, cosine in found))

# %% [markdown]
# ## Watch the groups form
#
# The cosine of every two of 90 words, group by group, at four moments of a smaller model's training. Dark squares on
# the diagonal are groups. Watch the first ones, girls and boys: one square first, two later.

# %%
words = " ".join(GROUPS.values())
edges = torch.tensor([0, *(len(group.split()) for group in GROUPS.values())]).cumsum(0)
figure, panels = plt.subplots(1, 4, figsize=(12, 3.8), layout="constrained")
for panel, step in zip(panels, (0, 25, 100, 400), strict=True):
    moment = rows_of(GPT.from_pretrained(f"models/ladder/step_{step}"), tokenizer, words)
    image = panel.imshow(moment @ moment.T, cmap="PuOr", vmin=-1, vmax=1)
    panel.set_title(f"step {step}")
    panel.set_xticks([])
    panel.set_yticks((edges[:-1] + edges[1:]) / 2 - 0.5, GROUPS if step == 0 else [""] * len(GROUPS))
figure.colorbar(image, ax=panels, shrink=0.7)
plt.show()

# %% [markdown]
# ## A map

# %%
# code: chapters/figures/ch03_map.py#flatten

# %%
figure, panel = plt.subplots(figsize=(9, 6.5), layout="constrained")
draw("storyteller", panel, labels=True)
panel.legend(fontsize=8, frameon=False, ncols=2)
plt.show()

# %% [markdown]
# ## King − man + woman, honestly
#
# With the words of the question left out and not; and the neighbours of the first word alone. Try your own.

# %%
unit = F.normalize(rows, dim=-1)
questions = ("king man woman", "she he boy", "prince king queen", "sadly sad happy", "sang sing dance", "kite red blue")
for question in questions:
    a, b, c = (id_of(word) for word in question.split())
    out = [tokenizer.decode([i]).strip() for i, _ in analogy(rows, a, b, c, k=3)]
    everything = [tokenizer.decode([i]).strip() for i, _ in nearest_tokens(rows, unit[a] - unit[b] + unit[c], k=3)]
    alone = [tokenizer.decode([i]).strip() for i, _ in nearest_tokens(rows, unit[a], k=3, exclude=(a, b, c))]
    print("{} − {} + {}:".format(*question.split()), *out)
    print("    nothing left out:", *everything, "  first word alone:", *alone)

# %% [markdown]
# ## The tokens that nobody uses
#
# The length of each row against its cosine with the mean of the unused ones. Two worlds.

# %%
used = {number for story in generate(500, seed=7) for number in tokenizer.encode(story)}
idle = torch.tensor([number not in used and number != tokenizer.eot_id for number in range(len(rows))])
towards = unit @ F.normalize(unit[idle].mean(dim=0), dim=0)
plt.figure(figsize=(6, 3.4), layout="constrained")
plt.scatter(towards[~idle], rows[~idle].norm(dim=1), s=8, color="#0072b2", label="used")
plt.scatter(towards[idle], rows[idle].norm(dim=1), s=8, color="#d55e00", marker="^", label="never used")
plt.xlabel("cosine with the mean of the unused rows")
plt.ylabel("length of the row")
plt.legend(frameon=False)
plt.show()
nearest = [number for number in towards.argsort(descending=True).tolist() if not idle[number]][:8]
print("used, and nearest to the heap:", [tokenizer.decode([number]) for number in nearest])

# %% [markdown]
# **To try:** how often do those that lie nearest to the heap occur in a thousand stories? What do you expect?
