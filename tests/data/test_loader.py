"""Order, workers, processes and resuming: what a loader gives depends on seed and epoch alone."""

import copy
import gc
import itertools
import json
import pickle
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_shards import write_shards

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.draws import Draw, make_order, order_length, seeded
from stable_audio_tools.data.faults import BadItem, Fault, FaultPolicy
from stable_audio_tools.data.loader import Item, Loader, SamePass


def mask_of(item: int) -> torch.Tensor:
    return (torch.arange(13) < item % 14).float()


class Numbers:
    """Item i is the number i with a random number of its draw; some are bad."""

    def __init__(self, size: int, bad: tuple[int, ...] = (), weights: tuple[float, ...] = (1.0,)) -> None:
        self.groups = np.arange(size, dtype=np.int64) * len(weights) // size
        self.weights, self.bad = np.asarray(weights), bad
        self.known_faults: list[Fault] = []

    def load(self, draw: Draw) -> Item:
        if draw.item in self.bad:
            raise BadItem("silent", "as planned")
        info = {"item": draw.item, "draw": draw.number, "padding_mask": mask_of(draw.item)}
        return Item(torch.full((1, 2), float(draw.item)), info)

    def path(self, item: int) -> str:
        return f"/data/{item}.wav"


def epoch(loader: Loader) -> list[list[tuple[int, int]]]:
    batches = []
    for audio, metadata in loader:
        for row, entry in zip(audio, metadata):
            assert row.tolist() == [[entry["item"]] * 2]
            assert torch.equal(entry["padding_mask"], mask_of(entry["item"]))
        batches.append([(entry["item"], entry["draw"]) for entry in metadata])
    return batches


def items(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [item for batch in batches for item, _ in batch]


def tolerant() -> FaultPolicy:
    return FaultPolicy(max_bad_fraction=1.0)


def make(size: int = 23, batch_size: int = 4, bad: tuple[int, ...] = (), **options: Any) -> Loader:
    weights = options.pop("weights", (1.0,))
    return Loader(Numbers(size, bad, weights), batch_size, policy=options.pop("policy", tolerant()), **options)


@pytest.mark.parametrize("bad", [(), (3, 4, 5, 17)])
def test_workers_change_nothing(bad: tuple[int, ...]) -> None:
    runs = []
    for workers in (0, 1, 4):
        loader = make(bad=bad, num_workers=workers, drop_last=False)
        runs.append([epoch(loader), epoch(loader)])
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][0] != runs[0][1]
    for one in runs[0]:
        assert sorted(items(one)) == [i for i in range(23) if i not in bad]
        assert [len(batch) for batch in one[:-1]] == [4] * (len(one) - 1)


def test_two_processes_together_are_one() -> None:
    one = epoch(make(24, batch_size=6))
    parts = [epoch(make(24, batch_size=3, rank=rank, world_size=2)) for rank in (0, 1)]
    for whole, first, second in zip(one, *parts, strict=True):
        assert sorted(whole) == sorted(first + second)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("size", [23, 24, 25])
def test_processes_give_equally_many_batches_whatever_is_bad(size: int, drop_last: bool) -> None:
    bad = tuple(range(0, size, 3))
    loaders = [make(size, 2, bad, rank=rank, world_size=3, drop_last=drop_last) for rank in range(3)]
    parts = [epoch(loader) for loader in loaders]
    assert [len(part) for part in parts] == [len(loaders[0])] * 3
    counts = Counter(items(list(itertools.chain(*parts))))
    if not drop_last:
        assert set(counts) == set(range(size)) - set(bad)


def test_shuffle_off_keeps_the_order_of_the_files() -> None:
    loader = make(8, shuffle=False)
    assert items(epoch(loader)) == items(epoch(loader)) == list(range(8))


def test_seeds_differ() -> None:
    assert items(epoch(make(seed=1))) != items(epoch(make(seed=2)))


def test_drop_last() -> None:
    assert len(make(drop_last=True)) == 5 and len(epoch(make(drop_last=True))) == 5
    assert len(make(drop_last=False)) == 6 and len(epoch(make(drop_last=False))[-1]) == 3
    with pytest.raises(ConfigError, match=r"3 usable items do not fill a batch of 4 .* lower batch_size to 3"):
        make(3)


