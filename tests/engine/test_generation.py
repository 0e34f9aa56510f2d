"""Generation: the greedy text of chapter 9, streamed without split letters; batches are many texts made alone."""

import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch09_config import SamplingConfig as ChapterConfig
from chapters.ch09_inference import stream_story
from engine import Engine, load_model, machine
from engine.generation import TextStream, next_tokens
from engine.model import Model
from engine.sampling import SamplingConfig
from engine.tokenizer import ByteLevelTokenizer, load_tokenizer
from engine.weights import load_weights
from tests.chapters.test_ch07_published import theirs_of
from tests.engine.test_model import KINDS, STORYTELLER, open_model, publish_any, some_ids

GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The storyteller, on plain NumPy."""
    return load_model(STORYTELLER, fast=False)


@pytest.mark.parametrize("prompt", ["Once upon a time", "", "The cat\n", "Ünïcödé, 日本 🎈"])
def test_the_storyteller_tells_what_the_chapters_tell(engine, prompt):
    model, tokenizer = GPT.from_pretrained(STORYTELLER), BPETokenizer.load(STORYTELLER)
    theirs = "".join(stream_story(model, tokenizer, prompt, ChapterConfig(temperature=0, max_new_tokens=80)))
    assert "".join(engine.generate(prompt, max_new_tokens=80, **GREEDY)) == theirs


def test_the_small_model_of_llama2c_tells_its_known_story():
    data = os.environ.get("BOOK_TEST_DATA")
    if not data or not (path := Path(data) / "stories260K" / "stories260K.bin").exists():
        pytest.skip("needs stories260K.bin below the folder that BOOK_TEST_DATA names")
    known = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    teller = load_model(path, fast=False)
    assert "".join(teller.generate("", max_new_tokens=60, **GREEDY)).startswith(known)
    assert "".join(teller.generate("Once upon a time", max_new_tokens=60, **GREEDY)).startswith(known[16:])


@pytest.mark.parametrize("name", KINDS)
def test_a_published_model_continues_as_in_transformers(name, tmp_path):
    prompt, folder = some_ids(13), publish_any(name, tmp_path, torch.bfloat16)
    theirs = theirs_of(folder).generate(torch.from_numpy(prompt)[None], max_new_tokens=50, do_sample=False,
                                        attention_mask=torch.ones(1, 13), pad_token_id=0)[0, 13:].tolist()
    drawn = list(next_tokens(open_model(folder), [prompt.tolist()], SamplingConfig(temperature=0.0, max_new_tokens=50)))
    assert drawn == [*((0, token) for token in theirs), (0, None)]


@pytest.mark.parametrize("options", [GREEDY, {"temperature": 1.2, "repetition_penalty": 1.3, "top_p": 0.9, "seed": 5}])
def test_a_batch_of_unequal_prompts_says_what_each_says_alone(engine, options):
    prompts, told = ["The cat", "", "Once upon a time there was a little dog who", "A"], {}
    for number, piece in engine.generate_batch(prompts, max_new_tokens=40, stop=iter(["."]), **options):
        told[number] = told.get(number, "") + piece
    for number, prompt in enumerate(prompts):
        alone = options | {"seed": options.get("seed", 0) + number}
        assert told[number] == "".join(engine.generate(prompt, max_new_tokens=40, stop=["."], **alone))


def test_one_seed_tells_one_story_and_another_seed_another(engine):
    told = ["".join(engine.generate("Once", max_new_tokens=20, temperature=1.0, seed=seed)) for seed in (3, 3, 4)]
    assert told[0] == told[1] != told[2]


class Fixed:
    """A model that says the same ids again and again, whatever it reads."""

    def __init__(self, ids, vocab_size=1123, context=50):
        self.ids, self.reads, self.rooms = ids, [], []
        self.config = type("Config", (), {"max_seq_len": context, "vocab_size": vocab_size, "eos_ids": (1122,)})

    def new_cache(self, max_len):
        self.rooms.append(max_len)
        return [0]

    def forward(self, ids, cache, last_only):
        self.reads.append(len(ids))
        cache[0] += 1
        return (np.arange(self.config.vocab_size) == self.ids[(cache[0] - 1) % len(self.ids)])[None].astype(np.float32)


def test_the_prompt_is_read_in_one_pass_and_then_one_token_at_a_time(engine):
    model = Fixed([5, 6, 7])
    assert len(list(next_tokens(model, [[1] * 9], SamplingConfig(**GREEDY, max_new_tokens=4)))) == 5
    assert model.reads == [9, 1, 1, 1]


def test_a_text_ends_at_the_end_token_at_the_limit_and_where_the_context_is_full(engine):
    def tokens(model, limit):
        config = SamplingConfig(**GREEDY, max_new_tokens=limit)
        return [token for _, token in next_tokens(model, [[1, 2]], config, model.config.eos_ids)]

    assert tokens(Fixed([5, 6, 1122, 7]), 9) == [5, 6, None]
    assert tokens(Fixed([5, 6, 7]), 4) == [5, 6, 7, 5, None]
    assert tokens(small := Fixed([5, 6, 7], context=5), 9) == [5, 6, 7, None]
    assert small.rooms == [5]


def test_a_model_that_names_no_end_stops_at_the_tokenizers(engine):
    model = Fixed([5])
    for own, stops in (((5, 9), (5, 9)), ((), (1122,))):
        model.config.eos_ids = own
        assert Engine(model, engine.tokenizer).stop_ids == stops


def test_the_texts_of_a_batch_are_read_together(engine, monkeypatch):
    sizes, read = [], Model.forward_batch
    monkeypatch.setattr(Model, "forward_batch", lambda self, texts, *more, **options: (
        sizes.append([len(text) for text in texts]), read(self, texts, *more, **options))[1])
    prompts = [[1, 2, 3], [4]]
    list(next_tokens(engine.model, prompts, SamplingConfig(**GREEDY, max_new_tokens=3)))
    assert sizes == [[3, 1], [1, 1], [1, 1]]


def test_a_text_that_has_ended_leaves_the_batch(engine):
    model = Fixed([5])
    drawn = next_tokens(model, [[1], [1, 2]], SamplingConfig(**GREEDY, max_new_tokens=3), ended={0})
    assert list(drawn) == [(0, 5), (0, None), (1, 5), (1, 5), (1, 5), (1, None)] and model.reads == [1, 2, 1, 1]


def test_a_stop_string_ends_the_text_and_is_not_said_though_it_comes_in_pieces(engine):
    ids = engine.tokenizer.encode("The cat sat. The end of it")
    model = Fixed(ids)
    said = "".join(Engine(model, engine.tokenizer).generate("x", stop=["at. Th", "nowhere"], **GREEDY))
    assert said == "The cat s" and len(model.reads) < len(ids)
    options = GREEDY | {"max_new_tokens": len(ids)}
    whole = "".join(Engine(Fixed(ids), engine.tokenizer).generate("x", ["The end of it!"], **options))
    assert whole == "The cat sat. The end of it"


@functools.cache
def storyteller_tokenizer() -> ByteLevelTokenizer:
    """Return the storyteller's tokenizer, opened once for all the texts that Hypothesis draws."""
    return load_tokenizer(STORYTELLER)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("ab. é日🎈"), max_size=12), stop=st.text(st.sampled_from("ab. 🎈"), max_size=3))
