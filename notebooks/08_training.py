# Imports that only quoted code needs look unused from here.
# ruff: noqa: F401

# %% [markdown]
# # 8. Training, to play with
#
# Beside [the chapter](../chapters/08_training.md): numbers that remember, two layers that learn what one neuron
# cannot, the slopes of a real model, three optimizers side by side, and the recorded curves.

# %%
import dataclasses
import itertools
import json
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch08_autograd import Network, Neuron, chance, train
from chapters.ch08_data import TokenRows
from chapters.ch08_distributed import whole
from chapters.ch08_training import TrainConfig, Trainer, cosine_warmup_lr, cross_entropy
from corpora.stories import generate

torch.set_num_threads(1)

# %% [markdown]
# ## Numbers that remember

# %%
# code: chapters/ch08_autograd.py#Value
# code: chapters/ch08_autograd.py#as_value

# %% [markdown]
# Change a number, and see every slope change:

# %%
weights, bias, inputs = [Value(0.5), Value(-1.0)], Value(0.0), [2, 1]
answer = weights[0] * inputs[0] + weights[1] * inputs[1] + bias
loss = -(1 / (1 + (-answer).exp())).log()
loss.backward()
for name, number in {"loss": loss, "answer": answer, "first weight": weights[0], "second weight": weights[1],
                     "bias": bias}.items():
    print(f"{name:14}", number)

# %% [markdown]
# ## What one neuron cannot learn, and two layers can
#
# The girl numbers of a name and of a pronoun: do they agree? The ground shows the chance of yes for all numbers
# between, the circles the four lessons (filled: yes).

# %%
lessons = [((1, 1), True), ((1, -1), False), ((-1, 1), False), ((-1, -1), True)]
students = {"one neuron": Neuron([0.5, -0.5]), "two layers": Network(2, 4, random.Random(0))}
figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
scale = [-1.5 + i / 10 for i in range(31)]
for panel, (name, student) in zip(panels, students.items(), strict=False):
    panels[2].plot(train(student, lessons, steps=100, rate=1.0), label=name)
    ground = [[chance(student((x, y))).data for x in scale] for y in scale]
    image = panel.imshow(ground, cmap="Blues", vmin=0, vmax=1, origin="lower", extent=(-1.55, 1.55, -1.55, 1.55))
    for (x, y), truth in lessons:
        panel.plot(x, y, "o", color="black", fillstyle="full" if truth else "none", markersize=10)
    panel.set(title=name, xlabel="name", ylabel="pronoun")
figure.colorbar(image, ax=panels[1], label="chance of yes")
panels[2].axhline(math.log(2), color="grey", linestyle="--")
panels[2].set(xlabel="step", ylabel="surprise", title="a coin costs ln 2")
_ = panels[2].legend()

# %% [markdown]
# ## Chance minus truth, in a trained model
#
# The slopes of the logits at one place of a fresh story: the storyteller's chances, minus 1 for the token that came.

# %%
model, tokenizer = GPT.from_pretrained("models/storyteller"), BPETokenizer.load("models/storyteller")
rows = TokenRows(generate(4, seed=7), tokenizer, context=160)
x, y = rows.rows(torch.arange(4).numpy())
logits = model(x)
logits.retain_grad()
loss = cross_entropy(logits, y)
loss.backward()

with torch.no_grad():
    surprises = -logits.log_softmax(-1).gather(-1, y[..., None])[..., 0]
place = int(surprises[0, 5:100].argmax()) + 5
slopes = logits.grad[0, place] * y.numel()
shown = slopes.abs().topk(8).indices
print("after:", tokenizer.decode(x[0, max(0, place - 12) : place + 1].tolist()))
plt.figure(figsize=(8, 2.6))
plt.bar([repr(tokenizer.decode([i])) for i in shown.tolist()], slopes[shown], color="#0072b2")
plt.axhline(0, color="black", linewidth=0.8)
_ = plt.ylabel("chance - truth")

