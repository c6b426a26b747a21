"""Console lines, pictures, mixes and the summary."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from surgrec.loaders.sampler import Mix

from surgrec.training.console import Console, format_duration
from surgrec.training.mix import SHOWN, mix_scalars
from surgrec.training.panels import BORDER, panel, save_png
from surgrec.training.run_folder import RunFolder
from surgrec.training.summary import summarise, summary_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1 min 00 s"),
        (250, "4 min 10 s"),
        (11_100, "3 h 05 min"),
        (187_200, "2 d 4 h"),
        (-3, "0 s"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_that_is_rewritten():
    stream = Terminal()
    console = Console(10, 0, stream=stream)
    console.progress(5, 0.5, 1e-3, 12.0, 0.25)
    console.progress(6, 0.4, 1e-3, 12.0, 0.25)
    assert "\n" not in stream.getvalue()
    assert "step 6/10  60%  loss 0.4000  lr 1.00e-03  12.0 clips/s  data wait 25%  left " in stream.getvalue()
    console.say("done")
    assert stream.getvalue().endswith("\ndone\n")


def test_a_file_gets_plain_lines_and_other_ranks_say_nothing():
    stream, silent = io.StringIO(), io.StringIO()
    for out, enabled in ((stream, True), (silent, False)):
        console = Console(10, 0, enabled=enabled, stream=out)
        console.say("begin")
        console.progress(5, 0.5, 1e-3, 12.0, 0.25)
        console.close()
    assert silent.getvalue() == ""
    assert stream.getvalue().splitlines()[0] == "begin"
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().endswith("\n")


def test_panel_shows_three_rows_a_clip_and_one_column_a_tubelet(tmp_path):
    kinds = [torch.full((2, 4, 6, 6, 3), value, dtype=torch.uint8) for value in (10, 20, 30)]
    kinds[0][1] = 40  # the second clip
    picture = panel(*kinds, tubelet=2)
    assert picture.shape == (2 * (3 * (6 + BORDER) + 3 * BORDER) - 4 * BORDER, 2 * (6 + BORDER) - BORDER, 3)
    column = picture[:, 0, 0]
    assert [int(v) for v in dict.fromkeys(column.tolist()) if v != 255] == [10, 20, 30, 40]
    assert np.array_equal(picture[:6, :6], np.full((6, 6, 3), 10))
    assert (picture[6:8] == 255).all()
    save_png(tmp_path / "p.png", picture)
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(tmp_path / "p.png")), picture)


def test_panel_of_long_clips_has_eight_columns():
    clips = torch.zeros(1, 64, 4, 4, 3, dtype=torch.uint8)
    clips[:] = torch.arange(64, dtype=torch.uint8)[None, :, None, None, None]
    picture = panel(clips, clips, clips, tubelet=2)
    assert [int(picture[0, x, 0]) for x in range(0, picture.shape[1], 4 + BORDER)] == [
        0,
        8,
        18,
        26,
        36,
        44,
        54,
        62,
    ]


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 1000), min_size=1))
def test_mix_shares_add_up(counts):
    expected = {name: 1 / len(counts) for name in counts}
    scalars = mix_scalars(Mix(counts, counts), Mix(expected, expected))
    drawn = [scalars[f"mix_domain/{name}/drawn"] for name in counts]
    assert sum(drawn) == pytest.approx(1.0 if sum(counts.values()) else 0.0)


def test_only_the_largest_data_sets_have_curves():
    shares = {f"d{i}": float(i) for i in range(SHOWN + 20)}
    scalars = mix_scalars(Mix({"d": 1}, dict.fromkeys(shares, 1)), Mix({"d": 1.0}, shares))
    shown = {name.split("/")[1] for name in scalars if name.startswith("mix_dataset")}
    assert shown == {f"d{i}" for i in range(20, SHOWN + 20)}


def test_summary(tmp_path):
    run = RunFolder(tmp_path)
    assert summarise(run) is None
    points = [
        {
            "step": s,
            "loss": loss,
            "speed/clips_per_second": rate,
            "speed/data_wait": 0.5,
            "data/ledger": 3.0,
        }
        for s, loss, rate in ((1, 1.0, 1.0), (10, 0.5, 8.0), (20, 0.25, 12.0))
    ]
    run.metrics.write_text("".join(json.dumps(point) + "\n" for point in points))
    text = summary_text(run, tmp_path / "step-00000020")
    assert "loss: 1.0000 at step 1, 0.2500 at step 20" in text
    assert "clips/s: 10.0; waiting for data: 50% of the time" in text
    assert "could not be decoded: 3 (reasons in" in text
    assert f"checkpoint: {tmp_path / 'step-00000020'}" in text
    assert f"tensorboard --logdir {tmp_path}" in text


def test_summary_names_a_collapse(tmp_path):
    run = RunFolder(tmp_path)
    rates = {"loss": 0.1, "speed/clips_per_second": 1.0, "speed/data_wait": 0.0, "data/ledger": 0.0}
    points = [rates | {"step": s, "monitor/collapsed": float(s >= 30)} for s in (10, 20, 30, 40)]
    run.metrics.write_text("".join(json.dumps(point) + "\n" for point in points[:2]))
    assert "COLLAPSE" not in summary_text(run, None)
    run.metrics.write_text("".join(json.dumps(point) + "\n" for point in points))
    assert "COLLAPSE at step 30" in summary_text(run, None)