def test_weights_repeat_and_thin_out() -> None:
    loader = make(40, batch_size=1, weights=(2.5, 0.25))
    counts = Counter(items(epoch(loader)))
    first = [counts[i] for i in range(20)]
    assert sum(first) == 50 and set(first) == {2, 3}
    assert sum(counts[i] for i in range(20, 40)) == 5
    draws = [draw for batch in epoch(loader) for _, draw in batch]
    assert len(set(draws)) == len(draws)  # a repeated item gets another crop


def test_order_and_its_length_agree() -> None:
    groups = np.repeat(np.arange(3), (7, 11, 2))
    for weights in ((1, 1, 1), (0.5, 2.2, 0), (0.1, 0.1, 9.9)):
        array = np.asarray(weights, np.float64)
        assert abs(len(make_order(groups, array, 0, 0, True)) - order_length(groups, array)) == 0


@pytest.mark.parametrize("bad", [(), (1, 2, 9, 20)])
@pytest.mark.parametrize("stop", [1, 3, 4, 5])
@pytest.mark.parametrize("drop_last", [True, False])
def test_resuming_goes_on_where_it_was(bad: tuple[int, ...], stop: int, drop_last: bool) -> None:
    whole = make(bad=bad, drop_last=drop_last)
    expected = [epoch(whole), epoch(whole)]
    interrupted = make(bad=bad, drop_last=drop_last, num_workers=1)
    iterator = iter(interrupted)
    given = [next(iterator) for _ in range(min(stop, len(expected[0])))]
    state = pickle.loads(pickle.dumps(interrupted.state_dict()))
    resumed = make(bad=bad, drop_last=drop_last)
    resumed.load_state_dict(state)
    rest = epoch(resumed) if len(given) < len(expected[0]) else []
    assert [len(batch[1]) for batch in given] + [len(b) for b in rest] == [len(b) for b in expected[0]]
    assert rest == expected[0][len(given) :]
    assert epoch(resumed) == expected[1]


def test_resuming_after_a_whole_epoch_begins_the_next() -> None:
    whole = make()
    epochs = [epoch(whole) for _ in range(2)]
    resumed, first = make(), make()
    epoch(first)
    resumed.load_state_dict(first.state_dict())
    assert epoch(resumed) == epochs[1]


def test_resuming_with_another_batch_size_or_process_count_misses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    loader = make(24, batch_size=2)
    iterator = iter(loader)
    seen = [entry["item"] for _ in range(4) for entry in next(iterator)[1]]
    rest = []
    for rank in (0, 1):
        resumed = make(24, batch_size=4, rank=rank, world_size=2)
        resumed.load_state_dict(loader.state_dict())
        rest += items(epoch(resumed))
    assert sorted(seen + rest) == list(range(24))
    assert "another batch size or number of processes" in caplog.text


def test_a_changed_dataset_is_told(caplog: pytest.LogCaptureFixture) -> None:
    first, second = make(23), make(25)
    epoch(first)
    second.load_state_dict(first.state_dict())
    assert "had 23 items when the checkpoint was written and has 25 now" in caplog.text
    assert len(epoch(second)) == 6


def test_a_loader_can_be_copied_while_it_runs() -> None:
    loader = make(num_workers=1)
    iterator = iter(loader)
    next(iterator)
    assert len(epoch(copy.deepcopy(loader))) == 5
    assert len(list(iterator)) == 4


def test_breaking_off_begins_a_new_epoch() -> None:
    loader = make(num_workers=1)
    next(iter(loader))
    whole = make()
    epoch(whole)
    assert epoch(loader) == epoch(whole)


# ------------------------------------------------------------------ bad items


def test_bad_items_are_reported() -> None:
    loader = make(bad=(3, 5), drop_last=False)
    epoch(loader)
    assert sorted(str(fault) for fault in loader.report.faults) == [
        "/data/3.wav: silent (as planned)", "/data/5.wav: silent (as planned)",
    ]  # fmt: skip
    assert loader.report.counts() == "2 silent"


def test_too_many_bad_items_stop_with_the_reasons() -> None:
    loader = make(bad=tuple(range(0, 23, 3)), policy=FaultPolicy(max_bad_fraction=0.2), num_workers=1)
    with pytest.raises(
        AudioError, match=r"5 of 23 items are bad, more than max_bad_fraction = 0.2 .*: 5 silent; first"
    ):
        epoch(loader)


