"""Model folders: what is trained here opens in Hugging Face Transformers, and the other way round.

    config.json              the sizes: all that is needed to build the model, with random numbers in it
    model.safetensors        the numbers: every tensor under its name; a large model's lie in several files, and
                             model.safetensors.index.json lists them
    generation_config.json   how to draw from it, unless asked otherwise
    tokenizer.json           chapter 2 writes and reads this one

`ch07_families.py` knows how each family spells sizes and tensors; here the numbers move. safetensors files
hold numbers and nothing else: opening one cannot run anybody's code, which the pickle files of earlier years
could. A folder may still come from anybody, so nothing is built before the sizes that config.json asks for
are found to be the sizes of what is there.

A single damaged bit is noticed in every file of numbers that was written here, by its checksum. In files from
elsewhere it is noticed where it hits the description, or makes a number infinite or none; a number that has
become another one is believed, and so is a config.json that still makes sense.

A folder that opens is not yet a folder that is right, so tests hold the logits of both sides equal, for each
family and in both directions.
"""

import contextlib
import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from chapters.ch02_writing import write_atomically
from chapters.ch07_families import config_from_hf, config_to_hf, tensor_shapes, to_hf_name
from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch07_hub import model_folder
from chapters.ch07_safetensors import checksum, save_tensors

# The largest table of positions that is made. The longest published contexts need less, and what asks for more
# is a mistake, or malice.
ROPE_TABLE_BYTES = 1 << 32

# What can be done about a folder that cannot be opened.
REMEDY = "get the folder again from where it comes"


