"""One step of training the `base` preset on a GPU: tokens per second, and the share of what the GPU could do.

    python benchmarks/bench_gpu.py --nanogpt FOLDER --write

bfloat16 products, compiled, rows of 1024 random tokens. Ours is the `Trainer`'s own step, with Muon as it runs by
default and with AdamW, and once with a vocabulary of a multiple of 64, which GPUs like. FOLDER is a checkout of
github.com/karpathy/nanoGPT: the model of its `model.py`, stepped as its `train.py` does, with 16 layers, which makes
its matrices as large as ours. All take turns on the same batches.

    work of a token  =  6 · numbers in matrices  +  12 · layers · width · context

Each number of a matrix costs a multiplication and an addition on the way to the loss, and twice that on the way back;
attention's scores and mixing cost the second term, hidden half included. The share of the peak is the work done in a
second, divided by the most that a product of two large matrices reaches in the same run, and by what the maker
publishes. Peak memory is what building a model and its first steps added.

Source: Chowdhery et al. 2022 (arXiv 2204.02311), appendix B.
"""

import argparse
import dataclasses
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from chapters.ch07_config import PRESETS, GPTConfig, flops_per_token  # noqa: E402
from chapters.ch07_gpt_model import GPT  # noqa: E402
from chapters.ch08_scale import choose_device, has_native_bf16  # noqa: E402
from chapters.ch08_training import TrainConfig, Trainer, get_batch  # noqa: E402
from chapters.ch10_doctor import multiply_speed  # noqa: E402

CONTEXT, ROWS, STEPS, ROUNDS = 1024, 16, 10, 9

# The dense bfloat16 operations per second, in millions of millions, that NVIDIA publishes for a GPU of that name. Its
# data sheets of the H100 and the H200 name twice as many, for matrices of which half the numbers are 0.
PUBLISHED = {
    "NVIDIA A100-SXM4-40GB": 312, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989,
}


class RandomRows:
    """Rows of random tokens, the same each time: what a `Trainer` needs of a text."""

    def __init__(self, vocab_size: int, context: int, count: int = 256):
        dice = np.random.default_rng(0)
        self.tokens, self.context = torch.from_numpy(dice.integers(vocab_size, size=(count, context + 1))), context

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets of these rows, shapes (B, T) and (B, T)."""
        block = self.tokens[torch.from_numpy(indices)]
        return block[:, :-1], block[:, 1:]


@dataclasses.dataclass
class Contender:
    """One way to train: what a step does, how many operations it spends on a token, the most memory it took."""

    step: Callable[[], object]
    flops_of_token: int
    memory: int = 0


def ours(config: GPTConfig, rows: RandomRows, batch: int, optimizer: str) -> Contender:
    """Return our model and trainer."""
    torch.manual_seed(0)
    train = TrainConfig(batch_size=batch, optimizer=optimizer, dtype="bfloat16", compile="on",
                        learning_rate=1e-3 if optimizer == "adamw" else 1e-2)
    trainer = Trainer(GPT(config), rows, rows, train, Path(tempfile.mkdtemp()))
    return Contender(trainer.train_step, flops_per_token(config, rows.context)["training"])


def nanogpt(folder: Path, rows: RandomRows, batch: int, device: torch.device, **sizes: int) -> Contender:
    """Return nanoGPT's model and the step of its `train.py`: clipped at 1, fused AdamW, no look at the loss."""
    # 1. Load its file by path: it is a script in a folder, and no package that could be imported by name.
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    # 2. Build it as its training does: no biases, no dropout. Its positions are looked up, which is no work.
    torch.manual_seed(0)
    config = module.GPTConfig(block_size=rows.context, bias=False, dropout=0.0, **sizes)
    model = module.GPT(config).to(device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device.type)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2) - model.transformer.wpe.weight.numel()
    compiled, done = torch.compile(model), 0

    def step() -> None:
        # 3. Take the batch that ours takes, too.
        nonlocal done
        x, y = (part.contiguous().to(device) for part in get_batch(rows, done, batch, seed=0))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = compiled(x, y)[1]
        loss.backward()
        # 4. Move.
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1

    return Contender(step, 6 * matrices + 12 * config.n_layer * config.n_embd * rows.context)


