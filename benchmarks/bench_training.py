"""One training step, ours against Transformers' Llama of the same shape.

    python benchmarks/bench_training.py --write

d_model 256, 4 layers, 8 rows of 256 tokens, vocabulary 1024: forward, backward and AdamW. Each library as it
runs by default (ours: bfloat16, compiled; theirs: float32, eager), then both alike.
"""

import dataclasses
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from chapters.ch07_gpt_model import GPT, PRESETS  # noqa: E402
from chapters.ch08_training import TrainConfig, make_optimizers  # noqa: E402

BATCH, CONTEXT, VOCABULARY, ROUNDS = 8, 256, 1024, 15


def make_step(model, logits_of, ids: torch.Tensor, dtype: torch.dtype, compiled: bool):
    """Return a function that does one whole training step of `model`."""
    # 1. Give both the same optimizer, the fused one, so that only the model differs.
    optimizer = make_optimizers(model, TrainConfig(optimizer="adamw"), dtype)[0]

    def loss_of(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = logits_of(x)
        return F.cross_entropy(logits.float().flatten(0, 1), y.flatten())

    # 2. Compile the part that has a gradient.
    work = torch.compile(loss_of) if compiled else loss_of

    def step():
        work(ids[:, :-1], ids[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Measure all combinations in turn and write the table."""
    from transformers import LlamaConfig, LlamaForCausalLM

    # 1. Build both models in each number format, compiled and not.
    config = dataclasses.replace(PRESETS["tiny"], vocab_size=VOCABULARY, max_seq_len=CONTEXT)
    theirs = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=config.d_model,
        intermediate_size=config.d_ff, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, tie_word_embeddings=True,
    )
    ids = torch.randint(0, VOCABULARY, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    works = {}
    for dtype in (torch.float32, torch.bfloat16):
        for compiled in (False, True):
            kind = f"{str(dtype).removeprefix('torch.')}, {'compiled' if compiled else 'eager'}"
            ours, hf = GPT(config), LlamaForCausalLM(theirs).train()
            works[f"ours, {kind}"] = make_step(ours, ours, ids, dtype, compiled)
            works[f"Transformers, {kind}"] = make_step(
                hf, lambda x, hf=hf: hf(input_ids=x, use_cache=False).logits, ids, dtype, compiled
            )

    # 2. Measure in turn, and compare each with Transformers' default.
    times = seconds_in_turn(works, ROUNDS, warmup=2)
    default, rows = "Transformers, float32, eager", [["step", "tokens/s", "× Transformers as it runs by default",
                                                      "× Transformers, same format and compilation"]]
    for name, values in times.items():
        twin = name.replace("ours", "Transformers")
        same = f"{ratio(times, twin, name):.2f}" if twin != name else ""
        speed = BATCH * CONTEXT / statistics.median(values)
        rows.append([name, f"{speed:,.0f}", f"{ratio(times, default, name):.2f}", same])
    write_table("training", rows)


if __name__ == "__main__":
    main()
