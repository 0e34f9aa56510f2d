"""What a GPU promises: it learns, remembers and says what the processor does; skipped where there is none.

Sums are taken in another order there, so numbers are compared within a tolerance, never bit by bit. The processor's
own answer comes from the same code, told to stay on the processor.
"""

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM

import main
from chapters import ch08_training
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch08_checkpoint import read_checkpoint
from chapters.ch08_run import read_metrics
from chapters.ch08_training import TokenRows, Trainer, bits_per_byte
from chapters.ch09_decoding import beam_search, speculative_generate
from chapters.ch09_fused import FusedGPT
from chapters.ch09_inference import KVCache, SamplingConfig, generate, generate_batch
from corpora.stories import generate as stories
from tests.chapters.conftest import DOCUMENTS, QUICK, SMALL
from tests.chapters.small_gpt import model_of, some_ids

pytestmark = pytest.mark.gpu

GPU, CPU = torch.device("cuda"), torch.device("cpu")
STEPS = 12
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "main.py"]


@pytest.fixture
def trainer(tmp_path, monkeypatch) -> Callable[..., Trainer]:
    """Make trainers with the same rows and first weights, on a device, each with a run folder of its own."""
    rows = TokenRows(DOCUMENTS, BPETokenizer.train(DOCUMENTS, SMALL.vocab_size), SMALL.max_seq_len)

    def make(name: str, device: torch.device = GPU, dropout: float = 0.0, **changes) -> Trainer:
        torch.manual_seed(8)
        (tmp_path / name).mkdir(exist_ok=True)
        config = dataclasses.replace(QUICK, **{"max_steps": STEPS, "optimizer": "muon"} | changes)
        monkeypatch.setattr(ch08_training, "choose_device", lambda: device)
        return Trainer(GPT(dataclasses.replace(SMALL, dropout=dropout)), rows, rows, config, tmp_path / name)

    return make


def losses(trainer: Trainer, count: int = STEPS) -> list[float]:
    return [trainer.train_step()["loss"] for _ in range(count)]


# Training.


@pytest.mark.parametrize("settings, tolerance", [
    ({"dtype": "float32"}, 1e-3), ({"dtype": "bfloat16"}, 2e-2), ({"dtype": "float16"}, 1e-2),
    ({"dtype": "bfloat16", "compile": "on"}, 2e-2), ({"dtype": "float16", "compile": "on"}, 1e-2),
    ({"dtype": "bfloat16", "compile": "on", "optimizer": "adamw", "grad_accum_steps": 3, "batch_size": 2}, 2e-2),
])
def test_a_gpu_learns_what_the_processor_learns_in_float32(trainer, settings, tolerance):
    exact = trainer("processor", CPU, **settings | {"dtype": "float32", "compile": "off"})
    ours = trainer("gpu", **settings)
    found = losses(ours)
    assert found == pytest.approx(losses(exact), rel=tolerance) and found[-1] < found[0] - 0.5
    assert ours.evaluate() == pytest.approx(exact.evaluate(), rel=tolerance)
    assert {(p.device.type, p.dtype) for p in ours.model.parameters()} == {(GPU.type, torch.float32)}


