"""Families: how Llama, Mistral, Qwen 2 and Qwen 3 spell the sizes and the tensors of one and the same GPT.

    our GPTConfig            their config.json                  our tensor and theirs
    d_model      128         "hidden_size": 128                 blocks.3.attention.query.weight
    num_heads    4           "num_attention_heads": 4           model.layers.3.self_attn.q_proj.weight

The names are exchanged one to one, and nothing is reordered, because chapter 4 splits RoPE's pairs as these
families do. What takes care is what a file does *not* say: a field left out means what Transformers takes
then, which differs from family to family; and one meaning had several spellings over the years. A field read
otherwise than it was meant leaves every shape in order while the model talks nonsense, so what is not
understood is refused. Nothing here needs PyTorch; `ch07_pretrained.py` moves the numbers.
"""

from collections.abc import Iterator

from chapters.ch07_config import ROPE_SCALING_FIELDS, GPTConfig

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

# What Transformers takes for a field that config.json leaves out: first what all families share. Sizes are
# seldom left out; what is, are the switches and bases that were invented after a file was written.
_SHARED = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None,
    "head_dim": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_dropout": 0.0,
    "sliding_window": 4096,
}

# Both Qwens name a window, and beside it whether it is used, and from which layer on.
_QWEN = {
    "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768,
    "num_key_value_heads": 32, "use_sliding_window": False, "max_window_layers": 28,
}

# Then what each family has of its own. A test holds them against Transformers' classes, field by field.
DEFAULTS = {
    "llama": _SHARED | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": _SHARED | {
        "vocab_size": 32000, "intermediate_size": 14336, "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
    },
    "qwen2": _SHARED | _QWEN,
    "qwen3": _SHARED | _QWEN | {"head_dim": 128},
}

# Fields that change what is computed, and the values that a GPT computes. Weights that were squeezed into fewer
# bits, in any of a dozen ways, need the program that squeezed them.
_KNOWN_VALUES = {
    "hidden_act": ("silu", "swish"), "partial_rotary_factor": (1, None), "quantization_config": (None,),
}


def family_of(config: GPTConfig) -> str:
    """Return the published family that has these switches: llama, mistral, qwen2 or qwen3.

        llama     the plain tower of chapters 3 to 7
        mistral   looks back one sliding window in each layer
        qwen2     adds a bias to queries, keys and values; a window is possible
        qwen3     levels the length of queries and keys with a norm; a window is possible

    Raises ValueError where none has them: such a folder would open nowhere else.
    """
    # 1. Refuse what can be trained and used here, but has no name.
    if config.qkv_bias and config.qk_norm:
        raise ValueError("qkv_bias and qk_norm are both on: no published family has both, switch one off")

    # 2. Tell the others apart. Without either switch, a window makes the difference.
    if config.qkv_bias:
        return "qwen2"
    if config.qk_norm:
        return "qwen3"
    return "llama" if config.sliding_window is None else "mistral"


def to_hf_name(name: str) -> str:
    """Return Hugging Face's name for one of our tensors, as `GPT.state_dict` lists them.

        blocks.3.attention.query.weight  ->  model.layers.3.self_attn.q_proj.weight
    """
    if name in TENSOR_NAMES:
        return TENSOR_NAMES[name]
    _, i, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    return f"model.layers.{i}.{BLOCK_NAMES[part]}.{kind}"


