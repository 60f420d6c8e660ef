"""The `lora` section of a model config, with the keys of LoRAW and of Stable Audio 3."""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from stable_audio_tools.core.config.sentences import sentences
from stable_audio_tools.core.errors import ConfigError

AdapterType = Literal[
    "lora",
    "dora-rows",
    "dora-cols",
    "bora",
    "lora-xs",
    "dora-rows-xs",
    "dora-cols-xs",
    "bora-xs",
    "dora",
    "loha",
    "lokr",
]
Product = Literal["matrix", "hadamard", "kronecker"]
BasePrecision = Literal["fp32", "bf16", "fp16", "int8", "nf4"]
DEFAULT_RANK = 16


class Form(NamedTuple):
    """The parts of an adapter type."""

    rows: bool  # a learned magnitude for every row of W
    cols: bool  # and for every column
    core: bool  # -xs: only a core between the singular vectors of W is learned
    product: Product = "matrix"  # how the factors make the change of W

    @classmethod
    def of(cls, adapter_type: str) -> "Form":
        if adapter_type in ("loha", "lokr"):
            return cls(False, False, False, "hadamard" if adapter_type == "loha" else "kronecker")
        kind = adapter_type.removesuffix("-xs")
        return cls(kind in ("dora-rows", "bora"), kind in ("dora-cols", "bora"), adapter_type.endswith("-xs"))


class LoraConfig(BaseModel):
    """The layers that get an adapter, and its type and size."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    adapter_type: Annotated[
        AdapterType,
        Field(
            description="lora; dora-rows (dora), dora-cols, bora: learned magnitudes; -xs: a core alone; loha, lokr: "
            "Hadamard and Kronecker products"
        ),
    ] = "lora"
    rank: Annotated[int, Field(ge=1, description="width of the factors, at most the width of the layer")] = DEFAULT_RANK
    alpha: Annotated[float | None, Field(gt=0, description="the change of W is alpha / rank * B A; null: rank")] = None
    ranks: Annotated[
        dict[str, Annotated[int, Field(ge=1)]], Field(description="pattern -> rank of the layers it matches, last wins")
    ] = {}
    include: Annotated[
        list[str] | None, Field(min_length=1, description="patterns of module paths to adapt; null: every layer")
    ] = None
    exclude: Annotated[list[str], Field(description="patterns of module paths to leave alone")] = []
    component_whitelist: Annotated[
        list[str] | None, Field(min_length=1, description="LoRAW's include: whole parts of module paths")
    ] = None
    multiplier: Annotated[float, Field(description="strength of the adapter while it trains")] = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="share of the rank's units dropped in training")] = 0.0
    module_dropout: Annotated[float, Field(ge=0, lt=1, description="how often a layer trains without its adapter")] = (
        0.0
    )
    lr: Annotated[float | None, Field(gt=0, description="learning rate, in place of the one in optimizer_configs")] = (
        None
    )
    weight_decompose: Annotated[bool | None, Field(description="LoRAW's name of dora-rows")] = None
    lokr_factor: Annotated[
        int | None, Field(ge=2, description="lokr: largest size of its first factor; null: up to the square root")
    ] = None
    scale_bias: Annotated[
        bool, Field(description="magnitudes of rows scale the bias too, as in LoRAW; set for its files")
    ] = False
    base_precision: Annotated[
        BasePrecision | None, Field(description="type of the frozen weights; int8 and nf4 need bitsandbytes")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _settle(cls, given: object) -> object:
        """Translate LoRAW's keys; refuse settings that contradict each other."""
        if not isinstance(given, Mapping):
            return given
        settled, decomposed = dict(given), given.get("weight_decompose")
        if isinstance(decomposed, bool):
            settled.setdefault("adapter_type", "dora-rows" if decomposed else "lora")
            kind = settled["adapter_type"]
            form = Form.of("dora-rows" if kind == "dora" else kind) if kind in get_args(AdapterType) else None
            if form is not None and decomposed == (form[:2] == (False, False)):
                said = str(decomposed).lower()
                raise ValueError(f"weight_decompose is {said} and adapter_type is {kind!r}; leave one of them out")
        if settled.get("adapter_type") == "dora":
            settled["adapter_type"] = "dora-rows"
        if given.get("include") is not None and given.get("component_whitelist") is not None:
            raise ValueError("component_whitelist and include both set what is adapted; leave one of them out")
        for key, nothing in (("dropout", 0.0), ("module_dropout", 0.0), ("exclude", [])):
            if key in settled and settled[key] is None:
                settled[key] = nothing
        if settled.get("alpha") == 0:  # in LoRAW: the rank
            settled["alpha"] = None
        return settled

    @model_validator(mode="after")
    def _fits_the_type(self) -> Self:
        if self.scale_bias and not self.form.rows:
            raise ValueError(f"scale_bias needs magnitudes of rows, which {self.adapter_type} lacks; leave it out")
        if self.lokr_factor is not None and self.form.product != "kronecker":
            raise ValueError(f"lokr_factor has no meaning for {self.adapter_type}; leave it out")
        return self

    @property
    def form(self) -> Form:
        return Form.of(self.adapter_type)

    def scale(self, rank: int) -> float:
        """Return the factor of B A in a layer of this rank."""
        return 1.0 if self.alpha is None else self.alpha / rank


def lora_config_from(section: Mapping[str, object] | None, path: str = "lora") -> LoraConfig:
    """Check a `lora` section; one ConfigError holds every mistake."""
    try:
        return LoraConfig.model_validate(dict(section or {}))
    except ValidationError as error:
        problems = []
        for where, text in sentences(error, path, LoraConfig):
            # Sentences about several keys would end in the whole section.
            problems.append(f"{where}: {text.partition(', got an object with')[0] if 'leave' in text else text}")
        raise ConfigError(problems) from None