# %% [markdown]
# ## Where it arrives
#
# The same backward pass, further down: the length of the gradient of each matrix of the tower, and how many rows of the
# embedding got any of it as *readers* (the same table is also the output layer, so all rows got something).

# %%
names = ["attention.query", "attention.key", "attention.value", "attention.output",
         "feed_forward.gate", "feed_forward.up", "feed_forward.down"]
table = [[dict(block.named_parameters())[f"{name}.weight"].grad.norm() for name in names] for block in model.blocks]
plt.figure(figsize=(8, 3))
plt.imshow(table, cmap="Blues")
plt.xticks(range(len(names)), names, rotation=30, ha="right")
plt.yticks(range(len(table)), [f"block {i}" for i in range(len(table))])
for i, row in enumerate(table):
    for j, length in enumerate(row):
        dark = length > max(map(max, table)) / 2
        plt.text(j, i, f"{length:.3f}", ha="center", va="center", color="white" if dark else "black")
print(f"{len(x.unique())} of {tokenizer.vocab_size} embedding rows were read in this batch")

# %% [markdown]
# ## Three optimizers
#
# A small model, the same batches, 60 steps: plain slopes times a rate, AdamW, and Muon with AdamW. Each with the best
# of a few rates. Change `RATES`, and see what a rate too high does.

# %%
# code: chapters/ch08_training.py#Trainer.train_step

# %%
RATES = {"plain": (0.3, 1.0, 3.0), "adamw": (0.003, 0.01, 0.03), "muon": (0.01, 0.03, 0.1)}
lesson = TokenRows(generate(300, seed=1), tokenizer, context=48)
small = GPTConfig(tokenizer.vocab_size, d_model=64, num_layers=2, num_heads=2, d_ff=128, max_seq_len=48, qk_norm=True)
base = TrainConfig(max_steps=60, warmup_steps=6, batch_size=8, dtype="float32", compile="off")


def run(kind: str, rate: float) -> list[float]:
    torch.manual_seed(0)
    settings = dataclasses.replace(base, learning_rate=rate, optimizer="muon" if kind == "muon" else "adamw")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(GPT(small), lesson, lesson, settings, Path(folder))
        if kind == "plain":
            trainer.optimizers = [torch.optim.SGD(trainer.model.parameters(), lr=rate)]
        return [trainer.train_step()["loss"] for _ in range(base.max_steps)]


plt.figure(figsize=(7, 3.4))
for kind, color, dash in (("plain", "#009e73", ":"), ("adamw", "#0072b2", "--"), ("muon", "#d55e00", "-")):
    curves = {rate: run(kind, rate) for rate in RATES[kind]}
    best = min(curves, key=lambda rate: sum(curves[rate][-10:]))
    plt.plot(curves[best], color=color, linestyle=dash, label=f"{kind}, rate {best}")
    print(f"{kind:6}", {rate: round(sum(losses[-10:]) / 10, 2) for rate, losses in curves.items()})
plt.axhline(math.log(tokenizer.vocab_size), color="grey", linewidth=0.8)
plt.xlabel("step")
plt.ylabel("loss per token")
_ = plt.legend()

# %% [markdown]
# ## The recorded runs
#
# The length of the gradient before clipping, for the seven runs of the chapter, seed 0; 1 is where clipping begins.

# %%
records = json.loads(Path("chapters/figures/ch08_curves.json").read_text())
plt.figure(figsize=(8, 3.6))
seven = ("muon 0.03", "high", "cold", "adamw 0.003", "adamw_cold", "few", "leak")
for name, dash in zip(seven, itertools.cycle(("-", "--", ":"))):
    lengths = records[name]["0"]["gradient_norm"]
    plt.plot(range(1, len(lengths) + 1), lengths, linestyle=dash, label=name)
plt.axhline(1, color="black", linewidth=0.8)
plt.yscale("log")
plt.xlabel("step")
plt.ylabel("length of the gradient")
_ = plt.legend(ncols=2)

# %% [markdown]
# **To try:** give the small model a mask that is wrong by one (`Leaking` in `chapters/figures/ch08_curves.py`), and
# find the step at which you would have noticed, from the curve alone.
