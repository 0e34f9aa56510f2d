"""Model folders: what is trained here opens in Hugging Face Transformers, and the other way round.

    config.json              the sizes: all that is needed to build the model, with random numbers in it
    model.safetensors        the numbers: every tensor under its name
    generation_config.json   how to draw from it, unless asked otherwise
    tokenizer.json           chapter 2 writes and reads this one

Our names differ from Hugging Face's, one to one; nothing is reordered, because chapter 4 splits RoPE's
pairs as they do. safetensors files hold numbers and nothing else: opening one cannot run anybody's code,
which the pickle files of earlier years could.

A folder that opens is not yet a folder that is right: one field read otherwise, and every shape fits while
the model talks nonsense. So what is not understood is refused, and tests hold the logits of both sides
equal, for each family and in both directions.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from chapters.ch02_writing import write_atomically
from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch07_safetensors import save_tensors

# Our field on the left, Hugging Face's in config.json on the right. Fields that are not here have no single
# counterpart: a family implies them, or the spelling has changed over the years.
CONFIG_NAMES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "d_ff": "intermediate_size", "max_seq_len": "max_position_embeddings", "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings", "sliding_window": "sliding_window",
    "dropout": "attention_dropout",
}

# Our tensor names on the left, Hugging Face's on the right: those outside the blocks.
TENSOR_NAMES = {
    "token_embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}

# The parts of a block, likewise. `to_hf_name` adds the block's number before and "weight" or "bias" behind.
BLOCK_NAMES = {
    "attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm",
    "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}

# The families one GPT class covers, and the class of Transformers that opens each.
FAMILIES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}


def family_of(config: GPTConfig) -> str:
    """Return the published family that has these switches: llama, mistral, qwen2 or qwen3.

        llama     the plain tower of chapters 3 to 7
        mistral   looks back one sliding window in each layer
        qwen2     adds a bias to queries, keys and values
        qwen3     levels the length of queries and keys with a norm

    Raises ValueError where none has them: such a folder would open nowhere else.
    """
    # 1. Look the switches up. Two at once are a model that can be trained and used here, but has no name.
    switches = (config.qkv_bias, config.qk_norm, config.sliding_window is not None)
    known = {
        (False, False, False): "llama", (False, False, True): "mistral",
        (True, False, False): "qwen2", (False, True, False): "qwen3",
    }
    if switches not in known:
        raise ValueError(
            f"qkv_bias {switches[0]}, qk_norm {switches[1]}, sliding_window {config.sliding_window}: "
            "no published family has this combination; use at most one of the three"
        )
    return known[switches]


def to_hf_name(name: str) -> str:
    """Return Hugging Face's name for one of our tensors, as `GPT.state_dict` lists them.

        blocks.3.attention.query.weight  ->  model.layers.3.self_attn.q_proj.weight
    """
    if name in TENSOR_NAMES:
        return TENSOR_NAMES[name]
    _, i, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    return f"model.layers.{i}.{BLOCK_NAMES[part]}.{kind}"


def config_to_hf(config: GPTConfig, dtype: torch.dtype) -> dict:
    """Return the contents of `config.json` for a model whose numbers are saved as `dtype`.

    Raises ValueError when no published family has this combination of fields.
    """
    # 1. Translate the fields, and say which class of Transformers shall open the folder. "silu" is the bend
    # inside SwiGLU.
    family = family_of(config)
    hf = {"architectures": [FAMILIES[family]], "model_type": family, "hidden_act": "silu"}
    hf |= {theirs: getattr(config, ours) for ours, theirs in CONFIG_NAMES.items()}

    # 2. Write the rotation in the new spelling and in the old one. A reader that knows neither would take its
    # own default, and turn by other angles than in training.
    scaling = config.rope_scaling or {"rope_type": "default"}
    hf |= {"rope_parameters": scaling | {"rope_theta": config.rope_theta}}
    hf |= {"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling}
    return hf | {"dtype": str(dtype).removeprefix("torch."), "initializer_range": 0.02, "use_cache": True}


def config_from_hf(hf: dict) -> GPTConfig:
    """Return our `GPTConfig` for the contents of a `config.json`, in old or new spelling.

    Raises ValueError for a family not known here, a field that is missing, or one that asks for what GPT
    does not compute.
    """
    # 1. Refuse foreign architectures by name, before their tensors confuse anyone.
    family = hf.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"config.json says model_type {family!r}: known here are {', '.join(FAMILIES)}")

    # 2. Translate the fields that are there; null says the same as leaving one out. An epsilon that is not
    # given is the one Transformers takes then.
    fields = {ours: hf[theirs] for ours, theirs in CONFIG_NAMES.items() if hf.get(theirs) is not None}
    fields.setdefault("norm_eps", 1e-6)
    missing = {"vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_seq_len"} - fields.keys()
    if missing:
        raise ValueError(f"config.json lacks {', '.join(CONFIG_NAMES[name] for name in sorted(missing))}")

    # 3. Refuse what would be computed otherwise there: all shapes would fit, and every answer be wrong.
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"config.json says hidden_act {hf['hidden_act']!r}: only 'silu' is known here")
    if family in ("qwen2", "qwen3") and hf.get("use_sliding_window"):
        raise ValueError(
            "config.json says use_sliding_window: a sliding_window in some layers only is not known here"
        )

    # 4. Read the rotation: `rope_parameters` since Transformers 5, two separate fields before. In the oldest
    # files the kind of scaling is called `type`.
    rope = dict(hf.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", None) or hf.get("rope_theta") or 10000.0
    scaling = dict(rope or hf.get("rope_scaling") or {})
    kind = scaling.pop("type", None) or scaling.get("rope_type") or "default"
    scaling = scaling | {"rope_type": kind} if kind != "default" else None

    # 5. Add the switches that a family implies without a field. A window counts only where it is used: Qwen's
    # files name one and, next to it, say that it is off. A head is tied only where that is said.
    fields["tie_embeddings"] = bool(hf.get("tie_word_embeddings", False))
    if family in ("qwen2", "qwen3"):
        fields.pop("sliding_window", None)
    switches = {"qkv_bias": family == "qwen2", "qk_norm": family == "qwen3"}
    return GPTConfig(**fields, **switches, rope_theta=float(theta), rope_scaling=scaling)


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
    folder, config = Path(folder), config_to_hf(model.config, dtype) | ends
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
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})


def load_model(cls: type[GPT], folder: str | Path) -> GPT:
    """Return the model of a folder in float32 and in evaluation mode.

    `cls` is the class to build, GPT or one derived from it. The file may hold any floating-point format.
    Raises ValueError when a file is missing or broken, or a tensor is missing, extra or of another shape.
    """
    # 1. Read both files. A folder comes from anywhere, so whatever is wrong with it ends in one line.
    folder = Path(folder)
    try:
        hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold a readable model: {error}") from error

    # 2. Build a model of these sizes. Its random numbers are all replaced below.
    if not isinstance(hf, dict):
        raise ValueError(f"{folder}/config.json does not hold a JSON object of settings")
    config = config_from_hf(hf)
    model = cls(config)

    # 3. List what must be in the file. A tied head is the embedding again; some files hold it all the same.
    wanted = dict(model.state_dict())
    if config.tie_embeddings:
        del wanted["lm_head.weight"]
        tensors.pop("lm_head.weight", None)

    # 4. Name the first difference; a model with a tensor at random would speak gibberish with confidence.
    names = {name: to_hf_name(name) for name in wanted}
    if odd := set(names.values()) ^ tensors.keys():
        raise ValueError(
            f"{folder}/model.safetensors: tensor {min(odd)!r} is missing or does not belong there"
        )

    # 5. Compare shapes before anything is copied, so that the message can name tensor and file.
    for name, theirs in names.items():
        if tensors[theirs].shape != wanted[name].shape:
            have, want = tuple(tensors[theirs].shape), tuple(wanted[name].shape)
            raise ValueError(f"{folder}: tensor {theirs!r} has shape {have}, but config.json asks for {want}")

    # 6. Copy, as float32 whatever the file holds. A tied head is not listed, hence not strict: it receives
    # its numbers through the embedding.
    state = {name: tensors[theirs].float() for name, theirs in names.items()}
    model.load_state_dict(state, strict=not config.tie_embeddings)
    return model.eval()
