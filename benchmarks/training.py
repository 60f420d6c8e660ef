"""Time of a training step on the CPU against another checkout, and waits for the device per step.

    python benchmarks/training.py [--with CHECKOUT] [--steps 12] [--rounds 3] [--waits]

Each kind of training takes the same steps on random data in both checkouts, in turn, one process each; the time is that
of the processor, as the median over steps, and the ratio the median over rounds. `--waits` runs real steps on CUDA
tensors without contents and counts where Python would wait for the GPU: zero outside of logged steps is the goal.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("tiny_autoencoder", "tiny_diffusion_cond", "tiny_diffusion_uncond", "tiny_lm")
SETTLING = 2  # steps before the clock starts


def time_steps(kind: str, steps: int) -> float:
    """Return the processor time of a step in milliseconds, with the package that is on the path."""
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    import stable_audio_tools
    from stable_audio_tools.core.config import load
    from stable_audio_tools.models.factory import create_model_from_config
    from stable_audio_tools.training import create_training_wrapper_from_config

    torch.manual_seed(0)
    config: dict[str, Any] = load(next(Path(stable_audio_tools.__file__).parent.rglob(f"{kind}.json")))
    config["training"].pop("demo", None)
    model = create_training_wrapper_from_config(config, create_model_from_config(config))
    audio = torch.randn(2, config.get("audio_channels", 2), config["sample_size"]).clamp(-1, 1)
    about = {"sound": "drums", "seconds_start": 0, "seconds_total": 3}
    about["padding_mask"] = torch.ones(1, config["sample_size"])  # type: ignore[assignment]
    ends: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            ends.append(time.process_time())

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=tempfile.mkdtemp(),
    )
    trainer.fit(model, DataLoader([(audio, (about, about))] * steps, batch_size=None))  # type: ignore[arg-type]
    # A generator and a critic take turns, so a step is half of two.
    pairs = [(later - earlier) / 2 for earlier, later in zip(ends[SETTLING:], ends[SETTLING + 2 :])]
    return 1000 * statistics.median(pairs)


def run_in(checkout: Path, kind: str, steps: int) -> float:
    """Time the steps in a new process that imports the package of a checkout."""
    command = [sys.executable, str(Path(__file__).resolve()), "--only", kind, "--steps", str(steps)]
    variables = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{checkout}: {kind} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def compare(other: Path | None, steps: int, rounds: int) -> None:
    for kind in KINDS:
        times = [(run_in(ROOT, kind, steps), run_in(other, kind, steps) if other else 0.0) for _ in range(rounds)]
        own = statistics.median(time for time, _ in times)
        ratio = f"   {statistics.median(a / b for a, b in times):5.2f} of the other checkout" if other else ""
        print(f"{kind:28}{own:9.1f} ms per step{ratio}", flush=True)


def count_waits() -> None:
    """Print the waits of the steps after the first two, for each kind of training."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import pytest

    from tests.training.conftest import training_config
    from tests.training.test_device_waits import CASES, waits_of

    for case, (name, change, adapt) in CASES.items():
        config = training_config(name)
        if change is not None:
            change(config)
        with pytest.MonkeyPatch.context() as patches, tempfile.TemporaryDirectory() as folder:
            steps = waits_of(config, Path(folder), patches, adapt)[2:]
        places = sorted({place for step in steps for place in step})
        print(f"{case:28}{sum(map(len, steps)) / len(steps):5.1f} waits per step  {' '.join(places)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--with", dest="other", type=Path, help="another checkout of this project")
    parser.add_argument("--steps", type=int, default=12, help="steps of a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each checkout and kind")
    parser.add_argument("--waits", action="store_true", help="count waits for the device instead of time")
    parser.add_argument("--only", choices=KINDS, help="time one kind with the package on the path, and print it")
    arguments = parser.parse_args()
    if arguments.steps < SETTLING + 3:
        parser.error(f"--steps: expected at least {SETTLING + 3}")
    if arguments.only:
        print(json.dumps(time_steps(arguments.only, arguments.steps)))
    elif arguments.waits:
        count_waits()
    else:
        compare(arguments.other, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