def weighed(build: Callable[[], Contender]) -> Contender:
    """Return a contender that has done its first steps, and knows how much of the GPU's memory they added."""
    # 1. Begin to count from what the others hold.
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender = build()

    # 2. Step. The optimizer's averages come with the first one.
    for _ in range(3):
        contender.step()
    contender.memory = torch.cuda.max_memory_allocated() - before
    return contender


def in_turn(contenders: dict[str, Contender], device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of a step of each, for every round of some steps; a GPU is waited for at the end of each."""
    def work(contender: Contender) -> None:
        for _ in range(STEPS):
            contender.step()
        torch.get_device_module(device).synchronize()

    times = seconds_in_turn({name: lambda one=one: work(one) for name, one in contenders.items()}, ROUNDS)
    return {name: [seconds / STEPS for seconds in values] for name, values in times.items()}


def table(contenders: dict[str, Contender], times: dict[str, list[float]], tokens: int, peak: float,
          published: float | None) -> list[list[str]]:
    """Return the rows of the table: speeds, shares of both peaks, memory, and ratios to the last contender."""
    last = list(contenders)[-1]
    rows = [["step", "tokens/s", "million operations per token", "of the largest product", "of the published peak",
             "most memory, GiB", f"× {last}"]]
    for name, one in contenders.items():
        speed = tokens / statistics.median(times[name])
        work = one.flops_of_token * speed
        rows.append([name, f"{speed:,.0f}", f"{one.flops_of_token / 1e6:,.0f}", f"{work / peak:.1%}",
                     f"{work / published:.1%}" if published else "not known", f"{one.memory / 2**30:.1f}",
                     f"{ratio(times, last, name):.2f}"])
    return rows


def main() -> int:
    """Measure all in turn and write the table; return the exit code, 2 where there is no GPU to measure."""
    # 1. Read what is asked for, and look for a GPU.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of a batch, {ROWS} if left out")
    parser.add_argument("--write", action="store_true", help="store the table in benchmarks/results")
    args, device = parser.parse_args(), choose_device()
    if device.type != "cuda" or not has_native_bf16(device):
        print("error: this benchmark measures a GPU that computes in bfloat16, and PyTorch sees none", file=sys.stderr)
        return 2

    # 2. Build all, one after the other.
    base = dataclasses.replace(PRESETS["base"], max_seq_len=CONTEXT)
    even = dataclasses.replace(base, vocab_size=-(-base.vocab_size // 64) * 64)
    rows = RandomRows(base.vocab_size, CONTEXT)
    builders = {f"ours, {words}": lambda config=config, optimizer=optimizer: ours(config, rows, args.rows, optimizer)
                for words, config, optimizer in (("Muon", base, "muon"), ("AdamW", base, "adamw"),
                                                 (f"AdamW, vocabulary {even.vocab_size:,}", even, "adamw"))}
    if args.nanogpt:
        builders["nanoGPT"] = lambda: nanogpt(args.nanogpt, rows, args.rows, device, n_layer=16, n_embd=768, n_head=12,
                                              vocab_size=even.vocab_size)
    contenders = {name: weighed(build) for name, build in builders.items()}

    # 3. Measure the peak before and after, for a warm GPU is slower; let the better one count.
    name, peak = torch.cuda.get_device_name(), multiply_speed(device, torch.bfloat16)
    times = in_turn(contenders, device)
    peak = max(peak, multiply_speed(device, torch.bfloat16))
    published = PUBLISHED.get(name)
    print(f"{name}: the largest product runs at {peak / 1e12:.0f} TFLOP/s, published {published or 'not known here'}")
    # 4. Write it down.
    where = f"{name} ({peak / 1e12:.0f} TFLOP/s measured), {args.rows} rows of {CONTEXT} tokens, on "
    tokens = args.rows * CONTEXT
    write_table("gpu", table(contenders, times, tokens, peak, published and published * 1e12), where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
