"""The shape of a model: every size and switch that the engine must know before it computes anything.

    config.json  ->  ModelConfig  ->  the name and the shape of every tensor that the file of weights must hold

A model folder comes from anybody. So a config is checked when it is made, and it says beforehand which tensors it
needs and how large they are: `weights.py` compares that with what is stored, and only then is memory taken. Two
families are known. "llama" covers Llama 2 and 3, TinyLlama, SmolLM2, Mistral, Qwen 2 and Qwen 3, which differ by
switches; "gpt2" is the tower of 2019, with LayerNorm, biases and learned positions.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from engine.safetensors import REMEDY

# What each way to stretch the context (see rope.py) must say about itself.
ROPE_SCALING_FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}

# The largest table of angles that a config may ask for. The longest published contexts need less.
ROPE_TABLE_BYTES = 1 << 32

# How Hugging Face spells the fields of ModelConfig: first the families that are called llama here, then GPT-2.
LLAMA_NAMES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "d_ff": "intermediate_size", "max_seq_len": "max_position_embeddings", "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
GPT2_NAMES = {
    "vocab_size": "vocab_size", "d_model": "n_embd", "num_layers": "n_layer", "num_heads": "n_head", "d_ff": "n_inner",
    "max_seq_len": "n_positions", "norm_eps": "layer_norm_epsilon", "tie_embeddings": "tie_word_embeddings",
}

# What a field that is left out means. Sizes are never left out; the others were invented after some file was
# written. None means "as the other fields say".
DEFAULTS = {
    "llama": {"num_key_value_heads": None, "head_dim": None},
    "mistral": {"num_key_value_heads": 8, "head_dim": None, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "head_dim": None, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
    "gpt2": {"n_inner": None, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
}
LATER_FIELDS = {
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "use_sliding_window": False, "max_window_layers": 28,
}

# The names that files give to the bend inside the feed-forward network.
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}

# Fields that change what is computed, and the only value that the engine computes.
ONLY_VALUES = {
    "partial_rotary_factor": 1, "quantization_config": None, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Every size and switch of a model; it checks itself, so an impossible model is never built.

        family                    "llama" or "gpt2"
        vocab_size                how many different tokens there are
        d_model                   numbers in the vector that stands for one token
        num_layers                blocks in the tower
        num_heads, num_kv_heads   query heads, and the key/value heads that they share; None: as many
        head_dim                  numbers in a head's vector; None: d_model / num_heads
        d_ff                      numbers in the hidden layer of a feed-forward network
        max_seq_len               the longest text, in tokens: the context
        rope_theta, rope_scaling  how fast RoPE turns; its `rope_type` and numbers, None: as it is
        norm_eps                  what keeps a norm from dividing by zero
        tie_embeddings            whether the output head is the embedding table again
        qkv_bias, qk_norm         what Qwen 2 and Qwen 3 add to attention
        sliding_window            how many tokens attention looks back, itself included; None: all
        activation                the bend of the feed-forward network: "silu", "gelu" or "gelu_tanh"
        rope_interleaved          whether RoPE turns neighbours (2i, 2i+1) instead of the halves (i, i+D/2)
        eos_ids                   the tokens that end a text

    Raises ValueError naming the field, its value and the rule.
    """

    family: str
    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    max_seq_len: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    activation: str = "silu"
    rope_interleaved: bool = False
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self):
        # 1. Know the words, then the sizes: the rules below divide by them.
        _check(self.family in ("llama", "gpt2"), "family", self.family, "'llama' or 'gpt2'")
        _check(self.activation in ACTIVATIONS.values(), "activation", self.activation, "silu, gelu or gelu_tanh")
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_seq_len"):
            _check(_is_size(getattr(self, name)), name, getattr(self, name), "a whole number above 0")

        # 2. Fill in what follows from other fields. A frozen dataclass wants it said this way.
        if self.head_dim is None:
            rule = f"divisible by num_heads {self.num_heads}, or head_dim must be given"
            _check(self.d_model % self.num_heads == 0, "d_model", self.d_model, rule)
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        object.__setattr__(self, "num_kv_heads", self.num_heads if self.num_kv_heads is None else self.num_kv_heads)

        # 3. Check the other numbers. They may come from anybody's config.json, which can hold texts and lists too.
        for name in ("num_kv_heads", "head_dim"):
            _check(_is_size(getattr(self, name)), name, getattr(self, name), "a whole number above 0")
        for name in ("norm_eps", "rope_theta"):
            _check(_is_positive(getattr(self, name)), name, getattr(self, name), "a finite number above 0")

        # 4. Check the switches, and the window, which is no number where there is none.
        for name in ("tie_embeddings", "qkv_bias", "qk_norm", "rope_interleaved"):
            _check(type(getattr(self, name)) is bool, name, getattr(self, name), "true or false")
        window = self.sliding_window
        _check(window is None or _is_size(window), "sliding_window", window, "a whole number above 0, or none")

        # 5. Check what goes together, and what has a shape of its own.
        _check_heads(self)
        _check_scaling(self.rope_scaling)
        whole = isinstance(self.eos_ids, tuple) and all(type(number) is int for number in self.eos_ids)
        _check(whole, "eos_ids", self.eos_ids, "a tuple of token ids")


