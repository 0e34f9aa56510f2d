"""Generation: what the KV cache is worth, and ours against Transformers' `generate`.

    python benchmarks/bench_generation.py --write

The `tiny` preset with random weights, float32, one text at a time, greedy, with the vocabulary of the default
run and with GPT-2's. Both sides open one folder. Without the cache, the cost of the next token is measured at a
given context; with it, likewise, from a cache already filled. "as built" is the same model before its folder
was opened, with all matrices stored row by row.
"""

import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from chapters.ch07_gpt_model import GPT, PRESETS  # noqa: E402
from chapters.ch09_inference import SamplingConfig, generate  # noqa: E402

# How many tokens each way makes for one measurement: enough that the rest of a call does not matter.
NEW_TOKENS = {"cache": 128, "none": 8, "built": 128, "hf": 128}
ROUNDS = 9


def seconds_per_token(vocab_size: int, context: int) -> dict[str, list[float]]:
    """Return the seconds that one more token takes at a context, in each way, for every round."""
    from transformers import AutoModelForCausalLM

    # 1. Build one model with room for the longest text, and open its folder on both sides.
    torch.manual_seed(0)
    built = GPT(dataclasses.replace(PRESETS["tiny"], max_seq_len=2048, vocab_size=vocab_size)).eval()
    with tempfile.TemporaryDirectory() as folder:
        built.save_pretrained(folder)
        opened, theirs = GPT.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs.generation_config.max_length = None

    # 2. Continue one prompt in each way.
    prompt = torch.randint(1, 1000, (context,), generator=torch.Generator().manual_seed(1)).tolist()
    ids = torch.tensor([prompt])

    def ours(model, count, use_cache=True):
        return list(generate(model, prompt, SamplingConfig(temperature=0, max_new_tokens=count), use_cache=use_cache))

    def hf(count):
        return theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                               do_sample=False, pad_token_id=0)

    # 3. Take turns. The prompt's own cost is taken off by runs that ask for one token only.
    ways = {"cache": lambda count: ours(opened, count), "none": lambda count: ours(opened, count, False),
            "built": lambda count: ours(built, count), "hf": hf}
    works = {(name, count): lambda way=way, count=count: way(count)
             for name, way in ways.items() for count in (NEW_TOKENS[name] + 1, 1)}
    times = seconds_in_turn(works, ROUNDS)
    return {name: [max(long - short, 1e-9) / count
                   for long, short in zip(times[name, count + 1], times[name, 1], strict=True)]
            for name, count in NEW_TOKENS.items()}


def main() -> None:
    """Measure all comparisons and write the table."""
    rows = [["vocabulary", "context", "with cache, tokens/s", "without, tokens/s", "cache is worth ×",
             "as built, tokens/s", "Transformers, tokens/s", "ours × Transformers"]]
    for vocab_size in (1536, 50257):
        for context in (256, 1024):
            times = seconds_per_token(vocab_size, context)
            speed = {name: 1 / statistics.median(values) for name, values in times.items()}
            rows.append([f"{vocab_size:,}", str(context), f"{speed['cache']:,.0f}", f"{speed['none']:,.1f}",
                         f"{ratio(times, 'none', 'cache'):.1f}", f"{speed['built']:,.0f}", f"{speed['hf']:,.0f}",
                         f"{ratio(times, 'hf', 'cache'):.2f}"])
    write_table("generation", rows)


if __name__ == "__main__":
    main()
