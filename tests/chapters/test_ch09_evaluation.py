"""Chapter 9, evaluation: bits per byte are what a hand computation gives, and the interval holds what it promises."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import main
from chapters import ch09_evaluation
from chapters.ch02_published import open_tokenizer
from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch08_data import TokenRows
from chapters.ch08_training import bits_per_byte
from chapters.ch09_evaluation import batches, bootstrap_interval, evaluate, held_out, measure

SIZES = {"hidden_size": 24, "intermediate_size": 35, "num_hidden_layers": 2, "num_attention_heads": 6,
         "num_key_value_heads": 2, "max_position_embeddings": 16}


def little_model(vocab_size: int, context: int = 16) -> GPT:
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size, 24, 2, 3, 1, None, 35, context)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def publish(folder, tokenizer: Tokenizer, end: str) -> None:
    """Write a published-looking folder: a random Llama by Transformers, a tokenizer by its own library."""
    tokenizer.save(str(folder / "tokenizer.json"))
    number = tokenizer.token_to_id(end)
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=tokenizer.get_vocab_size(), eos_token_id=number,
                                         bos_token_id=number))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)


def byte_level(documents) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"],
                                                                 initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def sentence_piece(documents) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


@torch.no_grad()
@pytest.mark.parametrize(("kind", "end"), [(byte_level, "<|endoftext|>"), (sentence_piece, "</s>")])
def test_bits_per_byte_of_a_published_folder_are_those_of_a_hand_computation(kind, end, documents, tmp_path):
    publish(tmp_path, kind(documents), end)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    library = AutoTokenizer.from_pretrained(tmp_path)
    mark = library.convert_tokens_to_ids(end)
    found = measure(GPT.from_pretrained(tmp_path), open_tokenizer(tmp_path), documents, window=11)
    for i, text in enumerate(documents):
        ids, bits = [mark, *library(text, add_special_tokens=False)["input_ids"], mark], []
        # The rule for long texts: 11 tokens are guessed, then the last of them begins the next piece.
        for at in range(0, len(ids) - 1, 11):
            piece = torch.tensor(ids[at : at + 12])
            scores = theirs(piece[None, :-1]).logits[0].log_softmax(-1)
            bits += [-scores[t, token].item() / math.log(2) for t, token in enumerate(piece[1:])]
        assert found.text[i] == pytest.approx(sum(bits[:-1]), rel=1e-4, abs=1e-4)
        assert found.end[i] == pytest.approx(bits[-1], rel=1e-4)
        assert found.size[i] == len(text.encode())


def test_the_trainer_and_the_evaluation_agree(documents, tokenizer):
    model, rows = little_model(300), TokenRows(documents, tokenizer, 16)
    found = measure(model, tokenizer, documents, window=16)
    assert (found.text + found.end).sum() / found.size.sum() == pytest.approx(bits_per_byte(model, rows), rel=1e-5)


def test_how_pieces_are_batched_changes_nothing(documents, tokenizer, monkeypatch):
    model = little_model(300).train()
    whole = measure(model, tokenizer, documents, window=7)
    monkeypatch.setattr(ch09_evaluation, "MOST_SCORES", 300 * 20)
    again = measure(model, tokenizer, documents, window=7)
    np.testing.assert_allclose(again.text, whole.text, rtol=1e-5)
    assert model.training
    pieces = [(i, 0, length) for i, length in enumerate([1, 2, 2, 5, 6, 30])]
    groups = list(batches(pieces, 12))
    assert sum(groups, []) == pieces and [len(group) for group in groups] == [3, 2, 1]


def test_the_interval_holds_the_truth_as_often_as_it_says():
    # Documents of unequal lengths, whose bits per byte are spread around 2 by a known law.
    dice, held = np.random.default_rng(0), 0
    for trial in range(400):
        size = dice.integers(50, 400, 80)
        bits = size * dice.gamma(4.0, 0.5, 80)
        low, high = bootstrap_interval(bits, size, resamples=300, seed=trial)
        held += low < 2.0 < high
    assert 0.90 <= held / 400 <= 0.98


def test_the_interval_repeats_itself_and_narrows_with_more_documents():
    dice = np.random.default_rng(1)
    size, bits = np.full(400, 100), dice.normal(200, 30, 400)
    low, high = bootstrap_interval(bits, size)
    assert (low, high) == bootstrap_interval(bits, size) != bootstrap_interval(bits, size, seed=1)
    # The mean of n documents varies by 0.3/√n bits per byte; 1.96 of that lies on either side.
    assert high - low == pytest.approx(2 * 1.96 * 0.3 / math.sqrt(400), rel=0.15)
    few = bootstrap_interval(bits[:100], size[:100])
    assert few[1] - few[0] == pytest.approx(2 * (high - low), rel=0.25)
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_interval(bits[:1], size[:1])


def test_one_document_has_no_interval_and_a_window_must_fit(documents, tokenizer):
    model = little_model(300)
    assert any("no interval" in line for line in evaluate(model, tokenizer, documents[:1]))
    assert any("windows of 16 tokens" in line for line in evaluate(model, tokenizer, documents))
    for window in (0, 17):
        with pytest.raises(ValueError, match="it must be 1 to 16"):
            evaluate(model, tokenizer, documents, window)
    with pytest.raises(ValueError, match="no text"):
        evaluate(model, tokenizer, [""])


def test_a_run_is_examined_on_what_it_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(f"document number {i}" for i in range(99)))
    settings = {"data": str(tmp_path / "a.txt"), "text_field": "text", "clean": False, "train": {"seed": 3}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    documents, floor = held_out(tmp_path, None, 1000)
    assert 0 < len(documents) < 30 and floor is None
    assert held_out(tmp_path, None, 2)[0] == documents[:2]
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="settings.json cannot be read"):
        held_out(tmp_path, None, 1000)
    with pytest.raises(ValueError, match="--documents is 0"):
        held_out(tmp_path, None, 0)


def test_eval_of_the_storyteller_gives_what_its_card_says(capsys):
    assert main.main(["eval", "--model", str(main.STORYTELLER), "--documents", "40"]) == 0
    out = capsys.readouterr().out
    assert "40 held-out documents" in out and "95 % interval 0." in out and "floor 0." in out
    assert main.main(["eval", "--model", str(main.STORYTELLER), "--data", "/nowhere.txt"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
