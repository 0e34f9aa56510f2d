"""The engine of Part II against llama2.c and llama.cpp: tokens per second, and what its short numbers cost.

    python benchmarks/bench_engine.py --llama2c FOLDER --llamacpp FILE --write

FOLDER is a clone of github.com/karpathy/llama2.c in which `gcc -Ofast -march=native -fopenmp run.c -lm -o run` was
called; FILE is `llama-bench` of github.com/ggml-org/llama.cpp, built by `cmake -B build -DGGML_NATIVE=ON` and
`cmake --build build --target llama-bench`. A peer that is not named is left out.

Random weights in the shapes of stories15M, stories110M and TinyLlama; all run on two threads and take turns. Speed
does not depend on what the numbers are. To make a token every weight is read once, so the limit is the speed at which
memory can be read: a plain loop over more numbers than any cache holds is measured in the same turns. What the short
formats cost is measured on the book's own storyteller.
"""

import argparse
import contextlib
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gguf
import numba
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from corpora.stories import generate  # noqa: E402
from engine import machine  # noqa: E402
from engine.config import ModelConfig  # noqa: E402
from engine.fast import FastModel  # noqa: E402
from engine.tokenizer import load_tokenizer  # noqa: E402
from engine.weights import load_weights  # noqa: E402

# Vocabulary, width, layers, heads, key/value heads, hidden size; and how many tokens are timed.
CONTEXT, ROUNDS, PROMPT, THREADS = 256, 9, 128, 2
SHAPES = {
    "15 M": (ModelConfig("llama", 32000, 288, 6, 6, 768, CONTEXT), 128),
    "110 M": (ModelConfig("llama", 32000, 768, 12, 12, 2048, CONTEXT), 64),
    "1.1 B": (ModelConfig("llama", 32000, 2048, 22, 32, 5632, CONTEXT, num_kv_heads=4, tie_embeddings=False), 16),
}
FORMATS = {"fp32": "F32", "bf16": "F16", "int8": "Q8_0", "int4": "Q4_0"}


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield Hugging Face's name, GGUF's name and the shape of each tensor."""
    width, inner = config.d_model, config.num_heads * config.head_dim
    shared = config.num_kv_heads * config.head_dim
    yield "model.embed_tokens.weight", "token_embd", (config.vocab_size, width)
    parts = {"input_layernorm": ("attn_norm", (width,)), "self_attn.q_proj": ("attn_q", (inner, width)),
             "self_attn.k_proj": ("attn_k", (shared, width)), "self_attn.v_proj": ("attn_v", (shared, width)),
             "self_attn.o_proj": ("attn_output", (width, inner)), "post_attention_layernorm": ("ffn_norm", (width,)),
             "mlp.gate_proj": ("ffn_gate", (config.d_ff, width)), "mlp.up_proj": ("ffn_up", (config.d_ff, width)),
             "mlp.down_proj": ("ffn_down", (width, config.d_ff))}
    for layer in range(config.num_layers):
        for ours, (theirs, shape) in parts.items():
            yield f"model.layers.{layer}.{ours}.weight", f"blk.{layer}.{theirs}", shape
    yield "model.norm.weight", "output_norm", (width,)
    if not config.tie_embeddings:
        yield "lm_head.weight", "output", (config.vocab_size, width)


class RandomWeights(Mapping):
    """Weights that are made when they are asked for, so that only one of them is in memory."""

    def __init__(self, config: ModelConfig):
        self.shapes = {name: shape for name, _, shape in tensor_shapes(config)}

    def __getitem__(self, name: str) -> np.ndarray:
        if len(shape := self.shapes[name]) == 1:
            return np.ones(shape, np.float32)
        numbers = np.random.default_rng(len(name)).standard_normal(shape, np.float32)
        numbers *= np.float32(0.02)
        return numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write_gguf(config: ModelConfig, kind: str, path: Path) -> None:
    """Write a model of this shape for llama.cpp: random blocks with one small scale, no vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    dice, weights = np.random.default_rng(0), RandomWeights(config)
    for ours, theirs, shape in tensor_shapes(config):
        if len(shape) == 1 or kind == "F32":
            writer.add_tensor(f"{theirs}.weight", weights[ours])
        elif kind == "F16":
            writer.add_tensor(f"{theirs}.weight", weights[ours].astype(np.float16))
        else:
            length = {"Q8_0": 32, "Q4_0": 16}[kind]
            blocks = dice.integers(0, 256, (shape[0], shape[1] // 32, 2 + length), np.uint8)
            blocks[:, :, :2] = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
            writer.add_tensor(f"{theirs}.weight", blocks.reshape(shape[0], -1),
                              raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama2c(config: ModelConfig, path: Path) -> None:
    """Write a model of this shape for llama2.c: seven sizes, then numbers, the tables of angles among them."""
    sizes = config.d_model, config.d_ff, config.num_layers, config.num_heads, config.num_kv_heads
    vocabulary = config.vocab_size if config.tie_embeddings else -config.vocab_size
    count = sum(math.prod(shape) for _, _, shape in tensor_shapes(config)) + CONTEXT * config.head_dim
    dice = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(np.array([*sizes, vocabulary, CONTEXT], np.int32).tobytes())
        while count > 0:
            part = dice.standard_normal(min(count, 1 << 24), np.float32) * np.float32(0.02)
            file.write(part.tobytes())
            count -= len(part)


@numba.njit(fastmath=True)
def add_up(numbers: np.ndarray) -> np.float32:
    """Return the sum of float32 numbers, which takes as long as reading them."""
    total = np.float32(0)
    for number in range(len(numbers)):
        total += numbers[number]
    return total


@numba.njit(parallel=True)
def read_all(numbers: np.ndarray, sums: np.ndarray) -> None:
    """Write the sum of each row of numbers, one thread to a row."""
    for row in numba.prange(len(numbers)):
        sums[row] = add_up(numbers[row])


def memory(numbers: np.ndarray) -> tuple[float, float]:
    """Return nothing for a prompt, and the gigabytes that all threads together read in a second, the best of ten."""
    numba.set_num_threads(THREADS)
    sums, times = np.empty(THREADS, np.float32), []
    for _ in range(10):
        began = time.perf_counter()
        read_all(numbers, sums)
        times.append(time.perf_counter() - began)
    return math.nan, numbers.nbytes / 1e9 / min(times)


def ours(model: FastModel, tokens: int) -> tuple[float, float]:
    """Return tokens per second of a prompt read in one pass, and of tokens made one by one from nothing."""
    # 1. Read.
    prompt, cache = np.random.default_rng(1).integers(1, 32000, PROMPT), model.new_cache(CONTEXT)
    began = time.perf_counter()
    model.forward(prompt, cache, last_only=True)
    read = time.perf_counter() - began

    # 2. Write, each token after those before it.
    token, cache = 1, model.new_cache(CONTEXT)
    began = time.perf_counter()
    for _ in range(tokens):
        token = int(model.forward([token], cache).argmax())
    return PROMPT / read, tokens / (time.perf_counter() - began)


def llama2c(folder: Path, model: Path, tokens: int) -> float:
    """Return the tokens per second that llama2.c says."""
    command = [folder / "run", model, "-z", folder / "tokenizer.bin", "-t", "0", "-n", str(tokens)]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    said = subprocess.run(command, env=environment, capture_output=True, check=True).stderr.decode()
    return float(re.search(r"tok/s: ([\d.]+)", said)[1])


def llamacpp(tool: Path, model: Path, tokens: int) -> tuple[float, float]:
    """Return the tokens per second that llama-bench says, of a prompt and of tokens made one by one."""
    command = [tool, "-m", model, "-p", str(PROMPT), "-n", str(tokens), "-r", "1", "-t", str(THREADS), "-o", "json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found[0]["avg_ts"], found[1]["avg_ts"]


def speeds(name: str, peers: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    """Yield the rows of one size. All ways take turns in each round, after a rest in which idle threads calm down."""
    # 1. Make each model once; of the largest only those in short formats, for which the comparison is meant.
    config, tokens = SHAPES[name]
    formats = [kind for kind in FORMATS if name != "1.1 B" or kind.startswith("int")]
    numbers = machine.aligned_empty((THREADS, 1 << 27))
    numbers.fill(1)
    ways: dict[str, Callable[[], tuple[float, float]]] = {"memory": lambda: memory(numbers)}
    sizes = {}
    for kind in formats:
        model = FastModel(config, RandomWeights(config), kind, THREADS)
        sizes[kind] = model.nbytes / 1e9
        ways[kind] = lambda model=model: ours(model, tokens)
        if peers.llamacpp:
            write_gguf(config, FORMATS[kind], folder / f"{kind}.gguf")
            ways[FORMATS[kind]] = lambda kind=kind: llamacpp(peers.llamacpp, folder / f"{kind}.gguf", tokens)
        if peers.llama2c and kind == "fp32":
            write_llama2c(config, folder / "model.bin")
            ways["llama2.c"] = lambda: (math.nan, llama2c(peers.llama2c, folder / "model.bin", tokens))

    # 2. Take turns.
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        for way, work in ways.items():
            time.sleep(0.2)
            measured = work()
            if number:
                times[way].append(measured)

    # 3. Compare round by round.
    def middle(way: str, which: int) -> str:
        return f"{statistics.median(pair[which] for pair in times[way]):,.1f}" if way in times else ""

    def share(way: str, which: int) -> str:
        pairs = zip(times[kind], times.get(way, []), strict=False)
        return f"{statistics.median(a[which] / b[which] for a, b in pairs):.2f}" if times.get(way) else ""

    def of_memory(kind: str) -> str:
        pairs = zip(times[kind], times["memory"], strict=True)
        return f"{statistics.median(a[1] * sizes[kind] / b[1] for a, b in pairs):.0%}".replace("%", " %")

    for kind in formats:
        peer, second = FORMATS[kind], share("llama2.c", 1) if kind == "fp32" else ""
        yield [name, kind, middle(kind, 1), of_memory(kind), peer, middle(peer, 1), share(peer, 1), second,
               middle(kind, 0), middle(peer, 0), share(peer, 0)]


def bits_per_byte(kind: str, count: int = 40) -> float:
    """Return the surprise of the storyteller at fresh stories, with its matrices in this format."""
    folder = ROOT / "models/storyteller"
    config, weights = load_weights(folder)
    model, tokenizer = FastModel(config, weights, kind), load_tokenizer(folder)
    bits = size = 0
    for story in generate(count, seed=12345):
        ids = [tokenizer.eos_id, *tokenizer.encode(story)]
        scores = model.forward(ids[:-1]).astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        chances = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        bits -= chances[range(len(ids) - 1), ids[1:]].sum() / math.log(2)
        size += len(story.encode())
    return bits / size


def peak_memory(kind: str) -> float:
    """Return the most memory that loading the largest model takes, as a multiple of its packed matrices."""
    code = (f"import re; from benchmarks.bench_engine import *; c, _ = SHAPES['1.1 B']; "
            f"m = FastModel(c, RandomWeights(c), {kind!r}); m.forward([1, 2, 3]); "
            "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024 / m.nbytes)")
    return float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)


def second_start() -> float:
    """Return the seconds from start to first token of the storyteller, beyond importing NumPy and Numba."""
    model = str(ROOT / "models/storyteller")
    say = [sys.executable, "-m", "engine", model, "--max-new-tokens", "1"]
    found = []
    for command in (say, say, [sys.executable, "-c", "import numpy, numba"], say):
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        found.append(time.perf_counter() - began)
    return found[3] - found[2]


def main() -> None:
    """Measure, and write two tables."""
    # This loads PyTorch, which would count in the memory that a model takes.
    from benchmarks.measure import write_table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama2c", type=Path)
    parser.add_argument("--llamacpp", type=Path)
    parser.add_argument("--sizes", nargs="*", default=list(SHAPES), metavar="SIZE", help="none: only the second table")
    parser.add_argument("--write", action="store_true")
    peers = parser.parse_args()

    # 1. Speed.
    rows = [["model", "format", "ours, tokens/s", "of the memory's speed", "llama.cpp's", "llama.cpp, tokens/s",
             "ours × llama.cpp", "ours × llama2.c", "prompt of 128, tokens/s", "llama.cpp", "ours × llama.cpp"]]
    for name in peers.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += speeds(name, peers, Path(folder))
    if peers.sizes:
        write_table("engine", rows)

    # 2. What short numbers cost, and what a start costs.
    print()
    whole = bits_per_byte("fp32")
    costs = [["measure", "value"]]
    for kind in ("bf16", "int8", "int4"):
        change = 100 * (bits_per_byte(kind) / whole - 1)
        costs.append([f"storyteller, bits per byte in {kind} against fp32", f"{change:+.2f} %"])
    costs.append(["peak memory of 1.1 B in int8, × its weights", f"{peak_memory('int8'):.2f}"])
    costs.append(["second start to first token, storyteller, beyond the imports", f"{second_start():.2f} s"])
    write_table("engine_costs", costs)


if __name__ == "__main__":
    with contextlib.redirect_stderr(io.StringIO()):
        main()
