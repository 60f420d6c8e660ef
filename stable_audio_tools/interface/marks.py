"""Marks that a visitor draws on a picture of audio: spans on a waveform, areas on a spectrogram, and both as text."""

import re
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from stable_audio_tools.core.config.sentences import show
from stable_audio_tools.data.pictures import bands_image
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.request import LATEST, Span, joined, parse_spans
from stable_audio_tools.mel.pretransform import MelPretransform

__all__ = [
    "LATEST",
    "Area",
    "add_drag",
    "add_rectangle",
    "keep_mask",
    "mel_of",
    "parse_areas",
    "parse_spans",
    "show_areas",
    "show_spans",
    "spectrogram_of",
    "waveform_image",
]

WIDTH = 900
_WAVEFORM_HEIGHT, _SPECTROGRAM_HEIGHT = 150, 300
_PAPER, _WAVE, _AXIS = (250, 250, 252), (79, 18, 123), (205, 205, 215)
_MARK, _MARKED_WAVE = (254, 226, 205), (229, 80, 60)
_EDGE = (255, 255, 255)
_SMALLEST_DRAG = 0.005  # of the width; less is a click
_MOST_BANDS = 10_000
_NUMBER = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*"
_AREA = re.compile(rf"{_NUMBER}-{_NUMBER}(?::{_NUMBER}-{_NUMBER})?")


# ------------------------------------------------------------------ spans of a waveform


def show_spans(spans: list[Span]) -> str:
    """Format spans as text that `parse_spans` reads."""
    return ", ".join(f"{start:g}-{end:g}" for start, end in spans)


def add_drag(text: str | None, drag: str, seconds: float) -> str:
    """Add a dragged span, two fractions of the picture's width such as `"0.25 0.5"`, to spans given as text."""
    ends = sorted(_fractions(drag))
    if len(ends) != 2 or ends[1] - ends[0] < _SMALLEST_DRAG:
        return text or ""
    start, end = (round(fraction * seconds, 2) for fraction in ends)
    return show_spans(joined([*parse_spans(text), (start, end)])) if end > start else text or ""


def waveform_image(audio: Tensor, sample_rate: int, spans: list[Span], width: int = WIDTH) -> Image.Image:
    """Draw the peak of (c, n) audio per column, with the spans highlighted."""
    loudness = torch.nan_to_num(audio.detach().float().abs()).amax(0) if audio.numel() else torch.zeros(1)
    edges, values = np.linspace(0, len(loudness), width + 1).astype(int), loudness.cpu().numpy()
    peaks = np.array([values[left : max(right, left + 1)].max(initial=0) for left, right in pairwise(edges)])
    peaks = peaks / max(float(peaks.max()), 1e-6)
    seconds = max(audio.shape[-1], 1) / sample_rate
    marked = np.zeros(width, bool)
    for start, end in spans:
        left, right = (min(round(place / seconds * width), width) for place in (start, end))
        marked[left : max(right, left + 1)] = True
    picture = Image.new("RGB", (width, _WAVEFORM_HEIGHT), _PAPER)
    draw, middle = ImageDraw.Draw(picture), _WAVEFORM_HEIGHT // 2
    for column in np.flatnonzero(marked).tolist():
        draw.line([(column, 0), (column, _WAVEFORM_HEIGHT)], _MARK)
    draw.line([(0, middle), (width, middle)], _AXIS)
    for column, peak in enumerate(peaks):
        reach = round(float(peak) * (middle - 6))
        draw.line([(column, middle - reach), (column, middle + reach)], _MARKED_WAVE if marked[column] else _WAVE)
    return picture


def _fractions(drag: str) -> list[float]:
    return [min(max(float(place), 0.0), 1.0) for place in drag.split()]


# ------------------------------------------------------------------ areas of a spectrogram


class Area(NamedTuple):
    """A time span in seconds and a range of bands, counted from 0 at the bottom; all bands if `high` is None."""

    start: float
    end: float
    low: int = 0
    high: int | None = None


