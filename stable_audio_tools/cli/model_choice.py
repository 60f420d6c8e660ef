"""`--pretrained-name`, or `--model-config` with `--ckpt-path`: the model that a command works with."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.models.lora_choice import LoraChoice, lora_choice

if TYPE_CHECKING:
    from stable_audio_tools.inference.generation.model import AudioModel

MODEL_GROUP = "model: a name or folder, or a config with its weights"


@dataclass(frozen=True, kw_only=True)
class ModelChoice(Settings):
    """A model, its adapters, and how it runs; without a name, that of `default_model`."""

    default_model: ClassVar[str | None] = None

    pretrained_name: str | None = option(
        None, "name on the Hub, or folder", group=MODEL_GROUP, metavar="NAME", flags=("--model-name",)
    )
    model_config: Path | None = option(None, "model config", group=MODEL_GROUP, metavar="JSON")
    ckpt_path: Path | None = option(None, "weights", group=MODEL_GROUP, metavar="FILE")
    lora: tuple[LoraChoice, ...] = option(
        (),
        "adapter to put on the model, and how strongly it acts (else 1); may be given several times",
        group=MODEL_GROUP,
        metavar="PATH[:STRENGTH]",
        repeat=True,
        parse=lora_choice,
    )
    device: str | None = option(
        None, "cpu, cuda, cuda:1, mps (else the best available)", group=MODEL_GROUP, metavar="NAME"
    )
    precision: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "float32", "float32 gives the published numbers; the others are faster and a little off", group=MODEL_GROUP
    )

    def problems(self) -> Iterable[str]:
        if self.pretrained_name is not None and (self.model_config is not None or self.ckpt_path is not None):
            yield "--pretrained-name: give it alone, or --model-config with --ckpt-path instead"
        elif self.model_config is not None and self.ckpt_path is None:
            yield "--ckpt-path: missing; --model-config needs the weights too"
        elif self.pretrained_name is None and self.ckpt_path is None and self.default_model is None:
            yield "--model-config: missing; give it with --ckpt-path, or --pretrained-name"

    @property
    def source(self) -> tuple[str | Path, Path | None]:
        """The model and, beside a config, its weights; weights alone may hold their config."""
        model = self.model_config or self.pretrained_name or self.ckpt_path or self.default_model
        assert model is not None, "checked by `problems`"
        return model, self.ckpt_path if self.model_config is not None else None

    def check_adapters(self) -> None:
        """Read the files of the adapters, so that their mistakes are reported before weights are read."""
        from stable_audio_tools.models.lora import read_lora

        for choice in self.lora:
            read_lora(choice.path)

    def load(self, offload: bool = False) -> "AudioModel":
        """The model on the device of this process; adapters are read first, so that their mistakes come early.

        With `offload`, each part of it comes to the device while it is used.
        """
        from stable_audio_tools.core.devices import process_device
        from stable_audio_tools.inference.generation.model import load

        self.check_adapters()
        model = load(*self.source, process_device(self.device), precision=self.precision, offload=offload)
        for choice in self.lora:
            model.load_lora(choice.path, choice.strength)
        return model
