"""Seeds: the numbers of `torch.manual_seed`, without its side effects."""

import logging
import threading

import numpy as np
import pytest
import torch

from stable_audio_tools.inference.sampling.randomness import (
    RandomStream,
    SeededNoise,
    preserved_random_state,
    resolve_seeds,
)

CPU = torch.device("cpu")


def test_a_stream_gives_what_the_global_functions_give_after_manual_seed() -> None:
    stream = RandomStream(11, CPU)
    ours = [stream.normal((2, 3, 5)), stream.tree_seed(), stream.normal((7,))]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        theirs = [torch.randn(2, 3, 5), int(torch.randint(0, 2**63 - 1, [])), torch.randn(7)]
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert torch.equal(ours[2], theirs[2])


def test_a_stream_in_charge_goes_on_where_it_was_and_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    stream = RandomStream(11, CPU)
    stream.normal((3,))
    with stream.in_charge():
        inside = torch.randn(4)
    after = stream.normal((5,))
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(11)
        torch.randn(3)
        assert torch.equal(inside, torch.randn(4))
        assert torch.equal(after, torch.randn(5))


def test_the_random_state_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), RandomStream(1, CPU).in_charge():
        torch.randn(3)
        raise RuntimeError("inside")
    with preserved_random_state(CPU):
        torch.randn(3)
    assert torch.equal(before, torch.get_rng_state())


def test_an_item_with_its_own_seed_is_what_it_would_be_alone() -> None:
    together = SeededNoise((5, 6), CPU)
    alone = SeededNoise((6,), CPU)
    assert torch.equal(together.normal((2, 3, 4))[1:], alone.normal((1, 3, 4)))
    assert together.tree_seeds()[1] == alone.tree_seeds()


def test_work_is_done_once_unless_it_draws() -> None:
    calls = []

    def whole() -> torch.Tensor:
        calls.append("whole")
        return torch.zeros(2, 3)

    def item(number: int) -> torch.Tensor:
        calls.append(number)
        return torch.randn(1, 3)

    SeededNoise((5, 6), CPU).feed(whole, item, torch.cat)
    assert calls == ["whole"]
    noise = SeededNoise((5, 6), CPU)
    made = noise.feed(lambda: torch.randn(2, 3), item, torch.cat)
    assert calls == ["whole", 0, 1]
    assert torch.equal(made, torch.cat([RandomStream(seed, CPU).normal((1, 3)) for seed in (5, 6)]))


def test_threads_do_not_disturb_each_other() -> None:
    expected = RandomStream(3, CPU).normal((1024,))
    failures = []

    def work() -> None:
        for _ in range(50):
            with RandomStream(3, CPU).in_charge():
                if not torch.equal(torch.cat([torch.randn(512), torch.randn(512)]), expected):
                    failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures


def test_seeds_are_resolved_and_drawn_ones_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stable_audio_tools")
    assert resolve_seeds(2**32 - 1, 3) == [2**32 - 1]  # the published interface draws seeds up to this
    assert resolve_seeds([np.int64(4), 5], 2) == [4, 5]
    assert "seed" not in caplog.text
    drawn = resolve_seeds([-1, -1], 2)
    assert drawn[0] != drawn[1]
    assert f"seed {drawn[0]}, {drawn[1]}" in caplog.text
    with pytest.raises(ValueError, match="seed lists 3 seeds for batch_size 2"):
        resolve_seeds([1, 2, 3], 2)
    with pytest.raises(ValueError, match="must be a whole number"):
        resolve_seeds(1.5, 1)
    with pytest.raises(ValueError, match="or -1 to draw one; got -2"):
        resolve_seeds(-2, 1)
