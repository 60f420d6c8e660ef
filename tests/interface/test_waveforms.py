"""Spans as text, spans drawn with the mouse, and the picture they are drawn on."""

import numpy as np
import pytest
import torch

from stable_audio_tools.interface.marks import add_drag, parse_areas, parse_spans, show_spans, waveform_image


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("", []),
        (None, []),
        ("0.5-1.2", [(0.5, 1.2)]),
        ("3 - 4, .5-1", [(0.5, 1.0), (3.0, 4.0)]),
        ("1-2; 1.5 to 3\n5-6", [(1.0, 3.0), (5.0, 6.0)]),
    ],
)
def test_spans_are_read(text: str, spans: list[tuple[float, float]]) -> None:
    assert parse_spans(text) == spans
    assert parse_spans(show_spans(spans)) == spans


@pytest.mark.parametrize(("text", "match"), [("1", "is not a span"), ("-1-2", "is not a span"), ("2-1", "ends before")])
def test_what_is_no_span_is_told(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse_spans(text)


@pytest.mark.parametrize("number", ["86401", "9" * 400])
def test_numbers_beyond_all_audio_are_told(number: str) -> None:
    for parse, text in (
        (parse_spans, f"1-{number}"),
        (parse_spans, f"{number}-{number}1"),
        (parse_areas, f"{number}-{number}1:1-2"),
        (parse_areas, f"1-2:3-{number}"),
    ):
        with pytest.raises(ValueError, match="is beyond 86400 s") as caught:
            parse(text)
        assert len(str(caught.value)) < 200


def test_a_drag_adds_a_span_in_either_direction() -> None:
    assert add_drag("", "0.25 0.5", 8) == "2-4"
    assert add_drag("2-4", "1.2 0.75", 8) == "2-4, 6-8"
    assert add_drag("2-4", "0.3 0.7", 8) == "2-5.6"
    assert add_drag("2-4", "0.5 0.501", 8) == "2-4", "a click is not a span"


def test_the_picture_shows_loudness_and_marks() -> None:
    audio = torch.cat([torch.zeros(1, 500), torch.ones(1, 500)], dim=1)
    pixels = np.asarray(waveform_image(audio, 1000, [(0.75, 1.0)], width=100)).astype(int)
    dark = (pixels.sum(-1) < 400).sum(0)
    assert dark[:50].max() == 1 and dark[50:75].min() > 100
    assert (pixels[5, 75:] != pixels[5, 74]).any(-1).all(), "marked columns have another ground"
    assert np.isfinite(np.asarray(waveform_image(torch.zeros(2, 0), 1000, []))).all()
