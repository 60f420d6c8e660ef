"""Run one script as it is, on this machine: python tests/clients/launch.py SCRIPT [FLAGS]

The script's own folder stays off the path, since a fork holds a copy of the package. Lightning trains two steps on the
CPU whatever is asked for, and where torchaudio lacks torchcodec it reads and writes through soundfile.
"""

import runpy
import sys
from importlib.util import find_spec

import pytorch_lightning
import soundfile
import torch
import torchaudio


class BriefTrainer(pytorch_lightning.Trainer):
    """Lightning's trainer for two steps on the CPU."""

    def __init__(self, **options):
        on_cpu = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"}
        super().__init__(**{**options, **on_cpu, "max_steps": 2})


def load(uri, *_args, **_options):
    samples, rate = soundfile.read(uri, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate


def save(uri, src, sample_rate, *_args, **_options):
    soundfile.write(uri, src.T.cpu().numpy(), sample_rate)


if __name__ == "__main__":
    sys.path.pop(0)
    pytorch_lightning.Trainer = BriefTrainer
    if find_spec("torchcodec") is None:
        torchaudio.load, torchaudio.save = load, save
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