def save_model(
    model: GPT, folder: str | Path, dtype: torch.dtype = torch.float32, end_token: int | None = None
) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` into `folder`, made if missing.

    `end_token` is the id at which readers of the folder stop, and with which a text begins. The tokenizer is
    saved by its own class, into the same folder. A crash between two files leaves a folder without weights, or
    the old ones; a crash within a file leaves that file as it was.
    Raises ValueError when no published family has this combination of fields; nothing is written then. Raises
    OSError when the disk is full or the folder is closed.
    """
    # 1. Prepare both texts first: what cannot be described must not leave half a folder.
    ends = {"bos_token_id": end_token, "eos_token_id": end_token, "pad_token_id": end_token}
    folder, config = Path(folder), config_to_hf(model.config, str(dtype).removeprefix("torch.")) | ends
    generation = ends | {"do_sample": True, "temperature": 0.8, "max_length": model.config.max_seq_len}
    folder.mkdir(parents=True, exist_ok=True)

    # 2. Gather the tensors, each once, on the processor: a file shall open on machines without a GPU.
    # A tied head is the embedding again, and safetensors refuses twins.
    state = model.state_dict()
    tensors = {to_hf_name(name): tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
    if model.config.tie_embeddings:
        del tensors["lm_head.weight"]

    # 3. Write each file whole, the numbers last: a new folder that has them has everything. "pt" tells readers
    # that the tensors are PyTorch's; some refuse a file without.
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_atomically(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    notes = {"format": "pt", "sha256": checksum(sorted(tensors.items()))}
    save_tensors(tensors, folder / "model.safetensors", notes)


def load_model(cls: type[GPT], folder: str | Path) -> GPT:
    """Return the model of a folder, or of a name such as ORG/NAME on the hub, in float32 and in evaluation mode.

    `cls` is the class to build, GPT or one derived from it. The file may hold any floating-point format. Raises
    ValueError when a file is missing or broken, or a tensor is missing, extra or of another shape, before any
    memory is taken for it, or a number is damaged; ConnectionError for a name that cannot be downloaded.
    """
    # 1. Read the sizes. A folder comes from anywhere, so whatever is wrong with it ends in one line.
    folder = model_folder(folder)
    config = read_config(folder)

    # 2. Compare them with what is stored: only then is there a bound to what is built.
    with contextlib.ExitStack() as stack:
        stored = _stored_tensors(folder, stack)
        config = _checked(config, stored, folder)
        _check_numbers(stored, folder)
        model = cls(config)

        # 3. Fill it tensor by tensor, so that a large model is never in memory twice. Copying turns whatever the
        # file holds into float32; a tied head receives its numbers through the embedding.
        state = model.state_dict()
        for ours, theirs in ((name, to_hf_name(name)) for name, _ in tensor_shapes(config)):
            state[ours].copy_(stored[theirs].get_tensor(theirs))
            # 4. Refuse what is no number: it would spread, and the model would say whatever comes first.
            if not state[ours].isfinite().all():
                raise ValueError(f"{folder}: tensor {theirs!r} holds a number that is not finite: {REMEDY}")

    # 5. Store tall matrices column by column. Shapes and numbers stay, but a processor multiplies one vector
    # faster so (`benchmarks/bench_generation.py` measures it).
    for matrix in (weight for weight in model.parameters() if weight.dim() == 2):
        if matrix.shape[0] > matrix.shape[1]:
            matrix.data = matrix.data.t().contiguous().t()
    return model.eval()


def read_config(folder: Path) -> GPTConfig:
    """Return the sizes that a folder's `config.json` describes.

    Raises ValueError naming the folder when the file is missing or broken, or describes no model known here.
    """
    # 1. Read it. What is no object of settings, such as a list, has no fields to ask for.
    try:
        hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder} does not hold a readable model ({error}): {REMEDY}") from error
    if not isinstance(hf, dict):
        raise ValueError(f"{folder}/config.json does not hold a JSON object of settings: {REMEDY}")

    # 2. Understand it.
    try:
        return config_from_hf(hf)
    except ValueError as error:
        raise ValueError(f"{folder} does not hold a model that can be run here: {error}") from error


def _stored_tensors(folder: Path, stack: contextlib.ExitStack) -> dict[str, safe_open]:
    """Return the open file of each tensor in a folder, by the tensor's name; only names and shapes are read yet.

    The files stay open until `stack` closes. Raises ValueError when one is missing or broken.
    """
    # 1. List the files. An index may name only files beside it: a path could lead anywhere on this disk.
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    try:
        if index.is_file() and not (folder / names[0]).is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index.name} names a file outside the folder")

        # 2. Open them. A tensor in two files would leave open which one is meant.
        stored: dict[str, safe_open] = {}
        for file in [stack.enter_context(safe_open(folder / name, framework="pt")) for name in names]:
            if twice := stored.keys() & file.keys():
                raise ValueError(f"tensor {min(twice)!r} is in two of its files")
            stored |= dict.fromkeys(file.keys(), file)

    # 3. Say it in one line, whichever way a file is broken.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold a readable model ({error}): {REMEDY}") from error
    return stored


def _check_numbers(stored: dict[str, safe_open], folder: Path) -> None:
    """Raise ValueError where the numbers of a file are not those that its checksum was made of, if it has one."""
    for file in dict.fromkeys(stored.values()):
        written = (file.metadata() or {}).get("sha256")
        if written and written != checksum((name, file.get_tensor(name)) for name in sorted(file.keys())):
            raise ValueError(f"{folder}: the checksum of model.safetensors does not fit its numbers: {REMEDY}")


def _checked(config: GPTConfig, stored: dict[str, safe_open], folder: Path) -> GPTConfig:
    """Return the config, once every tensor that it asks for is found to be there in this shape, and none besides.

    A model with a tensor at random would speak gibberish with confidence, and a config of anybody's making
    could ask for more memory than there is. Raises ValueError naming the first difference.
    """
    # 1. Leave out what nobody misses: the oldest Llamas keep their tables of angles.
    names = {name for name in stored if not name.endswith("rotary_emb.inv_freq")}

    # 2. Look at a tied head that is stored all the same. One that differs is a head of its own, whatever
    # config.json says.
    tied = [to_hf_name(name) for name in ("lm_head.weight", "token_embedding.weight")]
    if config.tie_embeddings and names.issuperset(tied):
        same = torch.equal(*(stored[name].get_tensor(name) for name in tied))
        config = dataclasses.replace(config, tie_embeddings=same)
        names -= {tied[0]} if same else set()

    # 3. Compare one by one, and stop at the first difference: a config may ask for a million layers.
    for name, want in tensor_shapes(config):
        theirs = to_hf_name(name)
        if theirs not in names:
            raise ValueError(f"{folder}: tensor {theirs!r} is missing, but config.json asks for it: {REMEDY}")
        names.remove(theirs)

        # 4. Read shape and format without reading the numbers.
        tensor = stored[theirs].get_slice(theirs)
        if (have := tuple(tensor.get_shape())) != want:
            raise ValueError(f"{folder}: tensor {theirs!r} has shape {have}, not {want} as in config.json: {REMEDY}")
        if (kind := tensor.get_dtype()) not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"{folder}: tensor {theirs!r} holds {kind} numbers, and only fractions are known here")

    # 5. Name what is left over, and bound the one size that no tensor has.
    if names:
        raise ValueError(f"{folder}: tensor {min(names)!r} does not belong to what config.json describes: {REMEDY}")
    if 4 * config.max_seq_len * config.head_dim > ROPE_TABLE_BYTES:
        raise ValueError(
            f"{folder}/config.json says max_position_embeddings {config.max_seq_len}: its table of angles would "
            f"need more than {ROPE_TABLE_BYTES >> 30} GiB, write the length that you need there"
        )
    return config
