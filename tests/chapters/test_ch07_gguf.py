"""Chapter 7, GGUF: what the file holds, read back by its own library and by Transformers, is our model."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import main
from chapters.ch02_files import letters_to_bytes
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_families import family_of, tensor_shapes, to_hf_name
from chapters.ch07_gguf import LLAMA3_PATTERN, QWEN_PATTERN, SPLIT_NAMES, save_gguf
from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch09_inference import SamplingConfig, generate

LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 24}
BASE = GPTConfig(vocab_size=307, d_model=64, num_layers=3, num_heads=8, num_kv_heads=2, head_dim=10, d_ff=96,
                 max_seq_len=41, rope_theta=300.0)
CONFIGS = {
    "llama": BASE,
    "llama untied": dataclasses.replace(BASE, tie_embeddings=False),
    "llama 3.1": dataclasses.replace(BASE, rope_scaling=LLAMA31),
    "llama linear": dataclasses.replace(BASE, rope_scaling={"rope_type": "linear", "factor": 3.0}),
    "mistral": dataclasses.replace(BASE, sliding_window=29),
    "qwen2": BASE.resized(qkv_bias=True, num_heads=4, head_dim=16),
    "qwen3": dataclasses.replace(BASE, qk_norm=True),
}
TEXTS = ["the cat sat on the mat. ", "it's 1999,  12 dogs!\n\n\tend",
         "Bär läßt 国王 👩‍👩‍👧", "", "<|endoftext|> as text"]

# llama.cpp's program for texts that go on; older versions have only the one that also chats.
LLAMA_CPP = shutil.which("llama-completion") or shutil.which("llama-cli")
NO_LLAMA_CPP = "needs llama.cpp: no llama-completion or llama-cli on the path"

# Matrices that a signal passes one after the other: value, output, gate, down in each of 3 blocks, and the head.
IN_SERIES = 4 * 3 + 1


@pytest.fixture(scope="module")
def words() -> BPETokenizer:
    """A tokenizer of fewer tokens than the model has rows."""
    return BPETokenizer.train(TEXTS * 3, 290)


def model_of(name: str) -> GPT:
    """A model whose every number is far from its first value."""
    torch.manual_seed(5)
    model = GPT(CONFIGS[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def read_back(path: Path, config: GPTConfig) -> dict[str, torch.Tensor]:
    """Read the numbers of a file under our names, by the gguf library's names, with the layout undone."""
    reader = gguf.GGUFReader(path)
    family = reader.fields["general.architecture"].contents()
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(arch, config.num_layers)
    stored = {t.name: torch.from_numpy(np.array(gguf.quants.dequantize(t.data, t.tensor_type))) for t in reader.tensors}
    state = {}
    for ours, shape in tensor_shapes(config):
        rows = stored.pop(names.get_name(to_hf_name(ours), try_suffixes=(".weight", ".bias")))
        if family == "llama" and ".query.weight" in ours or family == "llama" and ".key.weight" in ours:
            heads = [torch.cat([head[0::2], head[1::2]]) for head in rows.split(config.head_dim)]
            rows = torch.cat(heads)
        assert tuple(rows.shape) == shape
        state[ours] = rows
    assert set(stored) <= {"rope_freqs.weight"}
    return state


def filled(config: GPTConfig, state: dict[str, torch.Tensor]) -> GPT:
    """Build a model of these numbers."""
    model = GPT(config).eval()
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    return model


def ids_of(config: GPTConfig, length: int = 23) -> torch.Tensor:
    return torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_an_f16_file_holds_our_model_rounded_to_half_precision_and_nothing_else(name, words, tmp_path):
    model, path = model_of(name), tmp_path / "model.gguf"
    save_gguf(model, words, path, "F16")
    state, ids = read_back(path, model.config), ids_of(model.config)

    # Half precision has 11 binary digits, so a number moves by 2^-11 of its size at most, tiny ones by 2^-25.
    for ours, read in state.items():
        original = model.state_dict()[ours]
        assert torch.equal(read, original if original.dim() == 1 else original.half().float())
        assert ((read - original).abs() <= 2**-11 * original.abs() + 2**-25).all()

    # The logits are those of the rounded model to the last bit. Each matrix on the way can add 2^-11 of what passes.
    rounded = {n: t if t.dim() == 1 else t.half().float() for n, t in model.state_dict().items()}
    logits, theirs = model(ids), filled(model.config, state)(ids)
    assert torch.equal(theirs, filled(model.config, rounded)(ids))
    assert (theirs - logits).norm() <= IN_SERIES * 2**-11 * logits.norm()


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_a_q8_0_file_holds_our_model_within_half_a_step(name, words, tmp_path):
    model, path = model_of(name), tmp_path / "model.gguf"
    save_gguf(model, words, path, "Q8_0")
    state, ids, kinds = read_back(path, model.config), ids_of(model.config), set()
    for tensor in gguf.GGUFReader(path).tensors:
        kinds.add(tensor.tensor_type.name)
    assert "Q8_0" in kinds

    # A step is a block's largest number / 127. Rounding moves a number by half a step, and the scale itself, which
    # is kept in half precision, by 2^-11 of up to 127 steps.
    for ours, read in state.items():
        original = model.state_dict()[ours]
        if original.dim() == 2 and original.shape[1] % 32 == 0:
            step = original.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
            apart = (read - original).abs().unflatten(1, (-1, 32))
            assert (apart <= (0.5 + 127 * 2**-11) * step * 1.0001).all() and apart.max() > 0

    # Most numbers are some steps from zero, so each matrix adds about a hundredth of what passes.
    logits, theirs = model(ids), filled(model.config, state)(ids)
    assert 0 < (theirs - logits).norm() <= IN_SERIES * 0.01 * logits.norm()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "llama untied", "mistral", "qwen2", "qwen3"])
