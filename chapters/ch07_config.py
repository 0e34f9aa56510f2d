"""The sizes of a GPT, and all that follows from them before anything is built.

`GPTConfig` says how large every part is, `PRESETS` holds four sizes, and the counting functions
predict parameters, work and memory. Nothing here needs PyTorch, so `main.py` can read its command
line and answer questions about a model in an instant. Chapter 7 builds the model from it.
"""

import dataclasses
import math

# Dice can begin at any number below this one.
SEEDS = 1 << 63

# What each kind of context scaling (chapter 4) must say about itself.
ROPE_SCALING_FIELDS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def check_number(name: str, value: object) -> None:
    """Raise ValueError where a value is no finite number, or a whole one that tensors cannot hold.

    To Python, True is a number too, and so is nan, which no comparison ever finds wrong; here they are not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not -(2**63) < value < 2**63:
        if not isinstance(value, float) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}: it must be a finite number of at most 64 bits")


def check_rope_scaling(scaling: object) -> None:
    """Raise ValueError where the scaling of positions lacks a number, or has one that makes no sense.

    A number that is missing would otherwise show only once the angles are computed.
    """
    # 1. Know the kind, and what it needs.
    kind = scaling.get("rope_type", "default") if isinstance(scaling, dict) else None
    needed = ROPE_SCALING_FIELDS.get(kind) if isinstance(kind, str) else None
    missing = sorted((needed or set()) - scaling.keys()) if isinstance(scaling, dict) else []
    if needed is None or missing:
        raise ValueError(
            f"rope_scaling {scaling}: rope_type must be one of {', '.join(ROPE_SCALING_FIELDS)}"
            + (f", and {kind} needs {', '.join(missing)}" if missing else "")
        )

    # 2. Check the numbers: the angles are divided by them.
    for name in needed:
        check_number(f"rope_scaling {name}", scaling[name])
        if scaling[name] <= 0:
            raise ValueError(f"rope_scaling {name} is {scaling[name]}: it must be above 0")

    # 3. Check that the band between Llama's two limits has a width. It is divided by, too.
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ValueError(f"rope_scaling {scaling}: low_freq_factor must be below high_freq_factor")


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """Every size and switch of a GPT; it checks itself, so an impossible model is never built.

        vocab_size                how many different tokens there are
        d_model                   numbers in the vector that stands for one token
        num_layers                blocks in the tower
        num_heads, num_kv_heads   query heads, and the key/value heads that they share; None: as many
        head_dim                  numbers in a head's vector; None: d_model / num_heads
        d_ff                      numbers in the hidden layer of a feed-forward network
        max_seq_len               the longest text, in tokens: the context
        rope_theta, rope_scaling  how fast the clock faces of chapter 4 turn
        norm_eps                  what keeps RMSNorm from dividing by zero
        tie_embeddings            whether the output head is the embedding table again
        qkv_bias, qk_norm         what Qwen 2 and Qwen 3 add to attention (chapter 5)
        sliding_window            how many tokens attention looks back, itself included; None: all
        dropout                   share of numbers set to zero, at random, while training

    Raises ValueError naming the field, its value and the rule.
    """

    vocab_size: int = 50257
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    d_ff: int = 1024
    max_seq_len: int = 1024
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    dropout: float = 0.0

    def __post_init__(self):
        # 1. Check sizes first: the rules below divide by them. None stands for "as the other fields say", and
        # for no window.
        for name in (
            "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff",
            "max_seq_len", "sliding_window",
        ):
            size, may_be_none = getattr(self, name), name in ("num_kv_heads", "head_dim", "sliding_window")
            if not (size is None and may_be_none) and (type(size) is not int or size < 1):
                raise ValueError(f"{name} is {size!r}: it must be a whole number above 0")

        # 2. Check the kinds of the others. They may come from anybody's config.json, which can hold texts too.
        for name in ("tie_embeddings", "qkv_bias", "qk_norm"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be true or false")
        for name in ("norm_eps", "rope_theta", "dropout"):
            check_number(name, getattr(self, name))

        # 3. Fill in what follows from other fields. A frozen dataclass wants it said this way.
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)

        # 4. Cut a token's vector into equal heads. A remainder would be numbers that no head ever sees.
        if self.head_dim is None:
            if self.d_model % self.num_heads:
                raise ValueError(
                    f"d_model {self.d_model} is not divisible by num_heads {self.num_heads}: "
                    "change one or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)

        # 5. Name the one rule that is broken, and what would mend it.
        rules = {
            f"head_dim {self.head_dim} is odd: RoPE turns pairs, choose an even one": self.head_dim % 2 == 0,
            f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}: change one":
                self.num_heads % self.num_kv_heads == 0,
            f"norm_eps {self.norm_eps} is not above 0: 1e-5 is a usual value": self.norm_eps > 0,
            f"rope_theta {self.rope_theta} is not above 0: 10000.0 is a usual value": self.rope_theta > 0,
            f"dropout {self.dropout} is outside [0, 1): 0.1 is a usual value": 0 <= self.dropout < 1,
        }
        for message, holds in rules.items():
            if not holds:
                raise ValueError(message)

        # 6. Check the scaling of positions, which has fields of its own.
        if self.rope_scaling is not None:
            check_rope_scaling(self.rope_scaling)

    def resized(self, **changes) -> "GPTConfig":
        """Return this config with some fields changed, and those that follow from them worked out anew.

        `dataclasses.replace` would keep the old head size under a new width.
        Raises ValueError, as GPTConfig does, when the new sizes do not fit together.
        """
        # 1. Forget what follows from other fields, so that it is worked out again.
        derived = {}
        if self.head_dim * self.num_heads == self.d_model:
            derived["head_dim"] = None

        # 2. Forget the key/value heads likewise. Fewer of them than heads were chosen by hand, and stay.
        if self.num_kv_heads == self.num_heads:
            derived["num_kv_heads"] = None
        return dataclasses.replace(self, **derived | changes)


# Four sizes. The vocabularies of the first two are small because a 50 257-row table would cost a tiny
# model most of its parameters and time. "base" is as large as the smallest GPT-2; its count differs,
# because SwiGLU has three matrices where GPT-2 has two, and positions are not learnt.
PRESETS = {
    "nano": GPTConfig(vocab_size=1536, d_model=128, num_layers=4, num_heads=4, d_ff=384, max_seq_len=160),
    "tiny": GPTConfig(vocab_size=1536, d_model=256, num_layers=4, num_heads=4, d_ff=1024, max_seq_len=160),
    "small": GPTConfig(vocab_size=8192, d_model=512, num_layers=8, num_heads=8, d_ff=2048, max_seq_len=512),
    "base": GPTConfig(
        vocab_size=50257, d_model=768, num_layers=12, num_heads=12, d_ff=3072, max_seq_len=1024
    ),
}


def count_parameters(config: GPTConfig) -> dict[str, int]:
    """Return the number of trainable numbers in each part of the model, and their total.

    From the sizes alone, so that the largest model can be counted on the smallest machine. The keys are
    embedding, attention, feed_forward, norms, output_head and total.
    """
    # 1. Count one block: four attention matrices, three feed-forward matrices. Shared key/value heads
    # make two of the four smaller; biases and norms of queries and keys hardly count.
    c, q_dim, kv_dim = config, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = c.d_model * (q_dim + 2 * kv_dim) + q_dim * c.d_model
    attention += (q_dim + 2 * kv_dim) * c.qkv_bias + 2 * c.head_dim * c.qk_norm
    feed_forward = 3 * c.d_model * c.d_ff

    # 2. Add up: two norms a block and one on top. A tied head costs nothing: it is the embedding again.
    parts = {
        "embedding": c.vocab_size * c.d_model,
        "attention": c.num_layers * attention,
        "feed_forward": c.num_layers * feed_forward,
        "norms": (2 * c.num_layers + 1) * c.d_model,
        "output_head": 0 if c.tie_embeddings else c.vocab_size * c.d_model,
    }
    return parts | {"total": sum(parts.values())}


def flops_per_token(config: GPTConfig, context: int) -> dict[str, int]:
    """Return the multiply-adds, counted as two operations, that one token costs forward and in training.

    Every number of a matrix is used once per token, and scores and mixing cost 2·`context`·d per layer
    each (half of it is masked but computed by a plain kernel). The backward pass costs twice the forward
    one: it works out how the loss depends on the weights, and how it depends on what came in.

    Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1.
    """
    # 1. Leave out biases and norms, which no matrix product uses. The head costs its work even when it is
    # tied and costs no memory.
    parts = count_parameters(dataclasses.replace(config, qkv_bias=False, qk_norm=False))
    matrices = parts["attention"] + parts["feed_forward"] + config.vocab_size * config.d_model

    # 2. Add what attention does between tokens: the only cost that grows with the length of the text.
    attention = 2 * 2 * config.num_layers * context * config.num_heads * config.head_dim
    forward = 2 * matrices + attention
    return {"forward": forward, "training": 3 * forward}


def memory_bytes(config: GPTConfig, context: int) -> dict[str, int]:
    """Return the bytes that running and training need, before activations.

    Activations are what a forward pass computes on its way; they grow with the batch and are not counted.
    Running: 2 bytes a weight in bfloat16, and for each token of context a key and a value per layer.
    Training in float32: weight, gradient and Adam's two averages, 4 bytes each.
    """
    # 1. Count one cache for one text. Fewer key/value heads make it smaller; that is what they are for.
    total = count_parameters(config)["total"]
    kv_cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * context * 2
    return {"weights_bf16": 2 * total, "kv_cache_bf16": kv_cache, "training_fp32": 16 * total}
