"""Generation: what the KV cache is worth, and ours against Transformers' `generate`.

    python benchmarks/bench_generation.py --write

The `tiny` preset with random weights, float32, one text at a time, greedy. Without the cache, the cost of the
next token is measured at a given context; with it, likewise, from a cache already filled.
"""

import dataclasses
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from chapters.ch07_gpt_model import GPT, PRESETS  # noqa: E402
from chapters.ch09_inference import SamplingConfig, generate  # noqa: E402

NEW_TOKENS, ROUNDS = 16, 7


def main() -> None:
    """Measure both comparisons and write the table."""
    # 1. Build one model with room for the longest text, and open the same weights with Transformers.
    import tempfile

    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = GPT(dataclasses.replace(PRESETS["tiny"], max_seq_len=2048)).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()

    # 2. Continue prompts of both lengths, in each way, in turn. The prompt's own cost is taken off by a run
    # that asks for one token only.
    rows = [["context", "with cache, tokens/s", "without, tokens/s", "cache is worth ×", "Transformers, tokens/s",
             "ours × Transformers"]]
    for context in (256, 1024):
        prompt = torch.randint(1, 1000, (context,), generator=torch.Generator().manual_seed(1)).tolist()
        ids = torch.tensor([prompt])

        def ours(count, cache, prompt=prompt):
            return list(generate(model, prompt, SamplingConfig(temperature=0, max_new_tokens=count), use_cache=cache))

        def hf(count, ids=ids):
            return theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                                   do_sample=False, pad_token_id=0)

        # 3. Long runs minus short runs: what is left is NEW_TOKENS more tokens.
        works = {"cache": lambda: ours(NEW_TOKENS + 1, True), "cache 1": lambda: ours(1, True),
                 "none": lambda: ours(NEW_TOKENS + 1, False), "none 1": lambda: ours(1, False),
                 "hf": lambda: hf(NEW_TOKENS + 1), "hf 1": lambda: hf(1)}
        times = seconds_in_turn(works, ROUNDS)
        net = {name: [max(long - short, 1e-9) for long, short in zip(times[name], times[f"{name} 1"], strict=True)]
               for name in ("cache", "none", "hf")}
        speed = {name: NEW_TOKENS / statistics.median(values) for name, values in net.items()}
        worth = f"{ratio(net, 'none', 'cache'):.1f}"
        rows.append([str(context), f"{speed['cache']:,.0f}", f"{speed['none']:,.1f}", worth,
                     f"{speed['hf']:,.0f}", f"{ratio(net, 'hf', 'cache'):.2f}"])
    write_table("generation", rows)


if __name__ == "__main__":
    main()
