"""What a control takes, by its kind, and the sentence about anything else."""

import math
from typing import Any

import pytest

from stable_audio_tools.interface.controls import Control
from stable_audio_tools.interface.inputs import checked

STEPS = Control("steps", "slider", "Steps", 50, 1, 500, 1)
SCALE = Control("scale", "slider", "Scale", 7, 0, 25, 0.1)
SEED = Control("seed", "integer", "Seed", -1, -1, 99)
SIGMA = Control("sigma", "number", "Noise", 1, 0.1, 10)
CHOICE = Control("kind", "choice", "Kind", "a", choices=("a", "b"))
SWITCH = Control("use", "switch", "Use", False)
PROMPT = Control("prompt", "prompt", "Prompt")
SPANS = Control("spans", "spans", "Spans")
AUDIO = Control("audio", "audio", "Audio")


def test_what_fits_is_taken() -> None:
    controls = [STEPS, SCALE, SEED, SIGMA, CHOICE, SWITCH, PROMPT, SPANS, AUDIO]
    upload = {"path": "/cache/a.wav", "meta": {"_type": "gradio.FileData"}}
    values = checked(controls, [2.0, 7, -1, 0.5, "b", True, "é", None, upload])
    told = {"steps": 2, "scale": 7, "seed": -1, "sigma": 0.5, "kind": "b", "use": True}
    assert values == {**told, "prompt": "é", "spans": None, "audio": "/cache/a.wav"}
    assert isinstance(values["steps"], int)
    assert checked([AUDIO], [None]) == {"audio": None}


@pytest.mark.parametrize(
    ("control", "allowed", "wrong"),
    [
        (STEPS, "a whole number from 1 to 500", ["x", 0, 501, 2.5, None, True, [1], {}, math.nan, math.inf, 10**400]),
        (SEED, "a whole number from -1 to 99", ["1", -2, 0.5, 10**400, -(10**400)]),
        (SCALE, "a number from 0 to 25", ["7", -0.1, 26, False, math.nan, -math.inf]),
        (SIGMA, "a number from 0.1 to 10", [0, 1e300]),
        (CHOICE, "one of a, b", ["c", None, 1, ["a"]]),
        (SWITCH, "true or false", ["off", 1, None]),
        (PROMPT, "text", [5, ["a"], {"a": 1}, "\ud800"]),
        (SPANS, "text", [5]),
    ],
)
def test_what_does_not_fit_is_told(control: Control, allowed: str, wrong: list[Any]) -> None:
    told = rf"^{control.label} \({control.name}\): must be {allowed}, got "
    for value in wrong:
        with pytest.raises(ValueError, match=told) as caught:
            checked([control], [value])
        assert len(str(caught.value)) < 160
