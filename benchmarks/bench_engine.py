"""The fast engine against llama2.c, llama.cpp and the machine's own limit, on random weights of three sizes.

    python benchmarks/bench_engine.py --llama2c FOLDER --llamacpp FOLDER --write

How to get the two, neither of which is needed for our own column:

    llama2.c    git clone https://github.com/karpathy/llama2.c && cd llama2.c
                gcc -Ofast -march=native -fopenmp run.c -lm -o run
    llama.cpp   npm install @node-llama-cpp/linux-x64; its folder is the one below that holds libggml-base.so

All work on the same numbers with the same two threads. In each round, everybody says 64 tokens from an empty cache,
then reads a prompt of 128, in turn. A cell is the median of the rounds, a ratio the median of the rounds' own ratios.
llama.cpp's output head has the format of the other matrices, as ours has. llama2.c reads a prompt token by token.
The limit is what two threads read of a gigabyte in the same round, by a dot product of OpenBLAS.

Lines below the table: bits per byte of the storyteller on stories that it has not read, the time from the imports of
NumPy and Numba to the first token when the compiled loops lie ready, and the most memory that a process has had.
"""

import argparse
import ctypes
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# Two threads for everybody, and none of OpenBLAS's own in the measure of the limit: set before NumPy starts.
os.environ |= {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import gguf  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.measure import RESULTS, write_table  # noqa: E402
from engine.config import ModelConfig, tensor_shapes  # noqa: E402
from engine.fast import FastModel  # noqa: E402
from engine.machine import aligned_empty  # noqa: E402

SIZES = {  # d_model, layers, heads, key/value heads, hidden; the first two are llama2.c's, the third is TinyLlama
    "15 M": (288, 6, 6, 6, 768), "110 M": (768, 12, 12, 12, 2048), "1.1 B": (2048, 22, 32, 4, 5632),
}
GGUF_KINDS = {"fp32": "F32", "bf16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
NEW_TOKENS, PROMPT, THREADS = 64, 128, 2


def config_of(size: str) -> ModelConfig:
    """Return the shape of one of the models."""
    d_model, layers, heads, kv_heads, hidden = SIZES[size]
    return ModelConfig("llama", vocab_size=32000, d_model=d_model, num_layers=layers, num_heads=heads,
                       num_kv_heads=kv_heads, d_ff=hidden, max_seq_len=512, norm_eps=1e-5,
                       tie_embeddings=size != "1.1 B")


class RandomWeights(Mapping):
    """Random weights, each tensor made when it is asked for and always the same; nothing is kept."""

    def __init__(self, config: ModelConfig):
        self.shapes = dict(tensor_shapes(config))
        self.noise = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)

    def __getitem__(self, name: str) -> np.ndarray:
        # Begin elsewhere in the noise for each tensor, so that no two are alike, and fill it piece by piece: what
        # counts in the end is the memory that the engine takes, not what making the numbers takes.
        shape, start = self.shapes[name], sum(name.encode()) * 997 + len(name)
        numbers = np.ones(shape, np.float32)
        if len(shape) > 1:
            noise = np.roll(self.noise, start) * np.float32(shape[1] ** -0.5)
            for part in np.split(numbers.reshape(-1), range(len(noise), numbers.size, len(noise))):
                part[:] = noise[: len(part)]
        return numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Ours:
    """The fast engine."""

    def __init__(self, config: ModelConfig, weights: Mapping, dtype: str):
        self.model = FastModel(config, weights, dtype, THREADS)
        self.cache = self.model.new_cache(512)

    def read(self, ids: list[int]) -> np.ndarray:
        """Read a prompt from an empty cache and return the scores of the next token."""
        self.cache.length = 0
        return self.model.forward(ids, self.cache, last_only=True)[0]

    def speak(self) -> None:
        """Say NEW_TOKENS tokens, the likeliest ones."""
        token = int(self.read([1]).argmax())
        for _ in range(NEW_TOKENS - 1):
            token = int(self.model.forward([token], self.cache, last_only=True)[0].argmax())


class Opaque(ctypes.Structure):
    """Parameters that are handed from llama.cpp to llama.cpp: nobody here needs to know what is in them."""

    _fields_ = [("bytes", ctypes.c_byte * 1024)]


class Batch(ctypes.Structure):
    """llama.cpp's batch of tokens."""

    _fields_ = [("count", ctypes.c_int32), ("pointers", ctypes.c_void_p * 6)]


class LlamaCpp:
    """llama.cpp through its C interface, with its own default settings but for the threads."""

    def __init__(self, folder: Path, path: Path):
        # 1. Load the libraries in the order in which they need each other.
        libraries = [next(folder.glob(f"{name}.*so*")) for name in ("libggml-base", "libggml", "libllama")]
        base, ggml, self.llama = (ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL) for library in libraries)
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        calls = {"model_default_params": Opaque, "context_default_params": Opaque, "batch_get_one": Batch}
        pointers = ("model_load_from_file", "init_from_model", "get_memory", "get_logits_ith")
        for name, result in (calls | dict.fromkeys(pointers, ctypes.c_void_p)).items():
            getattr(self.llama, f"llama_{name}").restype = result

        # 2. Open the model without a word.
        self.silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        self.llama.llama_log_set(self.silence, None)
        model = self.llama.llama_model_load_from_file(str(path).encode(), self.llama.llama_model_default_params())
        self.context = ctypes.c_void_p(self.llama.llama_init_from_model(
            ctypes.c_void_p(model), self.llama.llama_context_default_params()))
        self.llama.llama_set_n_threads(self.context, THREADS, THREADS)
        self.model, self.vocab_size = model, 32000

    def decode(self, ids: list[int]) -> np.ndarray:
        """Read ids behind those read before and return the scores of the next token."""
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        if self.llama.llama_decode(self.context, self.llama.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama.cpp could not read the tokens")
        scores = self.llama.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(ctypes.cast(scores, ctypes.POINTER(ctypes.c_float)), (self.vocab_size,))

    def read(self, ids: list[int]) -> np.ndarray:
        """Read a prompt from an empty cache and return the scores of the next token."""
        self.llama.llama_memory_clear(ctypes.c_void_p(self.llama.llama_get_memory(self.context)), True)
        return self.decode(ids)

    def speak(self) -> None:
        """Say NEW_TOKENS tokens, the likeliest ones."""
        token = int(self.read([1]).argmax())
        for _ in range(NEW_TOKENS - 1):
            token = int(self.decode([token]).argmax())

    def close(self) -> None:
        """Give the memory back."""
        self.llama.llama_free(self.context)
        self.llama.llama_model_free(ctypes.c_void_p(self.model))


def write_gguf(config: ModelConfig, weights: Mapping, path: Path, kind: str) -> None:
    """Write a file for llama.cpp with all matrices in one format and no tokenizer."""
    # 1. Describe the model.
    writer, c = gguf.GGUFWriter(str(path), "llama"), config
    sizes = {"vocab_size": c.vocab_size, "context_length": c.max_seq_len, "embedding_length": c.d_model,
             "block_count": c.num_layers, "feed_forward_length": c.d_ff, "head_count": c.num_heads,
             "head_count_kv": c.num_kv_heads, "rope_dimension_count": c.head_dim, "rope_freq_base": c.rope_theta,
             "layer_norm_rms_eps": c.norm_eps, "tokenizer_model": "no_vocab"}
    for name, value in sizes.items():
        getattr(writer, f"add_{name}")(value)

    # 2. Rename each tensor, and pair the rows of queries and keys as llama.cpp turns them.
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for name in weights:
        stem, array = name.removesuffix(".weight"), weights[name]
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", stem)
        theirs = f"blk.{layer[1]}.{parts[layer[2]]}" if layer else outside[stem]
        if stem.endswith(("q_proj", "k_proj")):
            array = array.reshape(-1, 2, c.head_dim // 2, c.d_model).swapaxes(1, 2).reshape(array.shape)

        # 3. Add it, matrices in their format.
        kind_of = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(f"{theirs}.weight", gguf.quants.quantize(array, kind_of), raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama2c(config: ModelConfig, weights: Mapping, path: Path) -> None:
    """Write a file for llama2.c. Its pairs of numbers lie otherwise than ours; for speed that is the same."""
    # 1. The head: sizes, the vocabulary negative where the output head is a matrix of its own.
    c = config
    sizes = (c.d_model, c.d_ff, c.num_layers, c.num_heads, c.num_kv_heads,
             c.vocab_size if c.tie_embeddings else -c.vocab_size, c.max_seq_len)
    kinds = ("input_layernorm", *(f"self_attn.{n}_proj" for n in "qkvo"), "post_attention_layernorm",
             "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")

    # 2. One kind after the other, each with all layers; a table of angles that is not used any more.
    with open(path, "wb") as file:
        np.array(sizes, np.int32).tofile(file)
        weights["model.embed_tokens.weight"].tofile(file)
        for kind in kinds:
            for number in range(c.num_layers):
                weights[f"model.layers.{number}.{kind}.weight"].tofile(file)
        weights["model.norm.weight"].tofile(file)
        np.zeros((c.max_seq_len, c.head_dim), np.float32).tofile(file)
        if not c.tie_embeddings:
            weights["lm_head.weight"].tofile(file)


def llama2c_seconds(folder: Path, path: Path) -> float:
    """Return the seconds that llama2.c takes for NEW_TOKENS tokens, by its own clock."""
    command = [folder / "run", path, "-t", "0", "-n", str(NEW_TOKENS), "-z", folder / "tokenizer.bin"]
    said = subprocess.run(command, capture_output=True, check=True).stderr.decode()
    return NEW_TOKENS / float(re.search(r"achieved tok/s: ([\d.]+)", said)[1])


def bandwidth(memory: np.ndarray) -> float:
    """Return how many bytes a second two threads read together."""
    halves = np.array_split(memory, THREADS)
    threads = [threading.Thread(target=np.dot, args=(half, half)) for half in halves]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return memory.nbytes / (time.perf_counter() - began)


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of a piece of work, after a pause in which the threads of the one before fall asleep."""
    time.sleep(0.05)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(size: str, dtype: str, args: argparse.Namespace, memory: np.ndarray) -> list[list[str]]:
    """Return the rows of one model in one format: one for each peer, or one without."""
    # 1. Build ours, and the same for the others.
    config = config_of(size)
    weights, prompt = RandomWeights(config), list(range(1, PROMPT + 1))
    ours, theirs, file = Ours(config, weights, dtype), None, None
    with tempfile.TemporaryDirectory() as folder:
        if args.llamacpp:
            write_gguf(config, weights, Path(folder) / "model.gguf", GGUF_KINDS[dtype])
            theirs = LlamaCpp(args.llamacpp, Path(folder) / "model.gguf")
            a, b = ours.read(prompt), theirs.read(prompt)
            if (match := np.corrcoef(a, b)[0, 1]) < (0.9 if dtype == "int4" else 0.99):
                raise SystemExit(f"the scores of both sides match by {match:.3f}: they compute different models")
        if args.llama2c and dtype == "fp32":
            file = Path(folder) / "model.bin"
            write_llama2c(config, weights, file)

        # 2. Take turns, after one turn that does not count.
        times: dict[str, list[float]] = {}
        for turn in range(args.rounds + 1):
            now = {"limit": bandwidth(memory), "ours": seconds(ours.speak)}
            now["ours read"] = seconds(lambda: ours.read(prompt))
            if theirs:
                now |= {"llama.cpp": seconds(theirs.speak), "llama.cpp read": seconds(lambda: theirs.read(prompt))}
            if file:
                now["llama2.c"] = llama2c_seconds(args.llama2c, file)
            for name, value in now.items() if turn else ():
                times.setdefault(name, []).append(value)
        if theirs:
            theirs.close()
    return rows_of(size, dtype, ours.model.nbytes, times)


def rows_of(size: str, dtype: str, nbytes: int, times: dict[str, list[float]]) -> list[list[str]]:
    """Return rows of the table for what was measured."""
    # 1. Say what we reach.
    middle = {name: statistics.median(values) for name, values in times.items()}
    limits = zip(times["ours"], times["limit"], strict=True)
    share = statistics.median(nbytes * NEW_TOKENS / took / limit for took, limit in limits)
    mine = [size, dtype, f"{nbytes / 1e6:.0f}", f"{NEW_TOKENS / middle['ours']:.1f}", f"{share:.2f}",
            f"{PROMPT / middle['ours read']:.0f}"]

    # 2. And how many times as long the others take.
    rows = []
    for peer in [name for name in ("llama.cpp", "llama2.c") if name in times] or ["-"]:
        cells = ["-", "-", "-", "-"]
        for place, (work, amount) in enumerate((("", NEW_TOKENS), (" read", PROMPT))):
            if peer + work in times:
                pairs = zip(times[peer + work], times["ours" + work], strict=True)
                cells[2 * place] = f"{amount / middle[peer + work]:.{1 - place}f}"
                cells[2 * place + 1] = f"{statistics.median(a / b for a, b in pairs):.2f}"
        name = f"llama.cpp {GGUF_KINDS[dtype]}" if peer == "llama.cpp" else peer
        rows.append([*mine, name, *cells])
    return rows


def quality() -> str:
    """Return how many bits the storyteller needs for a byte of stories that it has not read, in each format."""
    # 1. Tell stories with a seed of their own.
    from corpora.stories import generate
    from engine import load_model

    stories, found = generate(40, seed=987_654), []
    for dtype in GGUF_KINDS:
        engine, bits = load_model(ROOT / "models" / "storyteller", dtype, fast=True), 0.0
        for story in stories:
            # 2. Add up what each token costs, the end included.
            ids = [engine.tokenizer.bos_id or engine.tokenizer.eos_id, *engine.tokenizer.encode(story)]
            ids = ids[: engine.model.config.max_seq_len]
            scores = engine.forward(ids[:-1]).astype(np.float64)
            chances = scores[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(scores).sum(axis=1))
            bits -= chances.sum() / np.log(2) / len(engine.tokenizer.decode_bytes(ids[1:]))
        found.append(bits / len(stories))
    named = zip(GGUF_KINDS, found, strict=True)
    parts = [f"{name} {value:.4f} ({100 * (value / found[0] - 1):+.2f} %)" for name, value in named]
    return "Storyteller, bits per byte: " + ", ".join(parts)


# What a process of its own runs: the imports that anybody pays for, then the time to the first piece of text.
START = """
import time
import numpy, numba
began = time.perf_counter()
from engine import load_model
next(load_model("models/storyteller").generate("Once", temperature=0))
print(time.perf_counter() - began)
"""


def second_start() -> str:
    """Return the time to the first token of the storyteller in a new process, when it has been started before."""
    command = [sys.executable, "-c", START]
    took = [subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout for _ in range(4)]
    return f"Second start to the first token, beyond NumPy and Numba: {statistics.median(map(float, took[1:])):.2f} s"


def peak(size: str, dtype: str) -> str:
    """Return the most memory that a process takes to load a model and say a few tokens, in units of its weights."""
    command = [sys.executable, __file__, "--peak", size, dtype]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().strip()


def print_peak(size: str, dtype: str) -> None:
    """Load a model, say a few tokens, and print the most memory that this process has had."""
    ours = Ours(config_of(size), RandomWeights(config_of(size)), dtype)
    ours.read([1, 2, 3])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"Peak memory {size} {dtype}: {most / 1e6:.0f} MB, {most / ours.model.nbytes:.2f} of the packed weights")


def main() -> None:
    """Measure everything, and write the table."""
    # 1. Read what to measure.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama2c", type=Path)
    parser.add_argument("--llamacpp", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=GGUF_KINDS, default=list(GGUF_KINDS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", nargs=2, metavar=("SIZE", "DTYPE"), help="only print the memory that one model takes")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.peak:
        return print_peak(*args.peak)

    # 2. Measure.
    rows, memory = [["model", "format", "MB", "tokens/s", "of the bandwidth", "prompt/s", "peer", "its tokens/s",
                     "ours / its", "its prompt/s", "ours / its"]], aligned_empty(1 << 28)
    memory.fill(1)
    for size in args.sizes:
        for dtype in args.dtypes:
            rows += compare(size, dtype, args, memory)
            print(rows[-1], file=sys.stderr, flush=True)

    # 3. Write the table, and what is no row of it.
    write_table("engine", rows)
    beside = "\n".join(["", quality(), "", second_start(), "", peak("1.1 B", "int8"), ""])
    print(beside)
    if args.write:
        with open(RESULTS / "engine.md", "a", encoding="utf-8") as file:
            file.write(beside)


if __name__ == "__main__":
    main()
