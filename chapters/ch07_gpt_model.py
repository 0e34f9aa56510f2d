"""The GPT: embeddings at the bottom, a tower of blocks, a guess for the next token at the top.

    ids → embedding → block 1 → … → block L → norm → one score per vocabulary entry

The scores (logits) at position t are the model's opinion about token t + 1, from tokens 0 … t alone.
`GPTConfig` (in `ch07_config.py`, with the counting of parameters) says how large everything is. The
architecture is that of the Llama family; `ch07_pretrained.py` reads and writes its folders, chapter 8
trains it, chapter 9 lets it speak.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from chapters.ch03_embeddings import TokenEmbedding
from chapters.ch04_positional_encoding import rope_tables
from chapters.ch05_attention import MultiHeadAttention, causal_mask, padded_mask
from chapters.ch06_transformer_block import RMSNorm, TransformerBlock
from chapters.ch07_config import PRESETS, GPTConfig, count_parameters, flops_per_token, memory_bytes

__all__ = ["GPT", "GPTConfig", "PRESETS", "count_parameters", "flops_per_token", "memory_bytes"]


class GPT(nn.Module):
    """A language model: give it token ids, get a score for every possible next token.

    Built with fresh random weights from a `GPTConfig`; `GPT.from_pretrained` opens trained ones.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        # 1. Build the tower from the bottom up.
        self.config = config
        self.token_embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(self._block() for _ in range(config.num_layers))
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

        # 2. Tie: the row that reads a token is also the pattern that predicts it, which saves
        # vocab_size · d_model numbers.
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight

        # 3. Keep the RoPE tables beside the weights. They follow the model to a GPU but are not saved.
        cos, sin = rope_tables(config.head_dim, config.max_seq_len, config.rope_theta, config.rope_scaling)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self._initialise()

    def _block(self) -> TransformerBlock:
        """Return one block of the configured size."""
        c = self.config
        attention = MultiHeadAttention(
            c.d_model, c.num_heads, c.num_kv_heads, c.head_dim, c.qkv_bias, c.qk_norm, c.norm_eps, c.dropout
        )
        return TransformerBlock(attention, c.d_model, c.d_ff, c.norm_eps, c.dropout)

    def _initialise(self) -> None:
        """Set all matrices to small noise; those that write into the residual stream to smaller noise.

        Two layers per block add to the stream, 2·L in all. Dividing their spread by √(2·L) keeps the
        stream's size at the top independent of the height of the tower.

        Source: Radford et al. 2019 (GPT-2), section 2.3.
        """
        # 1. Start biases at zero: they prefer nothing yet. Norms have been at one since they were built.
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

        # 2. Draw every matrix. If two were equal they would learn the same, so chance must tell them apart.
        residual_std = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes_residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
                nn.init.normal_(parameter, std=residual_std if writes_residual else 0.02)

    def forward(self, ids: Tensor, cache=None, pads: Tensor | None = None) -> Tensor:
        """Return a score for every vocabulary entry after every position.

        With a `cache` (chapter 9's `KVCache`) the ids continue what it holds, and only they are computed.
        Where texts of unequal length share a batch, `pads` counts the ids before each text that are padding.

        Shapes: ids (B, T), pads (B,) -> logits (B, T, V).
        Raises ValueError when past and new tokens together exceed `max_seq_len`.
        """
        # 1. Find the positions of these tokens: after the cached ones, if any.
        past, length = (cache.length if cache is not None else 0), ids.shape[1]
        total = past + length
        if (longest := total if pads is None else total - int(pads.min())) > self.config.max_seq_len:
            raise ValueError(f"{longest} tokens exceed max_seq_len {self.config.max_seq_len}: shorten the text")
        cos, sin = self.rope_cos[past:total], self.rope_sin[past:total]  # (T, D/2), (T, D/2)

        # 2. Let each text behind padding count from its own first token.
        if pads is not None:
            slots = torch.arange(past, total, device=ids.device)  # (T,)
            positions = (slots - pads[:, None]).clamp(min=0)[:, None]  # (B, 1, T)
            cos = self.rope_cos[positions]  # (B, 1, T, D/2)
            sin = self.rope_sin[positions]  # (B, 1, T, D/2)

        # 3. Let chapter 5's plain rule serve where it can. A window shorter than the text needs a mask of its
        # own, over the keys that some query still sees.
        mask, window = None, self.config.sliding_window
        keys = total if window is None else min(total, window - 1 + length)
        if pads is not None or (window is not None and keys > window):
            mask = causal_mask(length, keys, window, ids.device)  # (T, S)

        # 4. Hide the padding from the texts behind it.
        if pads is not None:
            mask = padded_mask(mask, pads, total)  # (B, 1, T, S)

        # 5. Climb the tower. Each block adds to x; nothing is overwritten.
        x = self.token_embedding(ids)  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, cache.layers[i] if cache is not None else None)  # (B, T, C)

        # 6. Compare the result with every token's row: the best match is the likeliest next token.
        return self.lm_head(self.final_norm(x))  # (B, T, V)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "GPT":
        """Return the trained model of a Hugging Face folder, in float32, ready to generate.

        A name such as ORG/NAME in place of a folder is looked up on the hub (`ch07_hub.py`). Raises ValueError,
        naming the file and the rule, when the folder does not hold a model known here.
        """
        from chapters.ch07_pretrained import load_model

        return load_model(cls, folder)

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.float32, end_token: int | None = None
    ) -> None:
        """Write this model into a folder that Hugging Face Transformers opens, made if missing.

        The files are `config.json`, `generation_config.json` and `model.safetensors`; `dtype` is the number
        format of the last, `end_token` the id at which a text ends. Raises ValueError when no published family
        has this combination of fields.
        """
        from chapters.ch07_pretrained import save_model

        save_model(self, folder, dtype, end_token)
