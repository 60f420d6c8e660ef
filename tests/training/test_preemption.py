"""Schedulers that end a run: whatever the signals hit, a checkpoint is left."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.launching import LIGHTNING, TORCHRUN, finish, kill, start, words

HANG = """
import sys, time
from stable_audio_tools.cli import train
from stable_audio_tools.training.diffusion import DiffusionUncondTrainingWrapper

def step(self, batch, batch_idx):
    print("hangs", file=sys.stderr, flush=True)
    import ctypes
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):  # the second one waits for ever, as a collective operation can: no handler of Python runs
        library.pthread_mutex_lock(mutex)

DiffusionUncondTrainingWrapper.training_step = step
sys.exit(train.main(sys.argv[1:]))
"""


def without_demos(config: dict[str, Any]) -> None:
    del config["training"]["demo"]


def wait_for_steps(process: "subprocess.Popen[str]", runs: Path) -> None:
    """Return once the first checkpoint is there: the run is in full swing then."""
    end = time.monotonic() + 90
    while not list(runs.glob("run/*/checkpoints/*.ckpt")):
        assert process.poll() is None and time.monotonic() < end, finish(process, None)[-3000:]
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning", "alone"])
def test_sigterm_to_the_whole_group_leaves_a_checkpoint(
    launcher: str, write_config: Any, dataset: Path, tmp_path: Path
) -> None:
    """Readers are of the group, too, and the launcher passes the signal on a second time."""
    runs = tmp_path / "runs"
    config = write_config("tiny_diffusion_uncond", without_demos)
    flags = words(config, dataset, runs, "--num-workers", 2, "--checkpoint-every", 1, "--save-top-k", 1)
    command = {
        "torchrun": (TORCHRUN, *flags),
        "lightning": (LIGHTNING, *flags, "--devices", 2),
        "alone": (LIGHTNING, *flags),
    }[launcher]
    process = start(command)
    try:
        wait_for_steps(process, runs)
        os.killpg(process.pid, signal.SIGTERM)
        if launcher != "torchrun":  # its agent ends at the second signal, and kills the others
            time.sleep(0.2)
            os.killpg(process.pid, signal.SIGTERM)
        report = finish(process, None)
    finally:
        kill(process)
    assert "SIGTERM: saved at step" in report and "DataLoader worker" not in report
    step = int(report.partition("SIGTERM: saved at step ")[2].partition(",")[0])
    assert list(runs.glob(f"run/*/checkpoints/*step={step}.ckpt"))


@pytest.mark.slow
def test_the_third_request_ends_a_run_that_hangs(write_config: Any, dataset: Path, tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text(HANG)
    flags = words(write_config("tiny_diffusion_uncond"), dataset, tmp_path / "runs", "--max-steps", 2)
    process = start((LIGHTNING, *flags), script)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "hangs" in line:
                break
        for count in range(3):
            assert process.poll() is None, f"ended by signal {count}"
            process.send_signal(signal.SIGTERM)
            time.sleep(1.2)
        finish(process, 143)
    finally:
        kill(process)


def test_a_reader_that_dies_of_the_signal_does_not_cost_the_checkpoint(
    write_config: Any, run_training: Any, checkpoint_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill may reach a reader before it has learnt to ignore it."""
    from stable_audio_tools.training.diffusion import DiffusionUncondTrainingWrapper

    original = DiffusionUncondTrainingWrapper.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionUncondTrainingWrapper, "training_step", step)
    folder = run_training(write_config("tiny_diffusion_uncond", without_demos), "--max-steps", "50")
    assert checkpoint_of(folder).name.endswith("step=2.ckpt")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_readers_end_with_their_parent_only() -> None:
    """SIGTERM of another process is ignored; that of the parent ends a reader at once."""
    import multiprocessing

    from stable_audio_tools.data.loader import outlive_signals

    context = multiprocessing.get_context("fork")
    ready, other = context.Event(), None

    def read() -> None:
        outlive_signals(0)
        ready.set()
        time.sleep(60)

    reader = context.Process(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(20)
        other = subprocess.run(["kill", "-TERM", str(reader.pid)], check=True)
        reader.join(0.5)
        assert reader.is_alive()
        reader.terminate()
        reader.join(20)
        assert reader.exitcode == 0
    finally:
        reader.kill()
    assert other is not None
