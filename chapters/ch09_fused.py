"""The same model, laid out anew, so that one more token takes few operations.

    q, k, v = x @ [W_q W_k W_v]        gate, up = x @ [W_gate W_up]

A text's next token needs one vector from each layer, not a table of them. In a small model such a product is done
before PyTorch has got round to the next one: the time goes into calling some 250 operations for each token. So
`FusedGPT` calls fewer. The modules of chapters 4 to 7 are the specification, and get everything that is not
one more token. `benchmarks/bench_generation.py` measures what it is worth.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapters.ch05_attention import attend, repeat_kv
from chapters.ch06_transformer_block import RMSNorm, TransformerBlock
from chapters.ch07_gpt_model import GPT

# Joined matrices are copies. In a model beyond this size, reading the numbers takes longer than calling operations,
# and nothing would be won.
MOST_BYTES = 2**28


class Product:
    """The matrices of one or more layers that read the same vector, as one, in a part for each thread.

    PyTorch multiplies one vector by a matrix on one thread. A batch of products is shared out, so the matrix is cut
    into as many equal parts as there are threads, and the last part is filled up with zeros. The vector's numbers
    stand in columns, which is two to three times as fast as in rows.
    """

    def __init__(self, *layers: nn.Linear):
        # 1. Join, and cut.
        parts, columns = torch.get_num_threads(), torch.cat([layer.weight.t() for layer in layers], dim=1)
        self.size = columns.shape[1]
        if missing := -self.size % parts:
            columns = F.pad(columns, (0, missing))
        self.parts = columns.unflatten(1, (parts, -1)).transpose(0, 1).contiguous()

        # 2. Join the biases, where there are any.
        self.bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the layers make of each vector, side by side.

        Shapes: x (B, C) -> (B, N), N being the sum of what the layers give.
        """
        parts = torch.bmm(x.expand(len(self.parts), *x.shape), self.parts)
        whole = parts.transpose(0, 1).flatten(1)[:, : self.size]
        return whole if self.bias is None else whole + self.bias


def normed(x: Tensor, norm: RMSNorm) -> Tensor:
    """Return what `norm` gives, for numbers that are float32 already.

    Shapes: x (B, C) -> (B, C).
    """
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)  # (B, C)


class FusedBlock:
    """One storey of the tower, for the newest token of each text."""

    def __init__(self, block: TransformerBlock):
        attention, feed_forward = block.attention, block.feed_forward
        self.read, self.mix = Product(attention.query, attention.key, attention.value), Product(attention.output)
        self.gate_and_up, self.down = Product(feed_forward.gate, feed_forward.up), Product(feed_forward.down)
        self.attention, self.norms = attention, (block.attention_norm, block.feed_forward_norm)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, memory) -> Tensor:
        """Return what the block makes of each vector; its keys and values are appended to `memory`.

        Shapes: x (B, C), cos and sin (1, D) with the sign of each sine in its place -> (B, C).
        """
        # 1. Read each vector three ways in one product, and cut the result into heads.
        attention, size = self.attention, self.attention.head_dim
        heads, pairs = attention.num_heads, attention.num_heads // attention.num_kv_heads
        seen = self.read(normed(x, self.norms[0])).view(len(x), -1, 1, size)  # (B, H+2*K, 1, D)
        turning, v = seen.tensor_split([heads + attention.num_kv_heads], dim=1)  # (B, H+K, 1, D), (B, K, 1, D)

        # 2. Turn queries and keys together: all stand at one place.
        if not isinstance(attention.query_norm, nn.Identity):
            q, k = turning.tensor_split([heads], dim=1)  # (B, H, 1, D), (B, K, 1, D)
            turning = torch.cat([attention.query_norm(q), attention.key_norm(k)], dim=1)  # (B, H+K, 1, D)
        turned = torch.addcmul(turning * cos, turning.roll(size // 2, dims=-1), sin)  # (B, H+K, 1, D)

        # 3. Remember, and look back at all that is remembered.
        k, v = memory.append(turned[:, heads:], v)  # (B, K, S, D), (B, K, S, D)
        if pairs > 1:
            k, v = repeat_kv(k, pairs), repeat_kv(v, pairs)  # (B, H, S, D), (B, H, S, D)
        gathered = attend(turned[:, :heads], k, v).flatten(1)  # (B, H*D)

        # 4. Add what was found, then think, and add again.
        x = x + self.mix(gathered)  # (B, C)
        gate, up = self.gate_and_up(normed(x, self.norms[1])).chunk(2, dim=1)  # (B, F), (B, F)
        return x + self.down(F.silu(gate) * up)  # (B, C)


class FusedGPT:
    """A model that answers as `model` does, and sooner where a text grows by one token.

    It holds copies of the numbers: make it anew when the model has learnt something.
    """

    def __init__(self, model: GPT):
        numbers = list(model.parameters())
        alike = all(number.dtype == torch.float32 and number.device.type == "cpu" for number in numbers)
        self.model, self.blocks = model, []
        self.worth_it = alike and sum(number.nbytes for number in numbers) <= MOST_BYTES

    def __call__(self, ids: Tensor, cache, pads: Tensor | None = None) -> Tensor:
        """Return a score for every vocabulary entry after every position, as `GPT.forward` does.

        Shapes: ids (B, T), pads (B,) -> (B, T, V). Raises ValueError as `GPT.forward` does.
        """
        # 1. Leave all else to the model: prompts, padding, texts that have come to the end of the context.
        place, one_more = cache.length, ids.shape[1] == 1 and pads is None
        if not (self.worth_it and one_more and place < self.model.config.max_seq_len):
            return self.model(ids, cache, pads)  # (B, T, V)

        # 2. Lay the matrices out when the first of these tokens comes: a call that ends before has no use for it.
        if not self.blocks:
            self.blocks = [FusedBlock(block) for block in self.model.blocks]
            self.cos = self.model.rope_cos.repeat(1, 2)
            self.sin = torch.cat([-self.model.rope_sin, self.model.rope_sin], dim=1)
            self.head = Product(self.model.lm_head)

        # 3. Climb the tower.
        x = self.model.token_embedding(ids)[:, 0]  # (B, C)
        for block, memory in zip(self.blocks, cache.layers, strict=True):
            x = block(x, self.cos[place], self.sin[place], memory)  # (B, C)
        return self.head(normed(x, self.model.final_norm))[:, None]  # (B, 1, V)
