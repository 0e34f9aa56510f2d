"""Speculative decoding: how many guesses of a small model a larger one accepts, and what that is worth.

    python benchmarks/bench_speculative.py --write

The storyteller is the model, and the nano model of the ladder after 400 steps the draft: both have the same
tokens. Stories of 120 tokens are told with each number of guesses, in turn with telling them without a draft. Two
columns say why: what a token of the draft costs, and what a pass that checks all guesses costs, both in tokens of the
model alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from chapters.ch02_tokenization import BPETokenizer  # noqa: E402
from chapters.ch07_gpt_model import GPT  # noqa: E402
from chapters.ch09_decoding import Acceptance, speculative_generate  # noqa: E402
from chapters.ch09_inference import KVCache, SamplingConfig, evaluating, generate  # noqa: E402

MODELS = Path(__file__).resolve().parents[1] / "models"
NEW_TOKENS, STORIES, ROUNDS, GUESSES = 120, 3, 5, (1, 2, 4, 8)


@torch.inference_mode()
def costs(model: GPT, draft: GPT) -> dict[str, float]:
    """Return what a pass costs in tokens of the model alone: a token of the draft, and a check of k guesses."""
    # 1. Read a prompt once, then the same few tokens again and again behind it.
    ids, works = torch.randint(1, 1000, (1, 60), generator=torch.Generator().manual_seed(1)), {}
    for name, each, count in [("model", model, 1), ("draft", draft, 1), *((str(k), model, k + 1) for k in GUESSES)]:
        cache = KVCache(each, max_seq_len=80)
        each(ids, cache)

        def work(each=each, count=count, cache=cache):
            for _ in range(50):
                each(ids[:, :count], cache)
                cache.cut(60)

        works[name] = work

    # 2. Measure in turn.
    with evaluating(model, draft):
        times = seconds_in_turn(works, 2 * ROUNDS)
    return {name: ratio(times, name, "model") for name in works}


def main() -> None:
    """Measure with each number of guesses, greedy and drawn, and write the table."""
    # 1. Open both; without the same tokens there is nothing to measure.
    folders = MODELS / "storyteller", MODELS / "ladder" / "step_400"
    (model, draft), tokenizers = map(GPT.from_pretrained, folders), [BPETokenizer.load(folder) for folder in folders]
    if tokenizers[0].vocab != tokenizers[1].vocab:
        raise SystemExit("the two models do not have the same tokens: train them anew with models/make.py")
    prompt, cost = tokenizers[0].start_ids, costs(model, draft)

    # 2. Tell the same number of stories each way, in turn.
    rows = [["temperature", "guesses at a time", "accepted", "tokens per pass", "a guess costs", "a check costs",
             "× without a draft"]]
    for temperature in (0.0, 0.8):
        configs = [SamplingConfig(temperature, max_new_tokens=NEW_TOKENS, seed=seed) for seed in range(STORIES)]
        counts = {k: Acceptance() for k in GUESSES}

        def guess(k, configs=configs, counts=counts):
            for config in configs:
                list(speculative_generate(model, draft, prompt, config, (), k, counts[k]))

        # 3. Print a row for no guesses, and one for each number of them.
        works = {"none": lambda configs=configs: [list(generate(model, prompt, config)) for config in configs]}
        works |= {str(k): lambda k=k, guess=guess: guess(k) for k in GUESSES}
        times = seconds_in_turn(works, ROUNDS)
        rows.append([str(temperature), "none", "", "1.00", "", "1.00", "1.00"])
        for k, count in counts.items():
            per_pass = STORIES * NEW_TOKENS * (ROUNDS + 1) / count.passes
            rows.append([str(temperature), str(k), f"{count.rate:.0%}", f"{per_pass:.2f}", f"{cost['draft']:.2f}",
                         f"{cost[str(k)]:.2f}", f"{ratio(times, 'none', str(k)):.2f}"])
    write_table("speculative", rows)


if __name__ == "__main__":
    main()
