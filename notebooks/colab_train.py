# %% [markdown]
# # Train a GPT here, and take it home
#
# Run all cells, from top to bottom. On a machine with a GPU (on Colab: *Runtime*, *Change runtime type*) this trains
# the largest preset that fits; without one, a very small model for a few steps, so that you see each part work.
# Chapter 8 explains the training, chapter 10 the command.

# %%
import io
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from IPython.display import Image

import main
from chapters.ch07_config import PRESETS, count_parameters
from chapters.ch08_scale import choose_device
from chapters.ch10_doctor import largest_that_fits

# %% [markdown]
# ## What this machine can do
#
# Training keeps about 16 bytes for each parameter, and half of a GPU's memory is left to everything else.

# %%
device = choose_device()
memory = torch.cuda.get_device_properties(0).total_memory if device.type == "cuda" else None
preset = largest_that_fits(memory) if device.type == "cuda" else "nano"
steps = 2000 if device.type == "cuda" else 20
print(f"{preset}, {count_parameters(PRESETS[preset])['total']:,} parameters at its own sizes, {steps} steps")

# %% [markdown]
# ## Train
#
# This is `python main.py train`. What it says on the way is kept, and shown below as far as it matters. For your own
# text, put a file beside the notebook and change `stories` to its name.

# %%
runs = Path(tempfile.mkdtemp())
looks = steps // 4 if device.type == "cuda" else 10
flags = ["--data", "stories", "--preset", preset, "--max-steps", str(steps), "--eval-every", str(looks)]
with redirect_stdout(io.StringIO()) as said:
    code = main.main(["train", *flags, "--checkpoint-every", str(steps), "--runs", str(runs), "--name", "mine"])
folder = runs / "mine"
assert code == 0, "the line above says what went wrong"
print(sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# ## How its surprise fell

# %%
Image(folder / "loss.png", alt="Training and validation loss in bits per byte over the steps, and the grammar's floor")

# %% [markdown]
# ## What it says
#
# After 20 steps it knows that words exist. After 2,000 on a GPU, it should tell a story.

# %%
with redirect_stderr(io.StringIO()):
    main.main(["generate", "--model", str(folder), "--prompt", "Once upon a time", "--max-new-tokens", "60"])

# %% [markdown]
# ## Take it home
#
# The folder opens in Hugging Face Transformers, and in `python main.py generate --model FOLDER`.

# %%
model_files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
(home := runs / "model").mkdir()
for name in [*model_files, "README.md"]:
    if (folder / name).exists():
        shutil.copy(folder / name, home / name)
archive = Path(shutil.make_archive(str(runs / "my_gpt"), "zip", home))
print(archive.name, f"{archive.stat().st_size / 2**20:.1f} MiB")

# %%
if "google.colab" in sys.modules:
    from google.colab import files

    files.download(str(archive))
