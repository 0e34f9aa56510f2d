"""GGUF: the model and its tokenizer in one file, for llama.cpp and the programs that are built on it.

    settings    sizes, rotation, tokens, merges: all that the other side must know, by name
    tensors     the numbers; matrices as F16 (2 bytes each) or Q8_0 (about 1 byte each), vectors as F32

A matrix in Q8_0 is cut into blocks of 32 numbers. Each block keeps one scale and 32 whole numbers:

    scale = largest size in the block / 127          number ≈ scale · whole number from -127 to 127

One thing is turned round. llama.cpp pairs RoPE's numbers 2i and 2i + 1 in a Llama, where chapter 4 and Hugging Face
pair i and i + D/2; so the rows of its query and key matrices change places. For a Qwen it pairs as we do, and
nothing moves. A mistake here shows in no shape and in no sum: tests compare logits.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from chapters.ch02_files import bytes_to_letters
from chapters.ch02_splitting import DIGITS_PATTERN, GPT2_PATTERN
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch02_writing import replacing
from chapters.ch04_positional_encoding import scaled_frequencies
from chapters.ch07_config import GPTConfig
from chapters.ch07_families import family_of, tensor_shapes
from chapters.ch07_gpt_model import GPT

# The rule by which Llama 3 and Qwen cut words; the two differ in how many digits stay together.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")

# The file does not hold such a rule, only the name under which llama.cpp has it built in.
SPLIT_NAMES = {
    GPT2_PATTERN: "gpt-2", DIGITS_PATTERN: "smollm", LLAMA3_PATTERN: "llama-bpe", QWEN_PATTERN: "qwen2",
}

# How the file calls our tensors: those outside the blocks, then the parts of a block.
OUTSIDE_NAMES = {"token_embedding": "token_embd", "final_norm": "output_norm", "lm_head": "output"}
BLOCK_NAMES = {
    "attention_norm": "attn_norm", "feed_forward_norm": "ffn_norm", "attention.query": "attn_q",
    "attention.key": "attn_k", "attention.value": "attn_v", "attention.output": "attn_output",
    "attention.query_norm": "attn_q_norm", "attention.key_norm": "attn_k_norm", "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up", "feed_forward.down": "ffn_down",
}

# The number formats of matrices, and how the file's head calls a file that is mostly in one of them.
KINDS = {"F16": gguf.LlamaFileType.MOSTLY_F16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def save_gguf(model: GPT, tokenizer: BPETokenizer, path: Path, kind: str = "F16") -> None:
    """Write a model and its tokenizer to a new GGUF file, which appears only when it is complete.

    `kind` is the number format of the matrices, "F16" or "Q8_0". Raises ValueError for a path that exists, and for
    a model or tokenizer that such a file cannot hold; OSError when the disk is full or the folder is closed.
    """
    # 1. Refuse before anything is written.
    if path.exists():
        raise ValueError(f"{path} exists: name a new file for --out, nothing is overwritten")
    if kind not in KINDS:
        raise ValueError(f"type {kind!r} is not known here: choose one of {', '.join(KINDS)}")
    family = architecture(model.config)
    words, state = tokenizer_settings(tokenizer, model.config.vocab_size), model.state_dict()

    # 2. Describe the model. The library writes to a path of its own opening, so it is given the unfinished file's.
    with replacing(path) as file:
        writer = gguf.GGUFWriter(file.name, family)
        add_sizes(writer, model.config)
        writer.add_file_type(KINDS[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

        # 3. Add the tokenizer, whose lists are long, and the numbers.
        for add, value in words.items():
            getattr(writer, f"add_{add}")(value)
        add_tensors(writer, model.config, state, kind)

        # 4. Write it all.
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def architecture(config: GPTConfig) -> str:
    """Return llama.cpp's name for such a model: llama, qwen2 or qwen3.

    A Mistral is a llama there. What that name means on the other side decides how the numbers are read, so a name
    that nearly fits would not do. Raises ValueError where it would be computed otherwise.
    """
    family = family_of(config).replace("mistral", "llama")
    kind = (config.rope_scaling or {}).get("rope_type", "default")
    if kind == "llama3" and family != "llama":
        raise ValueError(f"rope_scaling {kind!r} in a {family}: llama.cpp scales only a llama so, export another model")
    return family


def add_sizes(writer: gguf.GGUFWriter, config: GPTConfig) -> None:
    """Add the sizes of a model under the file's names for them, each with its family's name in front.

    llama.cpp has no sliding window for these families. While a text is no longer than the window, nobody can tell;
    so the window's length becomes the context.
    """
    # 1. Add what all models have.
    c = config
    sizes = {
        "vocab_size": c.vocab_size, "context_length": min(c.max_seq_len, c.sliding_window or c.max_seq_len),
        "embedding_length": c.d_model, "block_count": c.num_layers, "feed_forward_length": c.d_ff,
        "head_count": c.num_heads, "head_count_kv": c.num_kv_heads, "key_length": c.head_dim,
        "value_length": c.head_dim, "rope_dimension_count": c.head_dim, "rope_freq_base": c.rope_theta,
        "layer_norm_rms_eps": c.norm_eps,
    }
    for name, size in sizes.items():
        getattr(writer, f"add_{name}")(size)

    # 2. Add a linear scaling of positions; the bands of Llama 3 go in as a tensor.
    if (c.rope_scaling or {}).get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c.rope_scaling["factor"])


def tokenizer_settings(tokenizer: BPETokenizer, vocab_size: int) -> dict:
    """Return a tokenizer's settings by the file's names, for a model of `vocab_size` rows.

    llama.cpp does not join accents to their letters, as files of Qwen ask for: a text in which they stand apart gets
    other ids there. Raises ValueError for a kind, or a rule for words, that llama.cpp does not have built in.
    """
    # 1. Refuse what would give other ids there.
    if not isinstance(tokenizer, BPETokenizer):
        raise ValueError("this tokenizer is SentencePiece's: export a model with byte-level BPE, or use "
                         "llama.cpp's own convert_hf_to_gguf.py")
    if tokenizer.pattern not in SPLIT_NAMES:
        raise ValueError(f"split pattern {tokenizer.pattern!r} is not built into llama.cpp: train with GPT-2's rule")
    if tokenizer.vocab_size > vocab_size or len(tokenizer.start_ids) > 1:
        raise ValueError(f"{tokenizer.vocab_size} tokens, {len(tokenizer.start_ids)} before each text: the file holds "
                         f"{vocab_size} and 1, open the tokenizer that belongs to the model")

    # 2. List a text for each row. Special ones stand as they are, and rows without a token get a name.
    specials = {number: name for name, number in tokenizer.special_tokens.items()}
    texts = {number: bytes_to_letters(token) for number, token in tokenizer.vocab.items()} | specials
    kinds = dict.fromkeys(texts, gguf.TokenType.NORMAL) | dict.fromkeys(specials, gguf.TokenType.CONTROL)
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    types = [kinds.get(i, gguf.TokenType.UNUSED) for i in range(vocab_size)]

    # 3. Write a merge as two texts with a space between them; no byte is written as a space.
    merges = [" ".join(map(bytes_to_letters, pair)) for pair in tokenizer.merges]

    # 4. Say what a text begins with and where it ends, as far as it is known.
    words = {"tokenizer_model": "gpt2", "tokenizer_pre": SPLIT_NAMES[tokenizer.pattern], "token_list": tokens,
             "token_types": types, "token_merges": merges, "add_bos_token": bool(tokenizer.start_ids)}
    marks = [("bos_token_id", tokenizer.start_ids), ("eos_token_id", tokenizer.stop_ids)]
    return words | {name: ids[0] for name, ids in marks if ids}


def gguf_name(name: str) -> str:
    """Return the file's name for one of our tensors.

        blocks.3.attention.query.weight  ->  blk.3.attn_q.weight
    """
    part, kind = name.rsplit(".", 1)
    if part in OUTSIDE_NAMES:
        return f"{OUTSIDE_NAMES[part]}.{kind}"
    _, i, rest = part.split(".", 2)
    return f"blk.{i}.{BLOCK_NAMES[rest]}.{kind}"


def interleave(rows: Tensor, num_heads: int) -> Tensor:
    """Return a query or key matrix whose rows were half-split, with the two rows of each pair side by side.

    Within a head row i becomes row 2i, and its partner, i + D/2, row 2i + 1. Queries and keys are turned alike, so
    their dot products, which are all that attention asks for, stay what they were.

    Shapes: (H*D, C) -> (H*D, C), H = num_heads.
    """
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def add_tensors(writer: gguf.GGUFWriter, config: GPTConfig, state: dict[str, Tensor], kind: str) -> None:
    """Add every tensor, turned and rounded as the file wants it.

    A head that is tied to the embedding is left out, and llama.cpp then takes the embedding.
    Raises ValueError for a number that is too large for F16.
    """
    # 1. Turn queries and keys of a llama.
    heads = {"query": config.num_heads, "key": config.num_kv_heads} if architecture(config) == "llama" else {}
    for name, _ in tensor_shapes(config):
        rows, part = state[name].detach().float().cpu(), name.split(".")[-2]
        rows = interleave(rows, heads[part]) if part in heads else rows
        # 2. Round it.
        numbers, its_kind = rounded(rows.numpy(), kind)
        if its_kind == gguf.GGMLQuantizationType.F16 and not np.isfinite(numbers).all():
            raise ValueError(f"tensor {name!r} has a number above 65504, too large for F16: export as Q8_0")
        writer.add_tensor(gguf_name(name), numbers, raw_dtype=its_kind)

    # 3. Add Llama 3's scaling of positions: by how much each face of the clock turns slower.
    if (config.rope_scaling or {}).get("rope_type") == "llama3":
        speed = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
        slower = speed / scaled_frequencies(speed, config.rope_scaling)
        writer.add_tensor("rope_freqs.weight", slower.numpy())


def rounded(numbers: np.ndarray, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """Return a tensor's numbers as the file stores them, and the name of their format.

    Shapes: (m, n) or (m,) -> the same, or for Q8_0 (m, bytes of a row).

    Vectors stay as they are: norms and biases are few, and every token passes them. A row that is no multiple of 32
    numbers has no blocks, so it becomes F16. Half precision keeps 11 binary digits: a number moves by 2^-11 of its
    size at most. In a block of Q8_0 all numbers move by about half a step, small ones too.
    """
    # 1. Leave vectors, in the one format that every reader takes them in.
    formats = gguf.GGMLQuantizationType
    if numbers.ndim == 1:
        return numbers, formats.F32

    # 2. Round matrices. What is too large becomes infinite, and is found by whoever asks.
    if kind == "Q8_0" and numbers.shape[-1] % gguf.GGML_QUANT_SIZES[formats.Q8_0][0] == 0:
        return gguf.quants.quantize(numbers, formats.Q8_0), formats.Q8_0
    with np.errstate(over="ignore"):
        return numbers.astype(np.float16), formats.F16
