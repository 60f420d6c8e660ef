"""Areas of a spectrogram, as text and as drawn on its picture: seconds from left to right, bands from bottom to top."""

import re
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from stable_audio_tools.core.config.sentences import show
from stable_audio_tools.data.pictures import bands_image
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.interface.waveforms import LATEST
from stable_audio_tools.mel.pretransform import MelPretransform

WIDTH, HEIGHT = 900, 300
_MOST_BANDS = 10_000
_EDGE = (255, 255, 255)
_NUMBER = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*"
_AREA = re.compile(rf"{_NUMBER}-{_NUMBER}(?::{_NUMBER}-{_NUMBER})?")


class Area(NamedTuple):
    """Seconds, and bands counted from 0 at the bottom; without bands, all of them."""

    start: float
    end: float
    low: int = 0
    high: int | None = None


def mel_of(model: AudioModel) -> MelPretransform | None:
    """The mel transform of a model of spectrograms."""
    codec = getattr(model.module, "pretransform", None)
    if codec is None or model.facts.objective is None:
        return None
    return next((part for part in codec.modules() if isinstance(part, MelPretransform)), None)


def parse_areas(text: str | None) -> list[Area]:
    """`"0.5-1.2:10-40, 3-4"`: seconds, and after a colon bands."""
    areas = []
    for part in filter(str.strip, re.split(r"[,;\n]", text or "")):
        found, written = _AREA.fullmatch(part), show(part.strip())
        if found is None:
            raise ValueError(f"areas: {written} is none; write seconds and bands, such as 0.5-1.2:10-40, or 3-4")
        start, end, *bands = (float(number) for number in found.groups() if number is not None)
        if max(start, end) > LATEST or max(bands, default=0) > _MOST_BANDS:
            raise ValueError(f"areas: {written} lies beyond {LATEST:g} s or {_MOST_BANDS} bands; write smaller numbers")
        low, high = (round(bands[0]), round(bands[1])) if bands else (0, None)
        if start >= end or (high is not None and low >= high):
            raise ValueError(f"areas: {written} ends before it starts")
        areas.append(Area(start, end, low, high))
    return areas


def show_areas(areas: list[Area]) -> str:
    """Areas as text."""
    return ", ".join(
        f"{area.start:g}-{area.end:g}" + ("" if area.high is None else f":{area.low}-{area.high}") for area in areas
    )


def add_rectangle(text: str | None, drag: str, seconds: float, bands: int) -> str:
    """The areas with that of a drag: shares of the width, then of the height from the top, `"0.25 0.5 0.1 0.4"`."""
    places = [min(max(float(place), 0.0), 1.0) for place in drag.split()]
    if len(places) != 4:
        return text or ""
    left, right, top, bottom = *sorted(places[:2]), *sorted(places[2:])
    low, high = round((1 - bottom) * bands), round((1 - top) * bands)
    start, end = (round(place * seconds, 2) for place in (left, right))
    if end <= start or high <= low:  # a click, or a hand that trembled
        return text or ""
    return show_areas([*parse_areas(text), Area(start, end, low, high)])


def keep_mask(areas: list[Area], mel: MelPretransform, frames: int) -> Tensor:
    """(bands, frames), 0 where something is made anew and 1 elsewhere."""
    bands, rate = mel.transform.bands.n_mels, mel.sample_rate / mel.downsampling_ratio
    mask = torch.ones(bands, frames)
    for area in areas:
        if area.high is not None and area.high > bands:
            raise ValueError(f"areas: there are {bands} bands, and {show_areas([area])} names more")
        mask[area.low : area.high, round(area.start * rate) : round(area.end * rate)] = 0
    if mask.all():
        raise ValueError("areas: none lies within the audio; draw on the spectrogram what is to be made anew")
    return mask


def spectrogram_of(audio: Tensor, mel: MelPretransform, areas: list[Area]) -> Image.Image:
    """The bands (c, n) audio has for the model, areas framed."""
    samples = max(audio.shape[-1] // mel.downsampling_ratio, 1) * mel.downsampling_ratio
    padded = torch.nn.functional.pad(audio.mean(0)[None, None], (0, max(0, samples - audio.shape[-1])))
    with torch.no_grad():
        bands = mel.encode(padded[..., :samples].expand(1, mel.io_channels, -1))[0, : mel.transform.bands.n_mels]
    picture = bands_image(bands, WIDTH, HEIGHT)
    draw, seconds = ImageDraw.Draw(picture), samples / mel.sample_rate
    for area in areas:
        high = len(bands) if area.high is None else area.high
        sides = [place / seconds * WIDTH for place in (area.start, min(area.end, seconds))]
        heights = [HEIGHT * (1 - place / len(bands)) for place in (high, area.low)]
        draw.rectangle([sides[0], heights[0], max(sides[1], sides[0] + 1), heights[1]], outline=_EDGE, width=3)
    return picture
