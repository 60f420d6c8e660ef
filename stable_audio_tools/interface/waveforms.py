"""The picture of audio on which spans are marked, and spans as text."""

from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from stable_audio_tools.inference.generation.request import LATEST, Span, joined, parse_spans

__all__ = ["LATEST", "add_drag", "parse_spans", "show_spans", "waveform_image"]

WIDTH, HEIGHT = 900, 150
_PAPER, _WAVE, _AXIS = (250, 250, 252), (79, 18, 123), (205, 205, 215)
_MARK, _MARKED_WAVE = (254, 226, 205), (229, 80, 60)


def show_spans(spans: list[Span]) -> str:
    """Pairs of seconds as text."""
    return ", ".join(f"{start:g}-{end:g}" for start, end in spans)


def add_drag(text: str | None, drag: str, seconds: float) -> str:
    """The spans with that of a drag, which is told as two shares of the picture's width: `"0.25 0.5"`."""
    places = sorted(min(max(float(place), 0.0), 1.0) for place in drag.split())
    if len(places) != 2 or places[1] - places[0] < 0.005:  # a click, or a hand that trembled
        return text or ""
    start, end = (round(place * seconds, 2) for place in places)
    return show_spans(joined([*parse_spans(text), (start, end)])) if end > start else text or ""


def waveform_image(audio: Tensor, sample_rate: int, spans: list[Span], width: int = WIDTH) -> Image.Image:
    """Loudest samples of (c, n) audio per column, spans marked."""
    peaks = _peaks(audio, width)
    seconds = max(audio.shape[-1], 1) / sample_rate
    picture = Image.new("RGB", (width, HEIGHT), _PAPER)
    draw = ImageDraw.Draw(picture)
    marked = np.zeros(width, bool)
    for start, end in spans:
        left, right = (min(round(place / seconds * width), width) for place in (start, end))
        marked[left : max(right, left + 1)] = True
    middle = HEIGHT // 2
    for column in range(width):
        if marked[column]:
            draw.line([(column, 0), (column, HEIGHT)], _MARK)
    draw.line([(0, middle), (width, middle)], _AXIS)
    for column, peak in enumerate(peaks):
        reach = round(float(peak) * (middle - 6))
        draw.line([(column, middle - reach), (column, middle + reach)], _MARKED_WAVE if marked[column] else _WAVE)
    return picture


def _peaks(audio: Tensor, width: int) -> np.ndarray:
    """One number from 0 to 1 per column."""
    loudness = torch.nan_to_num(audio.detach().float().abs()).amax(0) if audio.numel() else torch.zeros(1)
    edges = np.linspace(0, len(loudness), width + 1).astype(int)
    values = loudness.cpu().numpy()
    peaks = np.array([values[left : max(right, left + 1)].max(initial=0) for left, right in pairwise(edges)])
    return peaks / max(float(peaks.max()), 1e-6)
