# Imports that only quoted code needs look unused from here.
# ruff: noqa: F401

# %% [markdown]
# # 6. The transformer block, to play with
#
# Beside [the chapter](../chapters/06_transformer_block.md): the norm, the gate, the free road through a tower, and what
# the blocks of the trained storyteller add, think and know.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch06_transformer_block import RMSNorm
from chapters.ch07_gpt_model import GPT
from chapters.running_example import COLUMNS, attention_layer, embed, feed_forward_layer, no_rotation
from corpora.stories import generate

torch.set_num_threads(1)

# %% [markdown]
# ## Three functions and a block

# %%
# code: chapters/ch06_transformer_block.py#rms_norm
# code: chapters/ch06_transformer_block.py#silu
# code: chapters/ch06_transformer_block.py#SwiGLU

# %% [markdown]
# *Lily lost her* … The stream of *her*, as on paper: what came in, what attention added, what the thought added. Change
# a number in `chapters/running_example.py`, or put Tom in Lily's place, and run again.

# %%
x = embed("Lily", "lost", "her")[None]
looked = x + attention_layer()(x, *no_rotation(3))
thought = looked + feed_forward_layer()(rms_norm(looked, torch.ones(4), 1e-5))
print("                ", "  ".join(f"{column:>6}" for column in COLUMNS))
for name, stream in (("embedding", x), ("+ attention", looked), ("+ feed-forward", thought)):
    print(f"{name:16}", "  ".join(f"{number:6.3f}" for number in stream[0, 2].tolist()))

# %% [markdown]
# ## Doors: three ways to bend a number

# %%
places = torch.linspace(-5, 3, 200)
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
for name, bend, dash in (("SiLU", silu, "-"), ("GELU", F.gelu, "--"), ("ReLU", F.relu, ":")):
    panel.plot(places, bend(places), dash, label=name)
panel.set(xlabel="the gate's number", ylabel="how far it opens")
_ = panel.legend()

# %% [markdown]
# All three are nearly shut on the left and open on the right. SiLU and GELU dip below zero before they shut.
#
# ## The road through 24 layers
#
# Five ways of putting layers together. Left the size of the stream, right the gradient that arrives at each layer when
# one of size 1 starts at the end. Try another depth or another spread of the matrices.

# %%
DEPTH, SPREAD = 24, 1.0
norm = RMSNorm(64)
ways = {
    "replace": lambda x, layer: layer(x),
    "replace, normed": lambda x, layer: layer(norm(x)),
    "add, no norm": lambda x, layer: x + layer(x),
    "add, norm the sum (post)": lambda x, layer: norm(x + layer(x)),
    "add, norm the copy (pre)": lambda x, layer: x + layer(norm(x)),
}