def test_all_bad_ends_with_one_sentence() -> None:
    for options in ({}, {"rank": 0, "world_size": 2}):
        with pytest.raises(AudioError, match=r"not one batch of usable items \(.* silent\)") as caught:
            epoch(make(bad=tuple(range(23)), **options))
        assert "\n" not in str(caught.value)


def test_raise_names_the_item() -> None:
    loader = make(bad=(7,), policy=FaultPolicy("raise"), num_workers=1)
    with pytest.raises(AudioError, match=r"^/data/7.wav: silent \(as planned\)$"):
        epoch(loader)


def test_quarantine_is_a_list_that_can_be_read(tmp_path: Path) -> None:
    from stable_audio_tools.data.path_lists import read_path_list

    file = tmp_path / "deep" / "bad.txt"
    loader = make(bad=(7, 8), policy=FaultPolicy("quarantine", str(file)), drop_last=False)
    epoch(loader)
    epoch(loader)
    assert sorted(read_path_list(file)) == ["/data/7.wav", "/data/8.wav"]


def test_items_of_different_shape_are_explained_without_a_traceback() -> None:
    class Uneven(Numbers):
        def load(self, draw: Draw) -> Item:
            return Item(torch.zeros(1, draw.item + 1), {})

    with pytest.raises(ConfigError, match=r"^items of one batch differ in shape: .*latent_crop_length"):
        list(Loader(Uneven(8), 4, num_workers=1))


# ------------------------------------------------------------------ draws


def test_seeded_leaves_no_trace() -> None:
    import random

    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    inside = []
    for _ in range(2):
        with seeded(123):
            inside.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert inside[0] == inside[1]
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


def test_draws_depend_on_everything_but_the_position() -> None:
    base = Draw(1, 2, 3, 4, position=5)
    others = [base._replace(item=9), base._replace(epoch=9), base._replace(visit=9), base._replace(seed=9)]
    assert len({base.number, *(draw.number for draw in others)}) == 5
    assert base.number == base._replace(position=9).number


# ------------------------------------------------------------------ several processes

PROCESS = """
import json, sys, torch.distributed as dist
from stable_audio_tools.data.dataset import create_dataloader_from_config

folder, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": folder}], "max_bad_fraction": 1}
make = lambda: create_dataloader_from_config(config, 2, 2000, 8000, num_workers=1)
first, second = make(), make()  # before the processes know of each other, as with Lightning's launcher
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
names = lambda batch: [info["relpath"] for info in batch[1]]
iterator = iter(first)
given = [names(next(iterator)) for _ in range(3)]
state = [first.state_dict()]
dist.broadcast_object_list(state, src=0)  # every process resumes from the checkpoint of the first
second.load_state_dict(state[0])
print(json.dumps([len(first), given, [names(b) for b in iterator], [names(b) for b in second]]))
"""


def test_a_checkpoint_of_one_process_serves_all(tmp_path: Path, write_clip) -> None:
    """Bad items shift the positions of the processes differently; each finds its own in the state."""
    for i in range(24):
        write_clip(f"{i:02d}.wav", samples=6_000, rate=8_000)
    for i in range(0, 24, 5):
        write_clip(f"{i:02d}.wav", wave=np.zeros((6_000, 1), np.float32), rate=8_000)
    arguments = [str(tmp_path / "audio"), str(tmp_path / "store")]
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, *arguments, str(rank)], cwd=root, stdout=subprocess.PIPE)
        for rank in (0, 1)
    ]
    parts = [json.loads(process.communicate(timeout=200)[0]) for process in running]
    seen = Counter(name for _, given, rest, _ in parts for batch in given + rest for name in batch)
    for batches, given, rest, resumed in parts:
        assert resumed == rest and len(given) + len(rest) == batches == 6
    assert set(seen) == {f"{i:02d}.wav" for i in range(24)} - {f"{i:02d}.wav" for i in range(0, 24, 5)}


# ------------------------------------------------------------------ inside Lightning

