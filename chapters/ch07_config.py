"""The sizes of a GPT, and all that follows from them before anything is built.

`GPTConfig` says how large every part is, `PRESETS` holds four sizes, and the counting functions
predict parameters, work and memory. Nothing here needs PyTorch, so `main.py` can read its command
line and answer questions about a model in an instant. Chapter 7 builds the model from it.
"""

import dataclasses


# What each kind of context scaling (chapter 4) must say about itself.
ROPE_SCALING_FIELDS = {
    "default": set(), "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """Every size and switch of a GPT; it checks itself, so an impossible model is never built.

    `num_kv_heads` None means as many as `num_heads`; `head_dim` None means d_model / num_heads.
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
        # 1. Check sizes first: the rules below divide by them. None stands for "as the other fields say".
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_seq_len"):
            size, open_to_choice = getattr(self, name), name in ("num_kv_heads", "head_dim")
            if not (size is None and open_to_choice) and (type(size) is not int or size < 1):
                raise ValueError(f"{name} is {size!r}: it must be a whole number above 0")

        # 2. Fill in what follows from other fields. A frozen dataclass wants it said this way.
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)

        # 3. Check what must divide.
        if self.head_dim is None:
            if self.d_model % self.num_heads:
                raise ValueError(
                    f"d_model {self.d_model} is not divisible by num_heads {self.num_heads}: change one or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        # 4. Name the one rule that is broken, and what would mend it.
        rules = {
            f"head_dim {self.head_dim} is odd: RoPE turns pairs, choose an even one": self.head_dim % 2 == 0,
            f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}: change one":
                self.num_heads % self.num_kv_heads == 0,
            f"norm_eps {self.norm_eps} is not above 0: 1e-5 is a usual value": self.norm_eps > 0,
            f"rope_theta {self.rope_theta} is not above 0: 10000.0 is a usual value": self.rope_theta > 0,
            f"dropout {self.dropout} is outside [0, 1): 0.1 is a usual value": 0 <= self.dropout < 1,
            f"sliding_window {self.sliding_window} is below 1: leave it out for full attention":
                self.sliding_window is None or self.sliding_window > 0,
        }
        for message, holds in rules.items():
            if not holds:
                raise ValueError(message)
        # 5. Check the scaling of positions, which has fields of its own.
        kind = (self.rope_scaling or {"rope_type": "default"}).get("rope_type")
        missing = sorted(ROPE_SCALING_FIELDS.get(kind, set()) - (self.rope_scaling or {}).keys())
        if kind not in ROPE_SCALING_FIELDS or missing:
            raise ValueError(f"rope_scaling {self.rope_scaling}: rope_type must be one of {', '.join(ROPE_SCALING_FIELDS)}"
                             + (f", and {kind} needs {', '.join(missing)}" if missing else ""))

    def resized(self, **changes) -> "GPTConfig":
        """Return this config with some fields changed, and those that follow from them worked out anew.

        `dataclasses.replace` would keep the old head size under a new width.
        """
        # 1. Forget what was derived, so that it is derived again; what was chosen by hand stays.
        derived = {}
        if self.head_dim * self.num_heads == self.d_model:
            derived["head_dim"] = None
        if self.num_kv_heads == self.num_heads:
            derived["num_kv_heads"] = None
        return dataclasses.replace(self, **derived | changes)


# Four sizes. The vocabularies of the first two are small because a 50 257-row table would cost a tiny
# model most of its parameters and time.
PRESETS = {
    "nano": GPTConfig(vocab_size=1024, d_model=128, num_layers=4, num_heads=4, d_ff=384, max_seq_len=256),
    "tiny": GPTConfig(vocab_size=1024, d_model=256, num_layers=4, num_heads=4, d_ff=1024, max_seq_len=256),
    "small": GPTConfig(vocab_size=8192, d_model=512, num_layers=8, num_heads=8, d_ff=2048, max_seq_len=512),
    "base": GPTConfig(vocab_size=50257, d_model=768, num_layers=12, num_heads=12, d_ff=3072, max_seq_len=1024),
}


def count_parameters(config: GPTConfig) -> dict[str, int]:
    """Return the number of trainable numbers in each part of the model, and their total.

    From the sizes alone, so that the largest model can be counted on the smallest machine.
    """
    # 1. Count one block: four attention matrices, three feed-forward matrices, two norms.
    c, q_dim, kv_dim = config, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = c.d_model * (q_dim + 2 * kv_dim) + q_dim * c.d_model
    attention += (q_dim + 2 * kv_dim) * c.qkv_bias + 2 * c.head_dim * c.qk_norm
    feed_forward = 3 * c.d_model * c.d_ff

    # 2. Add up. A tied output head costs nothing: it is the embedding again.
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
    each (half of it is masked but computed by a plain kernel). The backward pass costs twice the forward one.

    Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1.
    """
    parts = count_parameters(dataclasses.replace(config, qkv_bias=False, qk_norm=False))
    matrices = parts["attention"] + parts["feed_forward"] + config.vocab_size * config.d_model
    attention = 2 * 2 * config.num_layers * context * config.num_heads * config.head_dim
    forward = 2 * matrices + attention
    return {"forward": forward, "training": 3 * forward}


def memory_bytes(config: GPTConfig, context: int) -> dict[str, int]:
    """Return the bytes that running and training need, before activations.

    Running: 2 bytes a weight in bfloat16, and for each token of context a key and a value per layer.
    Training in float32: weight, gradient and Adam's two averages, 4 bytes each.
    """
    total = count_parameters(config)["total"]
    kv_cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * context * 2
    return {"weights_bf16": 2 * total, "kv_cache_bf16": kv_cache, "training_fp32": 16 * total}