def _check(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise ValueError with the field, its value and the rule, unless the rule holds."""
    if not holds:
        raise ValueError(f"{name} is {ascii(value)[:80]}: it must be {rule}")


def _is_size(value: object) -> bool:
    """Return whether a value is a whole number above 0. To Python, True is one too; here it is not."""
    return type(value) is int and 0 < value < 1 << 62


def _is_positive(value: object) -> bool:
    """Return whether a value is a finite number above 0. No comparison holds for what is no number."""
    return type(value) in (int, float) and 0 < value < 1e300


def _check_heads(config: ModelConfig) -> None:
    """Raise ValueError where a config's heads do not fit together, or RoPE would need a giant table for them."""
    # 1. Share key/value heads evenly among the query heads. GPT-2 does not know how to share, and cuts evenly.
    c, rule = config, f"a divisor of num_heads {config.num_heads}"
    _check(c.num_heads % c.num_kv_heads == 0, "num_kv_heads", c.num_kv_heads, rule)
    plain = c.family == "llama" or (c.num_heads == c.num_kv_heads and c.num_heads * c.head_dim == c.d_model)
    _check(plain, "num_heads", c.num_heads, f"a cut of d_model {c.d_model} into equal heads, as in GPT-2")

    # 2. Turn pairs, and bound the one size that no tensor has.
    _check(c.head_dim % 2 == 0 or c.family == "gpt2", "head_dim", c.head_dim, "even, because RoPE turns pairs")
    fits = 4 * c.max_seq_len * c.head_dim <= ROPE_TABLE_BYTES
    rule = f"small enough for a table of angles within {ROPE_TABLE_BYTES >> 30} GiB: write the length you need"
    _check(fits, "max_seq_len", c.max_seq_len, rule)


def _check_scaling(scaling: object) -> None:
    """Raise ValueError where the scaling of RoPE is of an unknown kind, or lacks a number that it needs."""
    # 1. Know the kind.
    if scaling is None:
        return
    kind = scaling.get("rope_type") if isinstance(scaling, dict) else None
    known = isinstance(kind, str) and kind in ROPE_SCALING_FIELDS
    _check(known, "rope_scaling", scaling, f"of rope_type {' or '.join(ROPE_SCALING_FIELDS)}")

    # 2. Check its numbers: angles are divided by them, and by the width between Llama's two limits.
    for name in ROPE_SCALING_FIELDS[kind]:
        _check(_is_positive(scaling.get(name)), f"rope_scaling {name}", scaling.get(name), "a finite number above 0")
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        _check(low < high, "rope_scaling low_freq_factor", low, f"below high_freq_factor {high}")


def read_config(folder: str | Path) -> ModelConfig:
    """Return the config of a Hugging Face model folder, from its `config.json` and `generation_config.json`.

    Raises FileNotFoundError where there is no config.json, and ValueError in one line where it is broken or describes
    no model that the engine computes.
    """
    # 1. Read the sizes.
    path = Path(folder) / "config.json"
    fields = read_object(path)
    try:
        config = config_from_hf(fields)
    except ValueError as error:
        raise ValueError(f"{path} describes no model that can be run here: {error}") from None

    # 2. Ask where the model stops. The file about generation counts first, and need not be there.
    generation = path.with_name("generation_config.json")
    ends = _stop_ids(read_object(generation)) if generation.is_file() else ()
    return dataclasses.replace(config, eos_ids=ends or config.eos_ids)


def read_object(path: Path) -> dict:
    """Return the JSON object in a file.

    Raises FileNotFoundError where there is no file, and ValueError naming it where it holds anything else.
    """
    # 1. Read it. What is nested without end exhausts the reader, and is no file of ours.
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that holds a whole model")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): {REMEDY}") from None

    # 2. Refuse a list or a number: it has no fields to ask for.
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: {REMEDY}")
    return content


