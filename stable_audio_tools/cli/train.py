"""`train`: train a model of any type. `lora train`: train a low-rank adapter of a model."""

from stable_audio_tools.cli.command import Command
from stable_audio_tools.training.lora_settings import LoraSettings
from stable_audio_tools.training.settings import TrainSettings


def run(settings: TrainSettings) -> None:
    from stable_audio_tools.training.run import fit

    fit(settings)


def run_lora(settings: LoraSettings) -> None:
    from stable_audio_tools.training.lora import fit_lora

    fit_lora(settings)


main = Command(
    TrainSettings,
    run,
    "Train the model of one config on the data of another. Several GPUs or nodes: torchrun --nproc_per_node N "
    "train.py ..., or SLURM's srun. Ctrl-C stops; --recover goes on.",
    takes_ini=True,
)

train_lora = Command(
    LoraSettings,
    run_lora,
    "Train a small adapter of the model that --pretrained-ckpt-path holds, whose own weights stay as they are. The "
    "`lora` section of the model config says which layers and how; flags come before it. Adapter files appear in "
    "the run's folder under adapters/. Ctrl-C stops; --recover goes on.",
    takes_ini=True,
)