def test_an_overflow_in_float16_costs_a_step_and_nothing_else(trainer):
    ours = trainer("run", dtype="float16")
    ours.scaler.load_state_dict(ours.scaler.state_dict() | {"scale": 2.0**40})
    before = [p.detach().clone() for p in ours.model.parameters()]
    assert ours.train_step()["gradient_norm"] is None and ours.scaler.get_scale() == 2.0**39
    assert all(map(torch.equal, before, ours.model.parameters()))
    ours.scaler.load_state_dict(ours.scaler.state_dict() | {"scale": 2.0**16})
    assert ours.train_step()["gradient_norm"] > 0 and not torch.equal(before[0], next(ours.model.parameters()))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_resumed_run_throws_the_dice_of_an_undisturbed_one(trainer, dtype):
    settings = {"dtype": dtype, "dropout": 0.3}
    expected = losses(trainer("whole", **settings))
    broken = trainer("broken", **settings)
    found = losses(broken, STEPS // 2)
    broken.save()
    resumed = trainer("broken", **settings)
    torch.manual_seed(12345)
    resumed.resume()
    assert resumed.step == STEPS // 2 and resumed.scaler.state_dict() == broken.scaler.state_dict()
    assert found + losses(resumed, STEPS // 2) == pytest.approx(expected, rel=1e-3)
    assert f"random.{GPU.type}" in read_checkpoint(resumed.checkpoint)[0]


def test_a_run_that_began_on_a_processor_is_refused_in_one_line(trainer):
    ours = trainer("run", CPU)
    ours.train_step()
    ours.save()
    with pytest.raises(ValueError, match="the run began on another device, go on with it there") as caught:
        trainer("run").resume()
    assert "\n" not in str(caught.value)


def test_a_run_that_explodes_on_a_gpu_says_where(trainer):
    ours = trainer("run", learning_rate=1e37, warmup_steps=0)
    with pytest.raises(ValueError, match="the run exploded at step .* went bad is"):
        losses(ours)


# Several processes, of which a machine with one GPU has room for one.


def run(arguments: list[str], code: int = 0) -> str:
    """Run a command to its end, and return what it said."""
    done = subprocess.run(arguments, cwd=main.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=1800)
    assert done.returncode == code, done.stdout[-9000:]
    return done.stdout


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_shared_out_model_on_one_gpu_learns_what_a_whole_one_learns(tmp_path, dtype):
    text = tmp_path / "little.txt"
    text.write_text("<|endoftext|>".join(stories(120, seed=7)), encoding="utf-8")
    sizes = {"d_model": 32, "num_heads": 2, "d_ff": 48, "num_layers": 2, "vocab_size": 300, "max_seq_len": 64,
             "batch_size": 4, "max_steps": 8, "eval_every": 4, "dtype": dtype, "compile": "off"}
    flags = [part for name, value in sizes.items() for part in ("--" + name.replace("_", "-"), str(value))]
    command = ["train", "--data", str(text), "--runs", str(tmp_path), *flags]
    said = run([*TORCHRUN, *command, "--name", "shards", "--shard"])
    assert "1 processes share each batch and the model" in said and said.count("── Story 3") == 1
    run([sys.executable, "main.py", *command, "--name", "whole"])
    scores = [[line["validation_bits_per_byte"] for line in read_metrics(tmp_path / name)]
              for name in ("shards", "whole")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3 if dtype == "float32" else 1e-2)
    # The whole model goes on with what the shared one saved, and finds nothing left to train.
    run([sys.executable, "main.py", "train", "--resume", str(tmp_path / "shards")])


# Speaking.


@pytest.mark.parametrize("kind", [{}, {"num_kv_heads": 1, "qk_norm": True}, {"sliding_window": 5}])
@torch.no_grad()
def test_the_cache_gives_the_scores_of_the_whole_text_and_those_of_the_processor(kind):
    model, ids = model_of(**kind), some_ids(2, 19)
    expected = model(ids)
    model, ids, cache = model.to(GPU), ids.to(GPU), KVCache(model.to(GPU), 2)
    pieces = [model(piece, cache) for piece in ids.split([7, 1, 4, *[1] * 7], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1).cpu(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model(ids).cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", [
    SamplingConfig(temperature=0), SamplingConfig(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=7),
    SamplingConfig(temperature=0.9, min_p=0.1, seed=3)])
def test_a_text_is_the_same_with_and_without_the_cache_and_in_a_batch(config):
    model, prompts = model_of().to(GPU), [[5, 9, 2, 7], [11], list(range(20, 31))]
    texts = [list(generate(model, prompt, dataclasses.replace(config, seed=config.seed + row)))
             for row, prompt in enumerate(prompts)]
    assert texts[0] == list(generate(model, prompts[0], config, use_cache=False)) and len(texts[0]) == 25
    rows = torch.stack(list(generate_batch(model, prompts, config)), dim=1).tolist()
    assert [[token for token in row if token >= 0] for row in rows] == texts


def test_beams_and_guesses_speak_on_a_gpu():
    model, greedy = model_of().to(GPU), SamplingConfig(temperature=0)
    expected = list(generate(model, [5, 9], greedy))
    assert list(speculative_generate(model, model_of(seed=12).to(GPU), [5, 9], greedy)) == expected
    assert beam_search(model, [5, 9], beams=1)[0].ids == expected


@torch.no_grad()
def test_the_layout_for_one_more_token_leaves_a_gpu_to_the_model():
    model = model_of().to(GPU)
    fused, ours, theirs = FusedGPT(model), KVCache(model), KVCache(model)
    for piece in some_ids(1, 9).to(GPU).split([5, 1, 1, 2], dim=1):
        torch.testing.assert_close(fused(piece, ours), model(piece, theirs))
    assert ours.length == theirs.length == 9 and bool(fused.blocks) == (GPU.type == "cpu")


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 0.2), (torch.float16, 0.05)])
@torch.no_grad()
def test_a_published_folder_opens_on_a_gpu_and_says_what_transformers_says(dtype, tolerance):
    folder = main.STORYTELLER
    ours, tokenizer = GPT.from_pretrained(folder), BPETokenizer.load(folder)
    ids = torch.tensor([tokenizer.encode(stories(1, seed=3)[0])])
    expected = ours(ids)
    ours = ours.to(GPU, dtype)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(GPU).eval()
    for logits in (ours(ids.to(GPU)), theirs(ids.to(GPU)).logits):
        torch.testing.assert_close(logits.float().cpu(), expected, rtol=0, atol=tolerance)
    assert next(ours.parameters()).device.type == GPU.type


def test_held_out_text_surprises_a_model_as_much_on_a_gpu():
    model, tokenizer = GPT.from_pretrained(main.STORYTELLER), BPETokenizer.load(main.STORYTELLER)
    rows = TokenRows(stories(20, seed=99), tokenizer, 160)
    expected = bits_per_byte(model, rows)
    assert bits_per_byte(model.to(GPU), rows) == pytest.approx(expected, rel=1e-3) and math.isfinite(expected)


def test_generate_and_doctor_find_the_gpu_by_themselves(capsys):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    assert main.main(["generate", "--model", str(main.STORYTELLER), "--max-new-tokens", "9", "--seed", "1"]) == 0
    assert len(capsys.readouterr().out.split()) > 4 and torch.cuda.max_memory_allocated() > before
    assert main.main(["doctor"]) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out
