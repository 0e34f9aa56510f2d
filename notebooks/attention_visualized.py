# %% [markdown]
# # Attention, made visible
#
# [Notebook 5](05_attention.ipynb) finds the heads that look back. This one looks at all sixteen heads of the trained
# storyteller: as arcs over one sentence, as a table of what each looks at in a hundred stories, and as a price list:
# what the model loses when one head is silent. [Chapter 5](../chapters/05_attention.md) explains the words.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.figures.ch05_trained_heads import NAMES, THINGS, attention_weights, pieces_of, recalls, silenced
from corpora.stories import generate

torch.set_num_threads(1)
model, tokenizer = GPT.from_pretrained("models/storyteller"), BPETokenizer.load("models/storyteller")
stories = generate(100, seed=99)
layers, heads = model.config.num_layers, model.config.num_heads
print(layers, "layers of", heads, "heads; the first story:")
print(stories[0])

# %% [markdown]
# ## Arcs: who takes how much from whom
#
# The last token of the piece below asks. Each arc leads to a token that it looks at; its width is the share. What
# goes to the end token in front, a place to look at for a head that wants nothing, is written beside it.

# %%
ids, pieces = pieces_of(tokenizer, stories[0])
asks = next(recall.asks for recall in recalls(pieces, THINGS) if recall.asks > 20)
first = max(0, asks - 27)
weights = attention_weights(model, ids)[:, :, asks]  # one row for each head
figure, panels = plt.subplots(layers, 1, figsize=(11, 10), layout="constrained")
places = [sum(len(piece) + 1 for piece in pieces[first:number]) for number in range(first, asks + 1)]
for layer, panel in enumerate(panels):
    for head, colour in enumerate(("#0072B2", "#D55E00", "#009E73", "#CC79A7")):
        for number, share in enumerate(weights[layer, head, first : asks + 1].tolist()):
            if share > 0.05:
                middle, radius = (places[number] + places[-1]) / 2, max(1, (places[-1] - places[number]) / 2)
                turn = torch.linspace(0, torch.pi, 60)
                panel.plot(middle + radius * turn.cos(), radius * turn.sin(), color=colour, linewidth=8 * share)
        panel.plot([], [], color=colour, linewidth=4, label=f"head {head}, mark {weights[layer, head, 0]:.2f}")
    for place, piece in zip(places, pieces[first : asks + 1], strict=True):
        panel.text(place, -3, piece.strip(), rotation=60, ha="right", va="top", fontsize=8)
    panel.set(title=f"layer {layer}", ylim=(-2, places[-1] / 2), xlim=(-8, places[-1] + 4))
    panel.axis("off")
    panel.legend(loc="upper left", fontsize=8)
plt.show()
print("what comes next:", repr(pieces[asks + 1]))

# %% [markdown]
# ## A profile for each head
#
# Where does the attention go, on average over every token of forty stories? To the token itself, to the one before, to
# the mark in front, to an earlier token with the same text, to names, to things, or to the rest.

# %%
KINDS = ("itself", "the one before", "the mark", "the same text", "a name", "a thing", "the rest")


def kinds_of(pieces: list[str]) -> torch.Tensor:
    """Return, for each pair of asking and seen token, the number of the first kind that fits; shape (T, T)."""
    length = len(pieces)
    table = torch.full((length, length), len(KINDS) - 1)
    for words, kind in ((THINGS, 5), (NAMES, 4)):
        table[:, [bool(words.fullmatch(piece.strip())) for piece in pieces]] = kind
    same = torch.tensor([[one == other for other in pieces] for one in pieces])
    table[same] = 3
    table[:, 0] = 2
    table[range(1, length), range(length - 1)] = 1
    table[range(length), range(length)] = 0
    return table


profile, count = torch.zeros(layers * heads, len(KINDS)), 0
for story in stories[:40]:
    ids, pieces = pieces_of(tokenizer, story)
    seen = attention_weights(model, ids).flatten(0, 1)
    kinds = F.one_hot(kinds_of(pieces), len(KINDS)).float()
    profile += torch.einsum("nts,tsk->nk", seen, kinds)
    count += len(ids)
