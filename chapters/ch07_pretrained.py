"""Model folders: what is trained here opens in Hugging Face Transformers, and the other way round.

A model folder holds `config.json` (sizes), `model.safetensors` (numbers), `tokenizer.json` and
`generation_config.json`. Our names differ from Hugging Face's, one to one; nothing is reordered, because
chapter 4 splits RoPE's pairs as they do. safetensors files hold numbers and nothing else: opening
one cannot run anybody's code.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chapters.ch07_gpt_model import GPT, GPTConfig

# Our field on the left, Hugging Face's in config.json on the right.
CONFIG_NAMES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "d_ff": "intermediate_size", "max_seq_len": "max_position_embeddings", "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings", "sliding_window": "sliding_window", "dropout": "attention_dropout",
}

# Our tensor names on the left, Hugging Face's on the right; `{i}` is the number of the block.
TENSOR_NAMES = {
    "token_embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
BLOCK_NAMES = {
    "attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm",
    "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj", "feed_forward.down": "mlp.down_proj",
}

# The families one GPT class covers, told apart by three switches.
FAMILIES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}


def family_of(config: GPTConfig) -> str:
    """Return the published family that has these switches: llama, mistral, qwen2 or qwen3.

    Raises ValueError where none has them: such a folder would open nowhere else.
    """
    # 1. Look the switches up. Each family adds one thing to Llama.
    switches = (config.qkv_bias, config.qk_norm, config.sliding_window is not None)
    known = {
        (False, False, False): "llama", (False, False, True): "mistral",
        (True, False, False): "qwen2", (False, True, False): "qwen3",
    }
    if switches not in known:
        raise ValueError(
            f"qkv_bias {switches[0]}, qk_norm {switches[1]}, sliding_window {config.sliding_window}: no published "
            "family has this combination; use at most one of the three"
        )
    return known[switches]


def to_hf_name(name: str) -> str:
    """Return Hugging Face's name for one of our tensors."""
    if name in TENSOR_NAMES:
        return TENSOR_NAMES[name]
    _, i, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    return f"model.layers.{i}.{BLOCK_NAMES[part]}.{kind}"


def config_to_hf(config: GPTConfig, dtype: torch.dtype) -> dict:
    """Return the contents of `config.json` for this model."""
    # 1. Translate the fields, and say which class of Transformers shall open the folder.
    family = family_of(config)
    hf = {"architectures": [FAMILIES[family]], "model_type": family, "hidden_act": "silu"}
    hf |= {theirs: getattr(config, ours) for ours, theirs in CONFIG_NAMES.items()}

    # 2. Write the rotation in the new spelling and in the old one, so that old readers open it too.
    scaling = config.rope_scaling or {"rope_type": "default"}
    hf |= {"rope_parameters": scaling | {"rope_theta": config.rope_theta}}
    hf |= {"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling}
    return hf | {"dtype": str(dtype).removeprefix("torch."), "initializer_range": 0.02, "use_cache": True}


def config_from_hf(hf: dict) -> GPTConfig:
    """Return our `GPTConfig` for the contents of a `config.json`, in old or new spelling.

    Raises ValueError for a family not known here or a field that is missing.
    """
    # 1. Refuse foreign architectures by name, before their tensors confuse anyone.
    family = hf.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"config.json says model_type {family!r}: known here are {', '.join(FAMILIES)}")
    fields = {ours: hf[theirs] for ours, theirs in CONFIG_NAMES.items() if hf.get(theirs) is not None}
    fields.setdefault("norm_eps", 1e-6)
    missing = {"vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_seq_len"} - fields.keys()
    if missing:
        raise ValueError(f"config.json lacks {', '.join(CONFIG_NAMES[name] for name in sorted(missing))}")
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"config.json says hidden_act {hf['hidden_act']!r}: only 'silu' is known here")
    if family in ("qwen2", "qwen3") and hf.get("use_sliding_window"):
        raise ValueError("config.json says use_sliding_window: a sliding_window in some layers only is not known here")

    # 2. Read the rotation: `rope_parameters` since Transformers 5, two separate fields before.
    rope = dict(hf.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", None) or hf.get("rope_theta") or 10000.0
    scaling = dict(rope or hf.get("rope_scaling") or {})
    kind = scaling.pop("type", None) or scaling.get("rope_type") or "default"
    scaling = scaling | {"rope_type": kind} if kind != "default" else None

    # 3. Add the switches that a family implies without a field. A window counts only where it is used.
    fields["tie_embeddings"] = bool(hf.get("tie_word_embeddings", False))
    if family in ("qwen2", "qwen3"):
        fields.pop("sliding_window", None)
    return GPTConfig(
        **fields, rope_theta=float(theta), rope_scaling=scaling, qkv_bias=family == "qwen2", qk_norm=family == "qwen3"
    )


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one, never half of one."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that a crash leaves the old one or the new one, never half of one."""
    partial = path.with_name(path.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def save_model(model: GPT, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` into `folder`, made if missing."""
    # 1. Prepare both texts first: what cannot be described must not leave half a folder.
    folder, config = Path(folder), config_to_hf(model.config, dtype)
    generation = {"do_sample": True, "temperature": 0.8, "max_length": model.config.max_seq_len}
    folder.mkdir(parents=True, exist_ok=True)

    # 2. Save each tensor once. A tied head is the embedding again, and safetensors refuses twins.
    tensors = {to_hf_name(name): tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors["lm_head.weight"]
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_atomically(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")


def load_model(cls: type[GPT], folder: str | Path) -> GPT:
    """Return the model of a folder in float32 and in evaluation mode.

    Raises ValueError when a file is missing or broken, or a tensor is missing, extra or of another shape.
    """
    # 1. Read the sizes.
    folder = Path(folder)
    try:
        hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold a readable model: {error}") from error
    if not isinstance(hf, dict):
        raise ValueError(f"{folder}/config.json does not hold a JSON object of settings")
    config = config_from_hf(hf)

    # 2. Compare names and shapes before anything is copied, so that the message can name the tensor.
    model = cls(config)
    wanted = {name: tensor for name, tensor in model.state_dict().items()}
    if config.tie_embeddings:
        del wanted["lm_head.weight"]
        tensors.pop("lm_head.weight", None)
    names = {name: to_hf_name(name) for name in wanted}
    odd = set(names.values()) ^ tensors.keys()

    # 3. Name the first difference; a model with a tensor at random would speak gibberish with confidence.
    if odd:
        raise ValueError(f"{folder}/model.safetensors: tensor {min(odd)!r} is missing or does not belong there")
    for name, theirs in names.items():
        if tensors[theirs].shape != wanted[name].shape:
            have, want = tuple(tensors[theirs].shape), tuple(wanted[name].shape)
            raise ValueError(f"{folder}: tensor {theirs!r} has shape {have}, but config.json asks for {want}")

    # 4. Copy, as float32 whatever the file holds.
    state = {name: tensors[theirs].float() for name, theirs in names.items()}
    model.load_state_dict(state, strict=not config.tie_embeddings)
    return model.eval()