def test_no_letter_is_ever_split_and_all_before_the_stop_is_said(text, stop):
    tokenizer = storyteller_tokenizer()
    stream, said = TextStream(tokenizer, tokenizer.start_ids[0], [stop]), []
    for token in tokenizer.encode(text):
        if not stream.ended:
            said.append(stream.push(token))
    said.append(stream.finish())
    assert "".join(said) == (text.split(stop)[0] if stop else text)
    assert stream.ended == bool(stop and stop in text) and "\ufffd" not in "".join(said)


def test_no_more_is_held_back_than_a_stop_string_may_need(engine):
    letter = engine.tokenizer.encode("a")[0]
    for stops, said in (([], ["a", "a", "a"]), (["xyz"], ["", "", "a"]), (["wxyz"], ["", "", ""])):
        stream = TextStream(engine.tokenizer, letter, stops)
        assert [stream.push(letter) for _ in range(3)] == said


def test_of_two_stop_strings_the_earlier_in_the_text_counts(engine):
    stream = TextStream(engine.tokenizer, engine.tokenizer.start_ids[0], ["e", "n"])
    assert "".join(map(stream.push, engine.tokenizer.encode("Once"))) == "O" and stream.ended


def test_the_loop_itself_refuses_what_cannot_be_continued():
    for prompts in ([], [[]], [[1] * 5]):
        with pytest.raises(ValueError, match="it must have 1 to 4, give another one"):
            next(next_tokens(Fixed([1], context=5), prompts, SamplingConfig(**GREEDY)))


