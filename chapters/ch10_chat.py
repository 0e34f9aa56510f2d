"""A story told in turns: you write, the model goes on from all that was said.

    story so far + your line   ->   the model's words, which belong to the story from then on

The model of this book knows no questions and answers, only stories. So a talk with it is one story with two
tellers, and the whole of it is the prompt each time.
"""

import dataclasses
from collections.abc import Sequence

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch09_inference import SamplingConfig, stream_story
from chapters.ch10_command_line import say
from corpora.stories import OPENING


def chat(model: GPT, tokenizer: BPETokenizer, config: SamplingConfig, stops: Sequence[str]) -> None:
    """Tell stories in turns with whoever types, until there is no more to read.

    The model ends its part before a text of `stops`. An empty line begins a new story, and so does a story that fills
    the context.
    """
    # 1. Explain the game once.
    print(f"Begin a story, for example: {OPENING}. An empty line starts a new one, Ctrl-D ends.")
    story = ""
    # 2. Take turns until there is no more to read.
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        # 3. Start anew on an empty line; otherwise go on. The story so far is the prompt: so the model remembers.
        story = f"{story} {line}".strip() if line.strip() else ""
        if len(tokenizer.encode(story)) + 1 >= model.config.max_seq_len:
            print(f"(The story fills the model's {model.config.max_seq_len} tokens. Begin a new one.)")
            story = ""
        # 4. Draw with other dice each time, or the same words would come again.
        if story:
            story += say(stream_story(model, tokenizer, story, config, stops))
            print()
            config = dataclasses.replace(config, seed=config.seed + 1)