def mel_of(model: AudioModel) -> MelPretransform | None:
    """Return the mel transform of a diffusion model of spectrograms, None for other models."""
    codec = getattr(model.module, "pretransform", None)
    if codec is None or model.facts.objective is None:
        return None
    return next((part for part in codec.modules() if isinstance(part, MelPretransform)), None)


def parse_areas(text: str | None) -> list[Area]:
    """Parse areas such as `"0.5-1.2:10-40, 3-4"`: seconds, and after a colon bands."""
    areas = []
    for part in filter(str.strip, re.split(r"[,;\n]", text or "")):
        match, written = _AREA.fullmatch(part), show(part.strip())
        if match is None:
            raise ValueError(f"areas: {written} is not an area; write seconds and bands, such as 0.5-1.2:10-40, or 3-4")
        start, end, *bands = (float(number) for number in match.groups() if number is not None)
        if max(start, end) > LATEST or max(bands, default=0) > _MOST_BANDS:
            raise ValueError(f"areas: {written} is beyond {LATEST:g} s or {_MOST_BANDS} bands; write smaller numbers")
        low, high = (round(bands[0]), round(bands[1])) if bands else (0, None)
        if start >= end or (high is not None and low >= high):
            raise ValueError(f"areas: {written} ends before it starts")
        areas.append(Area(start, end, low, high))
    return areas


def show_areas(areas: list[Area]) -> str:
    """Format areas as text that `parse_areas` reads."""
    return ", ".join(
        f"{area.start:g}-{area.end:g}" + ("" if area.high is None else f":{area.low}-{area.high}") for area in areas
    )


def add_rectangle(text: str | None, drag: str, seconds: float, bands: int) -> str:
    """Add a dragged rectangle to areas given as text.

    `drag` holds two fractions of the width and two of the height from the top, such as `"0.25 0.5 0.1 0.4"`.
    """
    corners = _fractions(drag)
    if len(corners) != 4:
        return text or ""
    left, right, top, bottom = *sorted(corners[:2]), *sorted(corners[2:])
    low, high = round((1 - bottom) * bands), round((1 - top) * bands)
    start, end = (round(fraction * seconds, 2) for fraction in (left, right))
    if end <= start or high <= low:  # a click
        return text or ""
    return show_areas([*parse_areas(text), Area(start, end, low, high)])


def keep_mask(areas: list[Area], mel: MelPretransform, frames: int) -> Tensor:
    """Return a mask (bands, frames): 0 where audio is regenerated, 1 elsewhere."""
    bands, rate = mel.transform.bands.n_mels, mel.sample_rate / mel.downsampling_ratio
    mask = torch.ones(bands, frames)
    for area in areas:
        if area.high is not None and area.high > bands:
            raise ValueError(f"areas: {show_areas([area])} names more than the {bands} bands of the model")
        mask[area.low : area.high, round(area.start * rate) : round(area.end * rate)] = 0
    if mask.all():
        raise ValueError("areas: none overlaps the audio; draw the areas to regenerate on the spectrogram")
    return mask


def spectrogram_of(audio: Tensor, mel: MelPretransform, areas: list[Area]) -> Image.Image:
    """Draw (c, n) audio as the model's spectrogram, with the areas framed."""
    samples = max(audio.shape[-1] // mel.downsampling_ratio, 1) * mel.downsampling_ratio
    padded = torch.nn.functional.pad(audio.mean(0)[None, None], (0, max(0, samples - audio.shape[-1])))
    with torch.no_grad():
        bands = mel.encode(padded[..., :samples].expand(1, mel.io_channels, -1))[0, : mel.transform.bands.n_mels]
    picture = bands_image(bands, WIDTH, _SPECTROGRAM_HEIGHT)
    draw, seconds = ImageDraw.Draw(picture), samples / mel.sample_rate
    for area in areas:
        high = len(bands) if area.high is None else area.high
        left, right = (place / seconds * WIDTH for place in (area.start, min(area.end, seconds)))
        top, bottom = (_SPECTROGRAM_HEIGHT * (1 - place / len(bands)) for place in (high, area.low))
        draw.rectangle([left, top, max(right, left + 1), bottom], outline=_EDGE, width=3)
    return picture