profile /= count

figure, panel = plt.subplots(figsize=(10, 4.6), layout="constrained")
left = torch.zeros(layers * heads)
colours = ("#000000", "#0072B2", "#999999", "#56B4E9", "#D55E00", "#E69F00", "#eeeeee")
for kind, colour in enumerate(colours):
    panel.barh(range(layers * heads), profile[:, kind], left=left, color=colour, label=KINDS[kind], edgecolor="white")
    left += profile[:, kind]
names = [f"layer {number // heads}, head {number % heads}" for number in range(layers * heads)]
panel.set(yticks=range(layers * heads), yticklabels=names, xlabel="mean share of attention", xlim=(0, 1))
panel.invert_yaxis()
panel.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=7, fontsize=8, frameon=False)
plt.show()
for kind, name in enumerate(KINDS):
    best = int(profile[:, kind].argmax())
    print(f"most on {name:15} layer {best // heads}, head {best % heads}: {profile[best, kind]:.2f}")

# %% [markdown]
# ## What each head is worth
#
# A share of attention is not yet an effect. So silence one head at a time, and measure the surprise again: how many
# bits more for a name, for a thing, and for any other token?


# %%
@torch.no_grad()
def surprise(stories: list[str]) -> dict[str, float]:
    """Return the mean surprise in bits at names, at things and at the other tokens of some stories."""
    bits = {"names": [], "things": [], "others": []}
    for story in stories:
        ids, pieces = pieces_of(tokenizer, story)
        found = F.cross_entropy(model(torch.tensor([ids[:-1]]))[0], torch.tensor(ids[1:]), reduction="none")
        for piece, nats in zip(pieces[1:], found.tolist(), strict=True):
            text = piece.strip()
            kind = "names" if NAMES.fullmatch(text) else "things" if THINGS.fullmatch(text) else "others"
            bits[kind].append(nats / 0.6931)
    return {kind: sum(values) / len(values) for kind, values in bits.items()}


whole = surprise(stories[:20])
cost = {kind: torch.zeros(layers, heads) for kind in whole}
for layer in range(layers):
    for head in range(heads):
        with silenced(model, [(layer, head)]):
            for kind, bits in surprise(stories[:20]).items():
                cost[kind][layer, head] = bits - whole[kind]

figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
for panel, (kind, table) in zip(panels, cost.items(), strict=True):
    panel.imshow(table, cmap="Oranges", vmin=0, vmax=max(1.0, float(table.max())))
    panel.set(title=f"{kind}: {whole[kind]:.2f} bits, and so many more", xticks=range(heads), yticks=range(layers),
              xlabel="head", ylabel="layer")
    for number, bits in enumerate(table.flatten().tolist()):
        panel.text(number % heads, number // heads, f"{bits:.2f}", ha="center", va="center",
                   color="white" if bits > 0.6 * max(1.0, float(table.max())) else "black")
plt.show()
for kind, table in cost.items():
    layer, head = divmod(int(table.argmax()), heads)
    print(f"{kind:7} most missed: layer {layer}, head {head}, {table.max():.2f} bits; least: {table.min():.2f}")

# %% [markdown]
# Nearly the whole price stands in the first row. The heads of layer 0 fetch what is needed; above it the model can
# spare any single head, whatever that head's arcs look like. And whole layers?

# %%
for layer in range(layers):
    with silenced(model, [(layer, head) for head in range(heads)]):
        more = {kind: bits - whole[kind] for kind, bits in surprise(stories[:20]).items()}
    shown = ", ".join(f"{kind} {bits:+.2f}" for kind, bits in more.items())
    print(f"layer {layer} silent: {shown} bits")

# %% [markdown]
# In this model only the first layer's looking back is needed. A share of attention, however dark the picture, is not
# yet a proof of use.
#
# **To try:** silence two heads that cost little alone. Do they cost little together? Two heads that do the same work
# hide each other.