def config_from_hf(fields: dict) -> ModelConfig:
    """Return the config that the fields of a `config.json` describe, in today's spelling or an older one.

    Raises ValueError for a family that the engine does not know, an impossible value, or a field that asks for what
    the engine does not compute: all shapes would fit, and every answer would be wrong.
    """
    # 1. Refuse foreign architectures by name, before their fields confuse anyone.
    family = fields.get("model_type")
    known = isinstance(family, str) and family in DEFAULTS
    _check(known, "model_type", family, f"one of {', '.join(DEFAULTS)}")
    for name, value in ONLY_VALUES.items():
        _check(fields.get(name) in (value, None), name, fields.get(name), f"{value}: no other way is known here")

    # 2. Fill in what is left out. Null is a value of its own: a Mistral's window that is null is none.
    given = LATER_FIELDS | DEFAULTS[family] | fields
    names = GPT2_NAMES if family == "gpt2" else LLAMA_NAMES
    for name in names.values():
        _check(name in given, name, "missing", "given in config.json")
    sizes = {ours: given[theirs] for ours, theirs in names.items()} | {"eos_ids": _stop_ids(given)}

    # 3. Add what GPT-2 implies: a hidden layer of four times the width, if its file does not say otherwise.
    if family == "gpt2":
        if sizes["d_ff"] is None and _is_size(given["n_embd"]):
            sizes["d_ff"] = 4 * given["n_embd"]
        bend = _activation(given.get("activation_function", "gelu_new"))
        return ModelConfig("gpt2", **sizes, activation=bend, qkv_bias=True)

    # 4. Add what the others imply: no file of a Qwen 2 says that it has biases.
    switches = {"qkv_bias": family == "qwen2", "qk_norm": family == "qwen3", "sliding_window": _window(given)}
    theta, scaling = _rotation(given)
    bend = _activation(given.get("hidden_act", "silu"))
    return ModelConfig("llama", **sizes, **switches, rope_theta=theta, rope_scaling=scaling, activation=bend)


def _stop_ids(fields: dict) -> tuple[int, ...]:
    """Return the ids that end a text, of which a file may give none, one or several."""
    ends = fields.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    for end in ends:
        _check(type(end) is int and end >= 0, "eos_token_id", end, "a token id, from 0 on")
    return tuple(ends)


