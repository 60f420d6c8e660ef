"""One generation at a time, told step by step, stopped from outside."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.inference.sampling.watching import Cancelled
from stable_audio_tools.interface.handlers import describe_copies
from stable_audio_tools.interface.runner import Runner

ASKED = {"conditions": {"sound": "rain"}, "seed": 3, "steps": 4}


@pytest.fixture
def runner(loaded: Any) -> Runner:
    return Runner(loaded("tiny_diffusion_cond"))


def test_steps_and_previews_are_told_and_change_nothing(runner: Runner) -> None:
    updates = list(runner.run("me", "generate", ASKED, preview_every=2))
    assert [(update.step, update.total) for update in updates if update.step] == [(n, 4) for n in range(1, 5)]
    previews = [update.preview for update in updates if update.preview]
    assert [preview.step for preview in previews] == [2, 4] and previews[0].picture.size[0] > 100
    assert updates[-1].generated is not None
    assert torch.equal(updates[-1].generated.audio, runner.model.generate(**ASKED).audio)


@pytest.mark.parametrize("sampler", ["dpmpp-2m-sde", "k-heun", "k-dpm-fast", "v-ddim"])
def test_every_family_of_samplers_can_be_previewed(loaded: Any, sampler: str) -> None:
    asked = {"conditions": {"prompt": "rain"}, "seed": 3, "steps": 3, "sampler_type": sampler}
    updates = list(Runner(loaded("prompted")).run("me", "generate", asked, preview_every=1))
    assert sum(update.preview is not None for update in updates) >= 2


def test_cancel_stops_what_runs(runner: Runner) -> None:
    started = time.monotonic()
    with pytest.raises(Cancelled):
        for update in runner.run("me", "generate", {**ASKED, "steps": 500}):
            if update.step == 2:
                assert not runner.cancel("somebody else", "generate")
                assert runner.cancel("me", "generate")
    assert time.monotonic() - started < 5
    assert not runner.cancel("me", "generate"), "nothing runs any more"


def test_cancel_is_kept_for_what_waits(runner: Runner) -> None:
    runner.expect("me", "generate")
    assert runner.cancel("me", "generate")
    with pytest.raises(Cancelled):
        list(runner.run("me", "generate", ASKED))
    runner.expect("me", "generate")
    assert list(runner.run("me", "generate", ASKED))[-1].generated is not None


def test_cancel_is_for_one_page_of_a_visit(runner: Runner) -> None:
    updates = runner.run("me", "generate", {**ASKED, "steps": 20})
    next(update for update in updates if update.step)
    runner.expect("me", "inpaint")
    assert runner.cancel("me", "inpaint")
    assert list(updates)[-1].generated is not None, "the run of the other page goes on"
    with pytest.raises(Cancelled):
        list(runner.run("me", "inpaint", ASKED))


def test_a_visitor_who_leaves_stops_the_run(runner: Runner) -> None:
    updates = runner.run("me", "generate", {**ASKED, "steps": 500})
    next(update for update in updates if update.step)
    updates.close()
    started = time.monotonic()
    list(runner.run("other", "generate", ASKED))
    assert time.monotonic() - started < 3


def test_one_at_a_time(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, most = [0], [0]
    generate = runner.model.generate

    def counted(**asked: Any) -> Any:
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        try:
            return generate(**asked)
        finally:
            busy[0] -= 1

    monkeypatch.setattr(runner.model, "generate", counted)
    visits = [threading.Thread(target=lambda n=n: list(runner.run(str(n), "generate", ASKED))) for n in range(4)]
    for visit in visits:
        visit.start()
    for visit in visits:
        visit.join()
    assert most == [1]


def test_what_the_model_says_reaches_the_caller(runner: Runner) -> None:
    with pytest.raises(ValueError, match="sound: missing"):
        list(runner.run("me", "generate", {"steps": 1}))


class Halving:
    """A check that halves every item and reports one passage of it."""

    settings: Mapping[str, Any] = {"check": "halving"}

    def __call__(self, audio: Tensor, sample_rate: int) -> tuple[Tensor, Mapping[str, Any]]:
        return audio / 2, {"copies": [{"track": "songs:a.wav", "start": 0.0, "end": 0.2}]}


def test_every_item_passes_the_inspection(loaded: Any) -> None:
    asked = {**ASKED, "num_samples": 2}
    plain = list(Runner(loaded("tiny_diffusion_cond")).run("me", "generate", dict(asked)))[-1]
    checked = list(Runner(loaded("tiny_diffusion_cond"), Halving()).run("me", "generate", dict(asked)))[-1]
    assert plain.generated is not None and checked.generated is not None and plain.findings == ()
    assert torch.equal(checked.generated.audio, plain.generated.audio / 2)
    assert describe_copies(checked.findings).splitlines()[1:] == [
        "take 1: 0.0 to 0.2 s is a passage of songs:a.wav",
        "take 2: 0.0 to 0.2 s is a passage of songs:a.wav",
    ]
