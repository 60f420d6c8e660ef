"""`run-gradio`: a model in the browser, and behind an HTTP API."""

import argparse
import os
from pathlib import Path

from stable_audio_tools.cli.command import command, make_parser
from stable_audio_tools.cli.generate import add_model_flags, check_adapters, source_of


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "run_gradio.py",
        "Open a model in the browser: a page for its type, a gallery of runs, an HTTP API. Ctrl-C stops. Needs the "
        "extra 'ui'.",
    )
    add_model_flags(made, default="")
    made.set_defaults(precision=None)
    made.add_argument("--pretransform-ckpt-path", type=Path, metavar="FILE", help="weights of the autoencoder inside")
    half = made.add_mutually_exclusive_group()
    half.add_argument(
        "--model-half",
        action="store_true",
        default=None,
        help="float16 on a GPU, float32 on the CPU (this is so if left out)",
    )
    half.add_argument(
        "--no-model-half",
        dest="model_half",
        action="store_false",
        default=argparse.SUPPRESS,
        help="float32 everywhere",
    )
    made.add_argument("--tmp-dir", metavar="DIR", default="outputs/app", help="folder where runs are kept")
    made.add_argument("--title", default="", metavar="TEXT", help="title of the page (else the model's name)")
    server = made.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all of them")
    server.add_argument("--port", type=int, metavar="N", help="port (else the first that is free from 7860 on)")
    server.add_argument("--share", action="store_true", help="open a public link through Gradio's servers")
    server.add_argument("--username", metavar="NAME", help="login for page and API, with --password")
    server.add_argument(
        "--password", metavar="WORD", help="may stand in the environment as STABLE_AUDIO_PASSWORD instead"
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.core.errors import UserError

    source_of(arguments, default="")  # complains in the words of the flags
    check_adapters(arguments.lora)
    password = arguments.password or (os.environ.get("STABLE_AUDIO_PASSWORD") if arguments.username else None)
    # Copies of what visitors may fetch lie beside the runs, and nowhere else; read when gradio is imported.
    os.environ["GRADIO_TEMP_DIR"] = str(Path(arguments.tmp_dir).resolve() / "served")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from stable_audio_tools.interface.gradio import check_login, check_port, create_ui, serve

    check_login(arguments.username, password)
    check_port(arguments.port)
    app = create_ui(
        arguments.model_config,
        arguments.ckpt_path,
        arguments.pretrained_name,
        arguments.pretransform_ckpt_path,
        arguments.model_half,
        arguments.title,
        arguments.tmp_dir,
        precision=arguments.precision,
        device=arguments.device,
        lora=arguments.lora,
    )
    try:
        serve(app, arguments.host, arguments.port, arguments.share, arguments.username, password)
    except OSError as error:
        raise UserError(f"--host {arguments.host}, --port {arguments.port}: cannot be opened ({error})") from None
    return 0


main = command(parser, run)
