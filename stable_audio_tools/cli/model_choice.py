"""The model of a command: `--pretrained-name`, or `--model-config` with `--ckpt-path`."""

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
    """A model, its adapters, device and precision; `default_model` is used if none is named."""

    default_model: ClassVar[str | None] = None

    pretrained_name: str | None = option(
        None, "name on the Hub, or folder", group=MODEL_GROUP, metavar="NAME", flags=("--model-name",)
    )
    model_config: Path | None = option(None, "model config", group=MODEL_GROUP, metavar="JSON")
    ckpt_path: Path | None = option(None, "weights", group=MODEL_GROUP, metavar="FILE")
    lora: tuple[LoraChoice, ...] = option(
        (),
        "adapter to load and its strength (default: 1); may be repeated",
        group=MODEL_GROUP,
        metavar="PATH[:STRENGTH]",
        repeat=True,
        parse=lora_choice,
    )
    device: str | None = option(
        None, "cpu, cuda, cuda:1, mps (default: the best available)", group=MODEL_GROUP, metavar="NAME"
    )
    precision: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "float32", "float32 gives the published numbers; the others are faster and less exact", group=MODEL_GROUP
    )

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.pretrained_name is not None and (self.model_config is not None or self.ckpt_path is not None):
            yield "--pretrained-name: give it alone, or --model-config with --ckpt-path instead"
        elif self.model_config is not None and self.ckpt_path is None:
            yield "--ckpt-path: missing; --model-config needs weights"
        elif self.pretrained_name is None and self.ckpt_path is None and self.default_model is None:
            yield "--model-config: missing; give it with --ckpt-path, or --pretrained-name"

    @property
    def source(self) -> tuple[str | Path, Path | None]:
        """The model, and its weights if the model is a config; weights alone may contain their config."""
        model = self.model_config or self.pretrained_name or self.ckpt_path or self.default_model
        assert model is not None, "checked by `problems`"
        return model, self.ckpt_path if self.model_config is not None else None

    def check_adapters(self) -> None:
        """Read the adapter files, to report mistakes in them before weights are read."""
        from stable_audio_tools.models.lora import read_lora

        for choice in self.lora:
            read_lora(choice.path)

    def load(self, offload: bool = False) -> "AudioModel":
        """Load the model with its adapters on the device of this process.

        With `offload`, each part is on the device only while it is used.
        """
        from stable_audio_tools.core.devices import process_device
        from stable_audio_tools.inference.generation.model import load

        self.check_adapters()
        model = load(*self.source, process_device(self.device), precision=self.precision, offload=offload)
        for choice in self.lora:
            model.load_lora(choice.path, choice.strength)
        return model
