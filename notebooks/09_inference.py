# Imports that only quoted code needs look unused from here.
# ruff: noqa: F401

# %% [markdown]
# # 9. Inference, to play with
#
# Beside [the chapter](../chapters/09_inference.md): turn the knobs and watch the wheel, see where a story is open and
# where it is sure, measure the cache, and watch a small model guess for a larger one.

# %%
import time
from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch09_decoding import Acceptance, speculative_generate
from chapters.ch09_inference import (
    SamplingConfig,
    evaluating,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalized_logits,
    stream_story,
)
from corpora import stories

torch.set_num_threads(1)
model, tokenizer = GPT.from_pretrained("models/storyteller"), BPETokenizer.load("models/storyteller")

# %% [markdown]
# ## The wheel

# %%
# code: chapters/ch09_inference.py#token_probabilities

# %%
opening = "Once upon a time, in a"
ids = torch.tensor([[*tokenizer.start_ids, *tokenizer.encode(opening)]])
with torch.no_grad():
    logits = model(ids)[:, -1]
shown = logits[0].topk(14).indices
settings = ({"temperature": 1.0}, {"temperature": 0.4}, {"temperature": 2.0}, {"temperature": 2.0, "top_p": 0.9},
            {"temperature": 2.0, "min_p": 0.1}, {"temperature": 1.0, "top_k": 5})
figure, panels = plt.subplots(2, 3, figsize=(10, 5), layout="constrained", sharex=True, sharey=True)
for panel, setting in zip(panels.flat, settings, strict=True):
    probs = token_probabilities(logits, SamplingConfig(**setting))[0]
    panel.bar([tokenizer.decode([i]) for i in shown.tolist()], probs[shown])
    panel.set(title=", ".join(f"{name} {value:g}" for name, value in setting.items()))
    panel.tick_params(axis="x", rotation=90)
    print(f"{setting!s:38} tokens that may come: {int((probs > 0).sum()):5}, outside the picture: "
          f"{1 - probs[shown].sum():.3f}")
figure.suptitle(f"{opening} …")

# %% [markdown]
# At temperature 2 look at the last number: the tail outside of the picture. The filters take it away. Change `opening`.
#
# ## Hear the difference

# %%
for setting in ({"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 1.5}, {"temperature": 1.5, "min_p": 0.1},
                {"temperature": 0.8, "repetition_penalty": 1.3}):
    story = "".join(stream_story(model, tokenizer, "", SamplingConfig(**setting, seed=4)))
    print(setting, "->", stories.parse(story).reason)
    print("  ", story[:330], "\n")

# %% [markdown]
# ## Where is a story open?
#
# One bar for each token of a story that the model has not seen: how surprised is it? Low bars are what had to come.

# %%
# code: chapters/ch09_decoding.py#score

# %%
fresh = stories.generate(2, seed=5)[1]
ids = [tokenizer.eot_id, *tokenizer.encode(fresh)]
surprise = -score(model, ids)
figure, panels = plt.subplots(3, 1, figsize=(11, 7), layout="constrained", sharey=True)
for panel, places in zip(panels, torch.arange(len(surprise)).chunk(3), strict=True):
    panel.bar(places, surprise[places], color="#0072B2")
    panel.set_xticks(places, [tokenizer.decode([ids[i + 1]]).strip() for i in places.tolist()], rotation=90)
    panel.set(ylabel="nats")

# %% [markdown]
# Adjectives and places are open; names, things and small words are sure once they have been said. Which token would be
# the highest bar if a wrong name stood there? Replace one in `fresh` and run again.
#
# ## What the cache is worth

# %%
def milliseconds(use_cache: bool, every: int = 10) -> tuple[list[int], list[float]]:
    """Return how long a token takes, measured over every ten of a growing text."""
    marks, places, spent = time.perf_counter(), [], []
    tokens = generate(model, [tokenizer.eot_id], SamplingConfig(max_new_tokens=120), use_cache=use_cache)
    for place, _ in enumerate(tokens, 1):
        if place % every == 0:
            now = time.perf_counter()
            places.append(place)
            spent.append(1000 * (now - marks) / every)
            marks = now
    return places, spent


milliseconds(True)
for use_cache, label, colour, dash in ((False, "without", "#D55E00", "--"), (True, "with cache", "#0072B2", "-")):
    plt.plot(*milliseconds(use_cache), color=colour, linestyle=dash, marker="o", label=label)
plt.gca().set(xlabel="tokens so far", ylabel="milliseconds a token", ylim=(0, None))
plt.legend()

# %% [markdown]
# ## A small model guesses ahead
#
# Tokens come in groups: each pass of the large model brings the guesses that it accepted, and one of its own.

# %%
draft = GPT.from_pretrained("models/ladder/step_400")
prompt = [tokenizer.eot_id, *tokenizer.encode("Once upon a time")]
for temperature in (0.0, 0.8):
    counted, last, groups = Acceptance(), 0, []
    config = SamplingConfig(temperature=temperature, max_new_tokens=80)
    for token in speculative_generate(model, draft, prompt, config, draft_tokens=6, acceptance=counted):
        if counted.passes != last:
            groups.append([])
            last = counted.passes
        groups[-1].append(token)
    print(f"temperature {temperature}: {counted.rate:.0%} accepted, {len(groups)} passes")
    print("   ", "|".join(tokenizer.decode(group) for group in groups), "\n")

# %% [markdown]
# A long group is where the small model knew what comes; a short one ends where it guessed wrong.
#
# **To try:** use `models/ladder/step_100` as the draft. How many guesses are accepted? Does the greedy text change?
