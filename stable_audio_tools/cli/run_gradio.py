"""`app`: a model in the browser and as an HTTP API."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.cli.command import Command
from stable_audio_tools.cli.model_choice import MODEL_GROUP, ModelChoice
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.ranks import is_rank_zero
from stable_audio_tools.core.settings import option
from stable_audio_tools.dedup.passages.settings import CopyCheck

_SERVER = "server"


@dataclass(frozen=True, kw_only=True)
class AppSettings(ModelChoice, CopyCheck):
    """A model, and the server that presents it."""

    precision: Literal["float32", "bfloat16", "float16", "auto"] | None = option(  # type: ignore[assignment]
        None, "float32 gives the published numbers; the others are faster and less exact", group=MODEL_GROUP
    )
    model_half: bool | None = option(
        None, "float16 on a GPU, float32 on the CPU (the default); --no-model-half is float32 everywhere"
    )
    pretransform_ckpt_path: Path | None = option(None, "weights of the autoencoder of the model", metavar="FILE")
    tmp_dir: str = option("outputs/app", "folder for the runs", metavar="DIR")
    title: str = option("", "title of the page (default: the name of the model)", metavar="TEXT")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 means all", group=_SERVER)
    port: int | None = option(None, "port (default: the first free one, starting at 7860)", group=_SERVER, metavar="N")
    share: bool = option(False, "open a public link through Gradio's servers", group=_SERVER)
    username: str | None = option(None, "login for page and API, with --password", group=_SERVER, metavar="NAME")
    password: str | None = option(
        None, "password; may also be set in the environment as STABLE_AUDIO_PASSWORD", group=_SERVER, metavar="WORD"
    )


def run(settings: AppSettings) -> None:
    if not is_rank_zero():
        return  # a launcher started several processes, but one server is enough
    settings.check_adapters()
    password = settings.password or (os.environ.get("STABLE_AUDIO_PASSWORD") if settings.username else None)
    # Gradio reads these at import. Files for visitors are copied to the folder of the runs, and nowhere else.
    os.environ["GRADIO_TEMP_DIR"] = str(Path(settings.tmp_dir).resolve() / "served")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from stable_audio_tools.dedup.passages.guard import guard_of
    from stable_audio_tools.interface.gradio import check_login, check_port, create_ui, serve

    check_login(settings.username, password)
    check_port(settings.port)
    app = create_ui(
        settings.model_config,
        settings.ckpt_path,
        settings.pretrained_name,
        settings.pretransform_ckpt_path,
        settings.model_half,
        settings.title,
        settings.tmp_dir,
        precision=settings.precision,
        device=settings.device,
        lora=settings.lora,
        inspection=guard_of(settings),
    )
    try:
        serve(app, settings.host, settings.port, settings.share, settings.username, password)
    except OSError as error:
        raise UserError(f"--host {settings.host}, --port {settings.port}: cannot be opened ({error})") from None


main = Command(
    AppSettings,
    run,
    "Open a model in the browser: a page for its type, a gallery of runs, an HTTP API. Ctrl-C stops the server. "
    "Requires the extra 'ui'.",
)
