"""Chapter 8, the run folder: no run overwrites another, and what is written can be read again."""

import json

import pytest

from chapters.ch08_run import draw_loss_curve, new_run_folder, read_metrics, write_card


def test_a_second_run_takes_a_new_name(tmp_path):
    folders = [new_run_folder(tmp_path / "runs", name) for name in ("a", "a", "b", "a")]
    assert [folder.name for folder in folders] == ["a", "a-2", "b", "a-3"]
    assert all(folder.is_dir() for folder in folders)


def test_metrics_are_read_in_the_order_they_were_written(tmp_path):
    lines = [{"step": step, "loss": 1 / step if step else None, "validation_bits_per_byte": 2} for step in (0, 5, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_metrics(tmp_path) == lines


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b"5", b"null", b'{"step": 3}', b"\xff", b"[" * 100_000])
def test_a_damaged_line_of_the_metrics_is_named(damaged, tmp_path):
    good = b'{"step": 0, "loss": null, "validation_bits_per_byte": 3.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + damaged + b"\n" + good)
    with pytest.raises(ValueError, match="metrics.jsonl: line 2 is damaged; mend or remove it$"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("floor", [None, 0.2])
@pytest.mark.parametrize("parse", [{}, {"stories_that_parse": 0.5}])
def test_the_loss_curve_is_drawn_with_what_there_is(tmp_path, floor, parse):
    metrics = [
        {"step": step, "loss": loss, "validation_bits_per_byte": 2.0 - step / 10} | parse
        for step, loss in ((0, None), (4, 5.0), (9, 3.0))
    ]
    draw_loss_curve(metrics, tmp_path / "loss.png", bytes_per_token=4.0, floor=floor)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_card_names_data_size_and_every_measurement(tmp_path):
    write_card(
        tmp_path,
        {"bits per byte": "0.251", "stories that parse": "96 %"},
        name="storyteller",
        parameters=1234567,
        data="stories",
        steps=1600,
        tokens_per_step=1536,
        seed=3,
        command="python main.py",
    )
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for words in (
        "# storyteller",
        "1,234,567",
        "`stories`",
        "1600 steps",
        "| bits per byte | 0.251 |",
        "| stories that parse | 96 % |",
        "`python main.py`",
    ):
        assert words in card
    assert card.startswith("---\n")
