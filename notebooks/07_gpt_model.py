# Imports that only quoted code needs look unused from here.
# ruff: noqa: F401

# %% [markdown]
# # 7. The whole model, to play with
#
# Beside [the chapter](../chapters/07_gpt_model.md): the noise that a tower begins with, the sizes of models that do not
# exist yet, and the guesses of the trained storyteller, floor by floor.

# %%
import dataclasses
import math

import matplotlib.pyplot as plt
import torch

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_families import CONFIG_NAMES
from chapters.ch07_gpt_model import GPT, PRESETS, GPTConfig, memory_bytes
from corpora.stories import generate

torch.set_num_threads(1)

# %% [markdown]
# ## Design a model
#
# Change any size, and see what it costs before it exists.

# %%
# code: chapters/ch07_config.py#count_parameters
# code: chapters/ch07_config.py#flops_per_token

# %%
mine = GPTConfig(vocab_size=8192, d_model=384, num_layers=8, num_heads=6, num_kv_heads=2, d_ff=1024, max_seq_len=512)
for part, count in count_parameters(mine).items():
    print(f"{part:13} {count:12,}")
print("a token forward, million FLOPs:", flops_per_token(mine, 512)["forward"] // 10**6)
print("bytes:", memory_bytes(mine, 512))

# %% [markdown]
# Which vocabulary can a model of which width afford? The embedding's share of a tied model with eight layers:

# %%
widths, vocabularies = [64, 128, 256, 512, 1024, 2048, 4096], [1024, 8192, 32000, 128256]
figure, panel = plt.subplots(figsize=(7, 3.6), layout="constrained")
for vocab_size, dashes in zip(vocabularies, ["-", "--", "-.", ":"], strict=True):
    shares = []
    for width in widths:
        counts = count_parameters(GPTConfig(vocab_size, width, 8, width // 32, d_ff=8 * width // 3))
        shares.append(counts["embedding"] / counts["total"])
    panel.plot(widths, shares, dashes, label=f"V = {vocab_size}")
panel.set(xscale="log", xlabel="C, numbers in a vector", ylabel="share of the embedding", ylim=(0, 1))
panel.set_xticks(widths, widths)
panel.minorticks_off()
panel.legend()
plt.show()

# %% [markdown]
# ## A tower of noise
#
# The typical size of the stream, block by block, in untrained models of 4, 12 and 48 layers: with the division by
# √(2·L), and without.

# %%
# code: chapters/figures/ch07_sizes.py#stream_sizes

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
for panel, divided in zip(panels, (True, False), strict=True):
    for layers in (4, 12, 48):
        panel.plot(range(1, layers + 1), stream_sizes(layers, divided), "o-", markersize=3, label=f"{layers} layers")
    panel.set(title="divided" if divided else "not divided", xlabel="block")
panels[0].set_ylim(0, 0.4)
panels[0].set_ylabel("typical size")
panels[0].legend()
plt.show()

# %% [markdown]
# ## The trained one
#
# What the storyteller would say after each token of a story that it has never seen. A token's surprise is low where the
# word could be known, high where the story was free.

# %%
model, tokenizer = GPT.from_pretrained("models/storyteller"), BPETokenizer.load("models/storyteller")
ids = torch.tensor([[tokenizer.eot_id, *tokenizer.encode(generate(1, seed=99)[0])]])
with torch.no_grad():
    logits = model(ids)[0]
chances = logits.softmax(-1)
for place in range(24):
    said, (best, likeliest) = ids[0, place + 1].item(), chances[place].topk(3)
    guesses = ", ".join(f"{tokenizer.decode([i])!r} {c:.2f}" for c, i in zip(best, likeliest.tolist(), strict=True))
    print(f"{tokenizer.decode([said])!r:14} surprise {-chances[place, said].log().item():5.2f}   guesses {guesses}")

# %% [markdown]
# ## Floor by floor
#
# Send the stream to the roof early: last norm and output head after each block. Dark is sure of the right word.

# %%
heard = []
hooks = [block.register_forward_pre_hook(lambda block, given: heard.append(given[0])) for block in model.blocks]
hooks += [model.blocks[-1].register_forward_hook(lambda block, given, answer: heard.append(answer))]
with torch.no_grad():
    model(ids)
    floors = [model.lm_head(model.final_norm(stream))[0].softmax(-1) for stream in heard]
for hook in hooks:
    hook.remove()

table = torch.stack([floor[range(32), ids[0, 1:33]] for floor in floors])
figure, panel = plt.subplots(figsize=(11, 2.8), layout="constrained")
panel.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
panel.set(ylabel="blocks climbed", yticks=range(len(floors)))
panel.set_xticks(range(32), [tokenizer.decode([i]) for i in ids[0, 1:33].tolist()], rotation=90, fontsize=8)
plt.show()

# %%
for height, floor in enumerate(floors):
    loss = -floor[range(ids.shape[1] - 1), ids[0, 1:]].log().mean()
    print(f"{height} blocks: loss {loss:.3f}, of a blind guess {math.log(model.config.vocab_size):.3f}")

# %% [markdown]
# ## A published model, in its own words

# %%
for ours, theirs in CONFIG_NAMES.items():
    print(f"{theirs:24} {ours:16} {getattr(model.config, ours)}")

# %% [markdown]
# **To try:** type the fields of a `config.json` that you find on the web into a dictionary, and give it to
# `config_from_hf` of `chapters.ch07_families`. How many parameters, how large a cache? What does it refuse, and why?