def tensor_shapes(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield our name and the shape of every tensor of such a model, from the bottom up, without building it.

    One at a time: a config that asks for a million layers costs nothing until somebody takes them all.
    A head that is tied to the embedding is not listed, as it is the embedding again.
    """
    # 1. Work out what the tensors of one block measure. A matrix has one row for each number it puts out, and
    # one column for each that it takes in.
    c, queries, keys = config, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    block = {
        "attention_norm.weight": (c.d_model,), "attention.query.weight": (queries, c.d_model),
        "attention.key.weight": (keys, c.d_model), "attention.value.weight": (keys, c.d_model),
        "attention.output.weight": (c.d_model, queries), "feed_forward_norm.weight": (c.d_model,),
        "feed_forward.gate.weight": (c.d_ff, c.d_model), "feed_forward.up.weight": (c.d_ff, c.d_model),
        "feed_forward.down.weight": (c.d_model, c.d_ff),
    }

    # 2. Add what the Qwens have more: what is added to each query, key and value, and what each number of a
    # head is scaled by once its length is levelled.
    if c.qkv_bias:
        block |= {"attention.query.bias": (queries,), "attention.key.bias": (keys,), "attention.value.bias": (keys,)}
    if c.qk_norm:
        block |= {f"attention.{name}_norm.weight": (c.head_dim,) for name in ("query", "key")}

    # 3. Climb the tower, one block after the other; they are all alike.
    yield "token_embedding.weight", (c.vocab_size, c.d_model)
    for i in range(c.num_layers):
        yield from ((f"blocks.{i}.{name}", shape) for name, shape in block.items())
    yield "final_norm.weight", (c.d_model,)
    yield from [] if c.tie_embeddings else [("lm_head.weight", (c.vocab_size, c.d_model))]


def config_to_hf(config: GPTConfig, dtype: str) -> dict:
    """Return the contents of `config.json` for a model whose numbers are saved as `dtype`, such as "float32".

    Raises ValueError when no published family has this combination of fields.
    """
    # 1. Translate the fields, and say which class of Transformers shall open the folder. "silu" is the bend
    # inside SwiGLU.
    family = family_of(config)
    hf = {"architectures": [FAMILIES[family]], "model_type": family, "hidden_act": "silu"}
    hf |= {theirs: getattr(config, ours) for ours, theirs in CONFIG_NAMES.items()}

    # 2. Tell a Qwen that its window, if it has one, is used, and from the first layer on.
    if family in ("qwen2", "qwen3"):
        hf |= {"use_sliding_window": config.sliding_window is not None, "max_window_layers": 0}

    # 3. Write the rotation in the new spelling and in the old one. A reader that knows neither would take its
    # own default, and turn by other angles than in training.
    scaling = config.rope_scaling or {"rope_type": "default"}
    hf |= {"rope_parameters": scaling | {"rope_theta": config.rope_theta}}
    hf |= {"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling}
    return hf | {"dtype": dtype, "initializer_range": 0.02, "use_cache": True}


def config_from_hf(hf: dict) -> GPTConfig:
    """Return our `GPTConfig` for the contents of a `config.json`, in old or new spelling.

    A field that is left out means what Transformers takes it to mean. Raises ValueError for a family not
    known here, an impossible value, or a field that asks for what GPT does not compute.
    """
    # 1. Refuse foreign architectures by name, before their tensors confuse anyone.
    family = hf.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"config.json says model_type {family!r}: known here are {', '.join(FAMILIES)}")

    # 2. Refuse what would be computed otherwise there: all shapes would fit, and every answer be wrong.
    for field, known in _KNOWN_VALUES.items():
        if hf.get(field, known[0]) not in known:
            raise ValueError(f"config.json says {field} {hf[field]!r}: only {known[0]!r} is known here")

    # 3. Translate. Null is a value of its own, and not the same as leaving a field out: a Mistral's window
    # that is null is none, and one that is not there has 4096 tokens.
    given = DEFAULTS[family] | hf
    fields = {ours: given[theirs] for ours, theirs in CONFIG_NAMES.items()}
    theta, scaling = _rotation(given)

    # 4. Add what a family implies without a field: no file of a Qwen 2 says that it has biases.
    fields["sliding_window"] = _window(given)
    switches = {"qkv_bias": family == "qwen2", "qk_norm": family == "qwen3"}
    return GPTConfig(**fields, **switches, rope_theta=theta, rope_scaling=scaling)


def _rotation(given: dict) -> tuple[float, dict | None]:
    """Return the base of RoPE and its scaling, None where there is none, from whichever spelling is there.

    `rope_parameters` holds both since Transformers 5; before, there were `rope_theta` and `rope_scaling`,
    and in the oldest files the kind of scaling is called `type`. Of two kinds, `rope_type` counts; of two
    tables, `rope_scaling`: so does Transformers decide.
    """
    # 1. Find the table, and refuse one that turns some layers otherwise than others.
    table = given.get("rope_scaling") or given.get("rope_parameters") or {}
    odd = "not an object" if not isinstance(table, dict) else None
    odd = odd or next((f"{name} {value}" for name, value in table.items() if isinstance(value, dict)), None)
    if odd or table.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"config.json says {odd or table} for the rotation: only one for all layers is known here")

    # 2. Read base and kind. A file from before the base could be chosen has the base of the first Llama.
    theta = table.get("rope_theta", given.get("rope_theta", 10000.0))
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return theta, None

    # 3. Keep the numbers that this kind needs. The length that a Llama was first trained on may stand outside
    # the table; where it stands nowhere, it is the context itself.
    length = "original_max_position_embeddings"
    table = {length: given["max_position_embeddings"]} | table | {n: given[n] for n in (length,) if n in given}
    needed = ROPE_SCALING_FIELDS.get(kind, ()) if isinstance(kind, str) else ()
    return theta, {"rope_type": kind} | {name: table[name] for name in sorted(needed) if name in table}


def _window(given: dict) -> int | None:
    """Return how many tokens all layers look back; None where they see everything.

    Llama has no window, whatever its file says; Mistral's is for all layers. A Qwen uses one only where
    `use_sliding_window` says so, in the layers from `max_window_layers` on or in those that `layer_types`
    names. Raises ValueError for a window in some of the layers only.
    """
    # 1. Answer for the families without a choice. A window in a Llama's file is a leftover of its making, and
    # Transformers passes over it too.
    if given["model_type"] in ("llama", "mistral"):
        return given["sliding_window"] if given["model_type"] == "mistral" else None
    window = given["sliding_window"] if given["use_sliding_window"] else None

    # 2. List what the layers do. A number that is none fails here or, for the layers, in GPTConfig.
    layers, first = given["num_hidden_layers"], given["max_window_layers"]
    if type(layers) is not int or type(first) is not int:
        raise ValueError(f"num_hidden_layers {layers!r}, max_window_layers {first!r}: both must be whole numbers")
    kinds = {"full"} if window is None or first >= layers else {"sliding"} if first <= 0 else {"full", "sliding"}

    # 3. Let an explicit list speak in their place, and refuse a mixture.
    if (listed := given.get("layer_types")) is not None:
        kinds = {str(kind).removesuffix("_attention") for kind in (listed if isinstance(listed, list) else [listed])}
    if kinds not in ({"full"}, {"sliding"}) or (window is None and "sliding" in kinds):
        wanted = f"{' and '.join(sorted(kinds))} layers, sliding_window {window}"
        raise ValueError(f"config.json asks for {wanted}: one kind for all is known here")
    return window if kinds == {"sliding"} else None
