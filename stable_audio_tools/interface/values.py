"""What is asked of a page, checked control by control before anything is made of it."""

from collections.abc import Sequence
from typing import Any

from stable_audio_tools.core.config.sentences import show
from stable_audio_tools.interface.controls import Control

_TEXTS = ("text", "prompt", "spans", "areas")


def checked(controls: Sequence[Control], given: Sequence[Any]) -> dict[str, Any]:
    """Values by the names of their controls, uploads as their paths; ValueError for what a control cannot hold."""
    return {control.name: _checked(control, value) for control, value in zip(controls, given, strict=True)}


def refusal(control: Control, allowed: str, value: Any) -> str:
    """The sentence about a value that a control cannot hold."""
    got = "nothing" if value is None else show(value)
    return f"{control.label} ({control.name}): must be {allowed}, got {got}"


def _checked(control: Control, value: Any) -> Any:
    if control.kind == "audio":
        return None if value is None else value["path"] or None
    if control.kind in _TEXTS:
        return _require(value is None or _is_text(value), control, "text", value)
    if control.kind == "switch":
        return _require(isinstance(value, bool), control, "true or false", value)
    if control.kind == "choice":
        return _require(value in control.choices, control, f"one of {', '.join(control.choices)}", value)
    return _number(control, value)


def _number(control: Control, value: Any) -> Any:
    low, high = control.minimum, control.maximum
    assert low is not None and high is not None, "numbers have bounds"
    whole = control.kind == "integer" or control.step == 1
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    fits = fits and (not whole or value == int(value))
    _require(fits, control, f"a {'whole ' if whole else ''}number from {low} to {high}", value)
    return int(value) if whole else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _require(fits: bool, control: Control, allowed: str, value: Any) -> Any:
    if not fits:
        raise ValueError(refusal(control, allowed, value))
    return value