def typical(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


torch.manual_seed(0)
layers = [SwiGLU(64, 192) for _ in range(DEPTH)]
for matrix in (matrix for layer in layers for matrix in layer.parameters()):
    nn.init.normal_(matrix, std=SPREAD * matrix.shape[1] ** -0.5)
start, arrives = torch.randn(16, 64), torch.randn(16, 64)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for (name, way), dash in zip(ways.items(), ("--", ":", (0, (1, 3)), "-.", "-"), strict=True):
    streams = [start.clone().requires_grad_()]
    for layer in layers:
        streams.append(way(streams[-1], layer))
        streams[-1].retain_grad()
    (streams[-1] * arrives).sum().backward()
    left.plot([typical(stream) for stream in streams], linestyle=dash, label=name)
    right.plot([typical(stream.grad) for stream in streams], linestyle=dash, label=name)
for panel, title in ((left, "size of the stream"), (right, "size of the gradient")):
    panel.set(title=title, xlabel="layer", yscale="log", ylim=(1e-6, 1e6))
_ = left.legend(fontsize=7)

# %% [markdown]
# *Replace* sinks out of the picture, *add, no norm* leaves it at the top (its gradient is not a number, so it has no
# line on the right). *Replace, normed* holds the size while its gradient grows. Only the last two hold both.
#
# ## What the storyteller's blocks add

# %%
model, tokenizer = GPT.from_pretrained("models/storyteller"), BPETokenizer.load("models/storyteller")
stories = [[tokenizer.eot_id, *tokenizer.encode(story)] for story in generate(20, seed=99)]


@torch.no_grad()
def outputs_of(parts: list[nn.Module], ids: list[int]) -> list[Tensor]:
    """Let the model read one text and return what each of these parts answered, (T, C) each."""
    heard = {}
    hooks = [part.register_forward_hook(lambda part, _, answer: heard.update({part: answer[0]})) for part in parts]
    model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return [heard[part] for part in parts]


streams = [model.token_embedding, *model.blocks]
sizes = torch.stack([answer.square().mean(-1).sqrt() for answer in outputs_of(streams, stories[0])])
figure, panel = plt.subplots(figsize=(9, 2.6), layout="constrained")
picture = panel.imshow(sizes[:, :60].log10(), aspect="auto", cmap="Blues")
panel.set(xlabel="token", yticks=range(5), yticklabels=["embedding", *(f"after block {n}" for n in range(4))])
_ = figure.colorbar(picture, label="size, powers of ten")

# %% [markdown]
# The size of the stream at the first 60 tokens of a story: block 0 lifts it by three powers of ten, the others by
# little.
#
# ## What would it say if it stopped here?
#
# > **Preview.** Chapter 7 turns the stream behind the last block into guesses: a last norm, then a comparison with
# > every token's embedding. Since all blocks write into the same stream, the same can be done behind any block.

# %%
story = stories[0]
layers_after = outputs_of(list(model.blocks), story)
with torch.no_grad():
    guesses = [model.lm_head(model.final_norm(stream)).softmax(-1) for stream in layers_after]
print(f"{'comes next':14}", "".join(f"after block {number:<11}" for number in range(4)))
for place in range(20, 36):
    tops = [guess[place].max(-1) for guess in guesses]
    cells = [f"{tokenizer.decode([top.indices.item()])!r:14} {top.values:.2f}   " for top in tops]
    print(f"{tokenizer.decode([story[place + 1]])!r:14}", "".join(cells))

# %%
right = torch.zeros(4)
surprise = torch.zeros(4)
for ids in stories:
    targets = torch.tensor(ids[1:])
    with torch.no_grad():
        for number, stream in enumerate(outputs_of(list(model.blocks), ids)):
            logits = model.lm_head(model.final_norm(stream))[:-1]
            right[number] += (logits.argmax(-1) == targets).float().mean() / len(stories)
            surprise[number] += F.cross_entropy(logits, targets) / len(stories)
print("best guess is right, after each block:", [round(share, 2) for share in right.tolist()])
print("loss, after each block:               ", [round(loss, 2) for loss in surprise.tolist()])

# %% [markdown]
# Every block makes the guess better. The first one already writes most of it; the last one settles what is left, such
# as whether a sentence ends here.
#
# ## What is a single thought about?
#
# Each block has 1024 hidden numbers. For each, add up how strongly it answers to each token of the vocabulary, over all
# stories. Shown are those of each block whose answers fall most on a single token, among the 200 that answer most.

# %%
activity = torch.zeros(4, model.config.d_ff, model.config.vocab_size)
for ids in stories:
    normed = outputs_of([storey.feed_forward_norm for storey in model.blocks], ids)
    for number, (storey, copy) in enumerate(zip(model.blocks, normed, strict=True)):
        with torch.no_grad():
            layer = storey.feed_forward
            hidden = F.silu(layer.gate(copy)) * layer.up(copy)  # (T, F)
        activity[number].index_add_(1, torch.tensor(ids), hidden.abs().T)

for number, table in enumerate(activity):
    loudest = table.sum(-1).topk(200).indices
    focus = table[loudest].amax(-1) / table[loudest].sum(-1)
    for place in focus.topk(3).indices.tolist():
        thought = loudest[place].item()
        share, tokens = (table[thought] / table[thought].sum()).topk(4)
        pairs = zip(tokens.tolist(), share.tolist(), strict=True)
        words = ", ".join(f"{tokenizer.decode([token])!r} {part:.2f}" for token, part in pairs)
        print(f"block {number}, thought {thought:4}: {words}")

# %% [markdown]
# Some thoughts are about one token nearly alone, mostly frequent words. That is a rule for picking them, and no more:
# most thoughts answer to many tokens, and nobody has a name for what they mean.
#
# **To try:** silence one of these thoughts (a hook before `feed_forward.down` that sets one hidden number to zero) and
# compare the loss behind its favourite token with the loss elsewhere. Then silence a hundred random ones.