def test_bytes_that_never_become_a_letter_are_shown_as_such(engine):
    half = engine.tokenizer.encode("🎈")[:1]
    assert "".join(Engine(Fixed(half), engine.tokenizer).generate("x", max_new_tokens=1, **GREEDY)) == "\ufffd"


def test_a_row_without_a_token_says_nothing(engine):
    model = Fixed([1130, engine.tokenizer.encode("a")[0]], vocab_size=1140)
    assert "".join(Engine(model, engine.tokenizer).generate("x", max_new_tokens=2, **GREEDY)) == "a"


def test_what_cannot_be_continued_is_refused_at_the_call_and_never_cut(engine):
    with pytest.raises(ValueError, match="it must have 1 to 159"):
        engine.generate("word " * 300)
    with pytest.raises(ValueError, match="the prompt has 0 tokens"):
        engine.generate_batch([])
    with pytest.raises(ValueError, match="top_p is 0.0"):
        engine.generate("x", top_p=0.0)


def test_forward_of_the_engine_is_the_models(engine):
    ids = some_ids(9)
    np.testing.assert_array_equal(engine.forward(ids), engine.model.forward(ids))


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_a_story_is_told_in_fewer_bits_too(dtype):
    teller = load_model(STORYTELLER, dtype, fast=False)
    assert "".join(teller.generate("Once upon a time", max_new_tokens=25, **GREEDY)).startswith(", in a sunny castle")


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path):
    publish_any("gpt2 for words", tmp_path)
    for arguments, words in (((STORYTELLER, "int3"), "dtype is 'int3': it must be one of fp32"),
                             ((tmp_path / "none",), "none"), ((tmp_path,), "tokenizer.json"),
                             ((tmp_path, "fp32", True, None, STORYTELLER), "fast=True")):
        with pytest.raises((ValueError, OSError), match=words) as caught:
            load_model(*arguments)
        assert "\n" not in str(caught.value)


def test_compiled_loops_are_taken_where_they_cover_the_model_and_as_asked_for(tmp_path):
    if not machine.HAS_VNNI:
        pytest.skip("this processor has no AVX-512 with VNNI, or Numba is missing")
    wide, narrow = load_model(STORYTELLER).model, load_model(STORYTELLER, "int4", threads=1).model
    assert narrow.threads == 1 and narrow.nbytes < 0.2 * wide.nbytes
    shutil.copytree(STORYTELLER, tmp_path / "other")
    fields = json.loads((STORYTELLER / "config.json").read_text("utf-8")) | {"hidden_act": "gelu"}
    (tmp_path / "other" / "config.json").write_text(json.dumps(fields), "utf-8")
    assert isinstance(load_model(tmp_path / "other").model, Model)


def test_a_gpt2_speaks_on_the_plain_model(tmp_path):
    teller = load_model(publish_any("gpt2 for words", tmp_path), tokenizer=STORYTELLER)
    assert isinstance(teller.model, Model) and load_weights(tmp_path)[0].family == "gpt2"
    assert "".join(teller.generate("Once upon a time", max_new_tokens=5))


@pytest.mark.parametrize("place", ["before every text", "among the words"])
def test_a_tokenizer_of_another_model_is_refused_when_the_model_is_loaded(place, tmp_path):
    publish_any("gpt2 for words", tmp_path)
    content = json.loads((STORYTELLER / "tokenizer.json").read_text("utf-8"))

    # A token that no text becomes may be more than the model knows; one before every text, or among the words, not.
    content["added_tokens"].append({"id": 1123, "content": "<pad>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert "".join(load_model(tmp_path).generate("Once", max_new_tokens=5))
    if place == "before every text":
        piece = {"SpecialToken": {"id": "<pad>"}}
        content["post_processor"] = {"type": "TemplateProcessing", "single": [piece, {"Sequence": {"id": "A"}}],
                                     "special_tokens": {"<pad>": {"ids": [1123]}}}
    else:
        content["model"]["vocab"]["Once"] = 1124
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match="gives the id 112[34], but the model knows only 1123 tokens") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