def _activation(name: object) -> str:
    """Return our name for the bend inside the feed-forward network."""
    known = isinstance(name, str) and name in ACTIVATIONS
    _check(known, "the activation", name, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _rotation(given: dict) -> tuple[object, dict | None]:
    """Return the base of RoPE and its scaling, None where there is none, from whichever spelling is there.

    `rope_parameters` holds both since Transformers 5; before, there were `rope_theta` and `rope_scaling`, and in the
    oldest files the kind is called `type`.
    """
    # 1. Find the table. One that holds tables turns some layers otherwise than others.
    table = given.get("rope_scaling") or given.get("rope_parameters") or {}
    flat = isinstance(table, dict) and not any(isinstance(value, dict) for value in table.values())
    _check(flat, "the rotation", table, "one table for all layers")
    _check(table.get("partial_rotary_factor", 1) == 1, "partial_rotary_factor", table, "1, a turn of the whole head")

    # 2. Read base and kind. A file from before the base could be chosen has the base of the first Llama.
    theta = table.get("rope_theta", given.get("rope_theta", 10000.0))
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return theta, None

    # 3. Keep the numbers that this kind needs. The length of the first training may stand outside the table, and
    # where it stands nowhere, it is the context itself.
    length = "original_max_position_embeddings"
    table = {length: given["max_position_embeddings"]} | table | {n: given[n] for n in (length,) if n in given}
    needed = ROPE_SCALING_FIELDS.get(kind, ()) if isinstance(kind, str) else ()
    return theta, {"rope_type": kind} | {name: table[name] for name in needed if name in table}


def _window(given: dict) -> object:
    """Return how many tokens all layers look back; None where they see everything.

    A Llama has none, whatever its file says, and a Mistral's is for all layers. A Qwen uses its window only where
    `use_sliding_window` says so, and from layer `max_window_layers` on, or in those that `layer_types` names.
    """
    # 1. Answer for the families without a choice.
    if given["model_type"] in ("llama", "mistral"):
        return given["sliding_window"] if given["model_type"] == "mistral" else None
    window = given["sliding_window"] if given["use_sliding_window"] else None

    # 2. Work out what the layers do from the two numbers.
    layers, first, listed = given["num_hidden_layers"], given["max_window_layers"], given.get("layer_types")
    _check(type(first) is int, "max_window_layers", first, "a whole number")
    _check(_is_size(layers), "num_hidden_layers", layers, "a whole number above 0")
    kinds = {"full"} if window is None or first >= layers else {"sliding"} if first <= 0 else {"full", "sliding"}

    # 3. Let an explicit list speak in their place. Refuse a mixture: all layers are computed alike here.
    if listed is not None:
        kinds = {str(kind).removesuffix("_attention") for kind in (listed if isinstance(listed, list) else [listed])}
    alike = kinds == {"full"} or (kinds == {"sliding"} and window is not None)
    _check(alike, "the kind of the layers", sorted(kinds), "full for all, or sliding for all with a sliding_window")
    return window if kinds == {"sliding"} else None


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the shape of every tensor of such a model, from the bottom up.

    One at a time: a config that asks for a billion layers costs nothing until somebody takes them all. A head that is
    tied to the embedding is not listed, as it is the embedding again. A matrix of a Llama has one row for each number
    that it puts out; GPT-2's are stored the other way round.
    """
    # 1. Choose the tower.
    head = [("lm_head.weight", (config.vocab_size, config.d_model))]
    first, layer, block, last = _gpt2_shapes(config) if config.family == "gpt2" else _llama_shapes(config)

    # 2. Climb it. The blocks are all alike.
    yield from first.items()
    for i in range(config.num_layers):
        yield from ((f"{layer}.{i}.{name}", shape) for name, shape in block.items())
    yield from last.items()
    yield from [] if config.tie_embeddings else head


def _llama_shapes(config: ModelConfig) -> tuple[dict, str, dict, dict]:
    """Return what stands below the blocks of a Llama, the name before a block's number, one block, and the top."""
    # 1. Work out what one block holds.
    c, queries, keys = config, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    block = {
        "input_layernorm.weight": (c.d_model,), "self_attn.q_proj.weight": (queries, c.d_model),
        "self_attn.k_proj.weight": (keys, c.d_model), "self_attn.v_proj.weight": (keys, c.d_model),
        "self_attn.o_proj.weight": (c.d_model, queries), "post_attention_layernorm.weight": (c.d_model,),
        "mlp.gate_proj.weight": (c.d_ff, c.d_model), "mlp.up_proj.weight": (c.d_ff, c.d_model),
        "mlp.down_proj.weight": (c.d_model, c.d_ff),
    }

    # 2. Add what the Qwens have more.
    if c.qkv_bias:
        block |= {f"self_attn.{name}_proj.bias": (queries if name == "q" else keys,) for name in "qkv"}
    if c.qk_norm:
        block |= {f"self_attn.{name}_norm.weight": (c.head_dim,) for name in "qk"}

    # 3. Add the table below and the norm on top.
    below = {"model.embed_tokens.weight": (c.vocab_size, c.d_model)}
    return below, "model.layers", block, {"model.norm.weight": (c.d_model,)}


def _gpt2_shapes(config: ModelConfig) -> tuple[dict, str, dict, dict]:
    """Return the same for a GPT-2, whose matrices have one row for each number that goes in."""
    # 1. Work out one block. Queries, keys and values come from one matrix.
    c, d = config, config.d_model
    matrices = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, c.d_ff), "mlp.c_proj": (c.d_ff, d)}
    block = {f"{norm}.{kind}": (d,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    block |= {f"{name}.weight": shape for name, shape in matrices.items()}
    block |= {f"{name}.bias": shape[1:] for name, shape in matrices.items()}

    # 2. Add the two tables below, one of them for positions, and the norm on top.
    below = {"wte.weight": (c.vocab_size, d), "wpe.weight": (c.max_seq_len, d)}
    return below, "h", block, {"ln_f.weight": (d,), "ln_f.bias": (d,)}