TRAIN = """
import json, os, sys, signal
import pytorch_lightning as pl, torch, logging, warnings
warnings.filterwarnings("ignore"); logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
from stable_audio_tools.data.dataset import create_dataloader_from_config

folder, out, log, resume, kill = sys.argv[1:6]
config = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": folder}], "drop_last": False}

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__(); self.layer = torch.nn.Linear(1, 1); self.seen = 0
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 0.1)
    def training_step(self, batch, index):
        audio, metadata = batch
        with open(log, "a") as f:
            f.write(json.dumps([[m["relpath"], m["timestamps"]] for m in metadata]) + "\\n")
        self.seen += 1
        if self.seen == int(kill): os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(torch.ones(1, 1)).sum()

checkpoint = pl.callbacks.ModelCheckpoint(out, every_n_train_steps=1, save_last=True)
trainer = pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[checkpoint], logger=False,
                     enable_progress_bar=False, enable_model_summary=False)
loader = create_dataloader_from_config(config, 4, 2000, 8000, num_workers=1)
trainer.fit(Module(), loader, ckpt_path=resume or None)
"""


@pytest.mark.slow
def test_a_killed_training_run_goes_on_with_the_same_items(tmp_path: Path, write_clip) -> None:
    for i in range(14):
        write_clip(f"{i}.wav", samples=6_000 + i, rate=8_000)
    write_clip("bad.wav").write_bytes(b"nothing")

    def train(log: str, out: str, resume: str, kill: int) -> int:
        arguments = [str(tmp_path / "audio"), str(tmp_path / out), str(tmp_path / log), resume, str(kill)]
        return subprocess.run(
            [sys.executable, "-c", TRAIN, *arguments], cwd=Path(__file__).parents[2], capture_output=True
        ).returncode

    assert train("whole.log", "a", "", 0) == 0
    assert train("killed.log", "b", "", 3) == -9
    killed = (tmp_path / "killed.log").read_text().splitlines()[:-1]  # the last step was never saved
    assert train("resumed.log", "b", str(tmp_path / "b" / "last.ckpt"), 0) == 0
    together = killed + (tmp_path / "resumed.log").read_text().splitlines()
    assert together == (tmp_path / "whole.log").read_text().splitlines()
    assert len(together) == 8


def test_workers_end_at_once_when_a_loader_is_dropped_half_way() -> None:
    gc.collect()  # what earlier tests left behind is not this one's
    loader = make(num_workers=1)
    next(iter(loader))
    start = time.perf_counter()
    del loader
    gc.collect()
    assert time.perf_counter() - start < 3  # torch waits 5 s for workers that it cannot reach


@pytest.mark.parametrize(("bad", "summary"), [((), "no item was left out"), ((3,), "1 items were left out")])
def test_an_epoch_is_summed_up_with_its_last_batch(
    bad: tuple[int, ...], summary: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A trainer that knows the length never asks for what comes after it."""
    loader = make(bad=bad)
    with caplog.at_level("INFO"):
        batches = iter(loader)
        for _ in range(len(loader)):
            next(batches)
        found = [message for message in caplog.messages if message.startswith("epoch 0: ")]
        assert next(batches, None) is None
    assert len(found) == 1
    assert summary in found[0]
    assert sum(message.startswith("epoch 0: ") for message in caplog.messages) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["audio_dir", "wds"])
def test_held_out_data_is_the_same_in_every_pass(tmp_path: Path, write_clip: Any, kind: str, workers: int) -> None:
    for number in range(3):
        write_clip(f"{number}.wav", samples=30_000)
    folder = tmp_path / "audio" if kind == "audio_dir" else write_shards(tmp_path / "tars", (2, 1))
    loader = create_dataloader_from_config(
        {"dataset_type": kind, "datasets": [{"path": str(folder)}]},
        batch_size=1,
        sample_size=2_000,
        sample_rate=16_000,
        num_workers=workers,
        shuffle=False,
    )
    held_out = SamePass(loader)
    passes = [[audio for audio, _ in held_out] for _ in range(3)]
    assert len(held_out) == len(passes[0]) == 3
    assert all(torch.equal(a, b) for other in passes[1:] for a, b in zip(passes[0], other))
    assert not all(torch.equal(a, b) for (a, _), b in zip(loader, passes[0])), "the loader itself goes on"