def test_transformers_reads_the_file_and_gives_our_logits(name, words, tmp_path):
    model = model_of(name)
    save_gguf(model, words, tmp_path / "model.gguf", "F16")

    # Transformers finds names, sizes and layout from the file alone, save for a Qwen 3's head size.
    said = load_gguf_checkpoint(tmp_path / "model.gguf")["config"] | {"head_dim": model.config.head_dim}
    theirs = AutoModelForCausalLM.from_config(CONFIG_MAPPING[said["model_type"]].from_dict(said)).eval()
    numbers = load_gguf_checkpoint(tmp_path / "model.gguf", return_tensors=True, model_to_load=theirs)["tensors"]
    assert not theirs.load_state_dict(numbers, strict=False).unexpected_keys
    theirs.tie_weights()
    rounded = {n: t if t.dim() == 1 else t.half().float() for n, t in model.state_dict().items()}
    ids = ids_of(model.config)
    torch.testing.assert_close(theirs(ids).logits, filled(model.config, rounded)(ids), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_says_the_sizes(name, words, tmp_path):
    model, path = model_of(name), tmp_path / "model.gguf"
    save_gguf(model, words, path)
    fields, c = gguf.GGUFReader(path).fields, model.config
    said = {key.split(".", 1)[1]: field.contents() for key, field in fields.items()}
    family = family_of(c).replace("mistral", "llama")
    assert fields["general.architecture"].contents() == family
    assert said["vocab_size"] == c.vocab_size and said["block_count"] == c.num_layers
    assert said["attention.head_count"] == c.num_heads and said["attention.head_count_kv"] == c.num_kv_heads
    assert said["attention.key_length"] == said["rope.dimension_count"] == c.head_dim
    assert said["rope.freq_base"] == c.rope_theta and said["feed_forward_length"] == c.d_ff
    assert said["context_length"] == (29 if name == "mistral" else c.max_seq_len)
    assert said["attention.layer_norm_rms_epsilon"] == np.float32(c.norm_eps)
    if name == "llama linear":
        assert (said["rope.scaling.type"], said["rope.scaling.factor"]) == ("linear", 3.0)
    if name == "llama 3.1":
        factors = next(t for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight").data
        hf = LlamaConfig(head_dim=10, max_position_embeddings=41, rope_parameters=LLAMA31 | {"rope_theta": 300.0})
        speed = 300.0 ** (-np.arange(0, 10, 2) / 10)
        np.testing.assert_allclose(speed / factors, LlamaRotaryEmbedding(hf).inv_freq, rtol=1e-5)


def test_the_tokenizer_comes_back_out_of_the_file(words, tmp_path):
    path = tmp_path / "model.gguf"
    save_gguf(model_of("llama"), words, path)
    said = {key.split(".")[-1]: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    tokens, types = said["tokens"], said["token_type"]
    ordinary = {i: letters_to_bytes(text) for i, text in enumerate(tokens) if types[i] == gguf.TokenType.NORMAL}
    special = {text: i for i, text in enumerate(tokens) if types[i] == gguf.TokenType.CONTROL}
    merges = [tuple(map(letters_to_bytes, merge.split(" "))) for merge in said["merges"]]
    again = BPETokenizer(ordinary, merges, special)
    assert [again.encode(text) for text in TEXTS] == [words.encode(text) for text in TEXTS]
    assert said["model"] == "gpt2" and said["pre"] == "gpt-2" and said["add_bos_token"]
    assert said["bos_token_id"] == said["eos_token_id"] == words.eot_id
    assert types.count(gguf.TokenType.UNUSED) == 307 - words.vocab_size and len(set(tokens)) == 307


def test_each_known_split_rule_is_the_one_that_the_published_files_have():
    # Texts on which the four rules cut differently: digits, capitals behind an apostrophe, spaces before a newline.
    text = "IT'S 12345 dogs\n\n  it's"
    cuts = {name: tuple(BPETokenizer({i: bytes([i]) for i in range(256)}, [], pattern=rule)._splitter.words(text))
            for rule, name in SPLIT_NAMES.items()}
    assert len(set(cuts.values())) == 4
    assert "123" in cuts["llama-bpe"] and "1" in cuts["qwen2"] and "12345" not in cuts["smollm"]
    assert " 12345" in cuts["gpt-2"] and LLAMA3_PATTERN != QWEN_PATTERN


def test_what_the_file_cannot_hold_is_refused_and_nothing_is_written(words, tmp_path):
    model, path = model_of("llama"), tmp_path / "model.gguf"
    digits = BPETokenizer(words.vocab, words.merges, words.special_tokens, pattern=r"\p{L}+|.|\n")
    many = GPT(dataclasses.replace(BASE, vocab_size=280))
    huge = model_of("llama")
    huge.blocks[1].attention.value.weight.data[3, 5] = 1e5
    scaled = model_of("qwen3")
    scaled.config = dataclasses.replace(scaled.config, rope_scaling=LLAMA31)
    for wrong, tokenizer, kind, message in [
        (model, words, "Q4", "type 'Q4' is not known"), (model, digits, "F16", "not built into llama.cpp"),
        (many, words, "F16", "290 tokens"), (huge, words, "F16", "blocks.1.attention.value.weight"),
        (model, object(), "F16", "SentencePiece"), (scaled, words, "F16", "rope_scaling 'llama3' in a qwen3"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_gguf(wrong, tokenizer, path, kind)
        assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists: name a new file"):
        save_gguf(model, words, path)
    assert path.read_text() == "mine"


def test_export_writes_the_storyteller_and_refuses_to_overwrite(tmp_path, capsys):
    path = tmp_path / "story.gguf"
    command = ["export", "--to", "gguf", "--model", str(main.STORYTELLER), "--type", "Q8_0", "--out", str(path)]
    assert main.main(command) == 0 and "MiB" in capsys.readouterr().out
    before = path.read_bytes()
    assert main.main(command) == 2 and "exists" in capsys.readouterr().err.splitlines()[-1]
    assert path.read_bytes() == before
    assert main.main([*command[:-1], str(tmp_path / "no" / "where.gguf")]) == 2


def llama_cpp_says(path: Path, prompt: str, tokens: int) -> str:
    """Return the prompt and the greedy text of llama.cpp behind it."""
    command = [LLAMA_CPP, "-m", str(path), "-p", prompt, "--temp", "0", "-n", str(tokens), "-no-cnv"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.decode()


@pytest.mark.skipif(LLAMA_CPP is None, reason=NO_LLAMA_CPP)
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_llama_cpp_says_the_same_greedy_text(kind, tmp_path, capsys):
    path, prompt = tmp_path / "model.gguf", "Once upon a time"
    assert main.main(["export", "--model", str(main.STORYTELLER), "--type", kind, "--out", str(path)]) == 0
    capsys.readouterr()
    assert main.main(["generate", "--model", str(main.STORYTELLER), "--prompt", prompt, "--temperature", "0",
                      "--max-new-tokens", "40"]) == 0
    assert capsys.readouterr().out.strip() in llama_cpp_says(path, prompt, 40)


@pytest.mark.skipif(LLAMA_CPP is None, reason=NO_LLAMA_CPP)
@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_says_the_same_greedy_text_in_every_family(name, words, tmp_path):
    model, path, prompt = model_of(name), tmp_path / "model.gguf", "the cat sat"
    # Tokens of letters alone are likely: others cannot be told apart on a screen.
    spoken = [token.isascii() and token.isalpha() for token in words.vocab.values()]
    spoken += [False] * (model.config.vocab_size - len(spoken))
    for matrix in {model.token_embedding.weight, model.lm_head.weight}:
        matrix.data *= torch.tensor(spoken)[:, None]
    save_gguf(model, words, path, "F16")
    ids = [*words.start_ids, *words.encode(prompt)]
    text = words.decode(list(generate(model, ids, SamplingConfig(temperature=0, max_new_tokens=16))))
    assert prompt + text in llama_cpp_says(path, prompt, 16)
