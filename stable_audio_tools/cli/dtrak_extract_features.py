"""`dtrak-extract-features`: a projected gradient for every item of a dataset, or for every generated file."""

import argparse

from stable_audio_tools.cli.command import command, make_parser
from stable_audio_tools.cli.lora_choice import lora_choice


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "dtrak_extract_features.py",
        "Write the projected gradient of every item: of the training set once, and of the files whose origin is asked. "
        "What is there already is kept, so a run that was killed goes on when started again. Under torchrun each "
        "process writes a shard; dtrak_merge.py joins them.",
    )
    made.add_argument(
        "--feature-path", required=True, metavar="FILE", help="file to write, with .ids.txt and .meta.json"
    )
    made.add_argument("--proj-dim", required=True, type=int, metavar="N", help="numbers of a feature")
    made.add_argument(
        "--dry-run", action="store_true", help="tell how long it would take and how much it needs, and stop"
    )
    made.add_argument("--overwrite", action="store_true", help="make features anew that are there already")
    _add_data(made.add_argument_group("data"))
    _add_model(made.add_argument_group("model"))
    _add_feature(made.add_argument_group("feature"))
    _add_machine(made.add_argument_group("machine"))
    return made


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dataset-config", metavar="JSON", help="dataset of audio or latents")
    group.add_argument("--generated", metavar="DIR", help="folder that generate.py wrote, with its manifest, instead")
    group.add_argument("--include-paths-file", metavar="FILE", help="use only the files that this list names")
    group.add_argument("--exclude-paths-file", metavar="FILE", help="leave out the files that this list names")
    group.add_argument("--max-examples", type=int, metavar="N", help="the first N items only")
    group.add_argument("--disable-random-crop", action="store_true", help="crop at the start of each file")
    encoded = group.add_mutually_exclusive_group()
    encoded.add_argument("--pre-encoded", action="store_true", help="the dataset holds latents")
    encoded.add_argument("--no-pre-encoded", action="store_true", help="it holds audio; else as the model config says")
    group.add_argument("--ids-path", metavar="FILE", help="where the names of the items go")
    group.add_argument("--meta-path", metavar="FILE", help="where the meta data goes")


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model-config", required=True, metavar="JSON", help="config of the diffusion model")
    group.add_argument("--pretrained-ckpt-path", required=True, metavar="FILE", help="its weights")
    group.add_argument("--pretransform-ckpt-path", metavar="FILE", help="weights of the autoencoder inside it")
    group.add_argument(
        "--remove-pretransform-weight-norm",
        default="none",
        choices=("none", "pre_load", "post_load"),
        help="fold weight norm of the autoencoder, before or after its weights load",
    )
    group.add_argument(
        "--lora",
        type=lora_choice,
        metavar="PATH[:STRENGTH]",
        help="adapter that is on the model; its parameters alone count",
    )
    group.add_argument("--param-regex", metavar="REGEX", help="parameters whose names this is found in; else all")


def _add_feature(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--f", default="loss", help="loss (TRAK), mean-squared-l2-norm (D-TRAK), mean, l1-norm, l2-norm, linf-norm"
    )
    group.add_argument("--K", type=int, default=10, metavar="N", help="timesteps that are averaged")
    group.add_argument("--t-strategy", default="uniform", choices=("uniform", "cumulative"), help="which timesteps")
    group.add_argument("--num-train-steps", type=int, default=1000, metavar="N", help="timesteps that there are")
    group.add_argument("--seed", type=int, default=42, help="of the projection, and of what a dataset draws")
    group.add_argument("--e-seed", type=int, default=0, help="of the noise")
    group.add_argument("--model-id", type=int, default=0, help="another one gives another projection, for ensembles")
    group.add_argument(
        "--cfg-dropout-prob", type=float, default=0.0, metavar="P", help="how often conditions are dropped"
    )
    group.add_argument(
        "--projection",
        default="sketch",
        choices=("sketch", "rademacher", "normal", "fast-jl"),
        help="sketch: one operation for each parameter; the others N of them, fast-jl by a CUDA package",
    )
    group.add_argument("--used-dim", type=int, metavar="N", help="project to N numbers, where --proj-dim asks for more")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps, or the best there is")
    group.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="items between two writes; changes no bit"
    )
    group.add_argument("--num-workers", type=int, default=4, metavar="N", help="processes that read items")
    group.add_argument(
        "--engine",
        default="auto",
        choices=("auto", "hooks", "vmap", "loop"),
        help="how gradients are made: equal in result, chosen by shape",
    )
    group.add_argument(
        "--rows-at-once", type=int, default=0, metavar="N", help="timesteps of an item in one pass; 0: all"
    )
    group.add_argument("--checkpointing", action="store_true", help="recompute activations: slower, far less memory")
    group.add_argument("--autocast-pretransform", action="store_true", help="encode in half precision on CUDA")
    group.add_argument("--disable-sdpa", action="store_true", help="attention without fused kernels")


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.attribution.extraction import Extraction, ExtractSettings

    options = {key: value for key, value in vars(arguments).items() if key != "dry_run"}
    extraction = Extraction(ExtractSettings(**options))
    if arguments.dry_run:
        _print_estimate(extraction)
        return 0
    done = extraction.run()
    print(f"{done.paths.feature}: {done.made} made, {done.kept} kept, {done.left_out} left out", flush=True)
    return 0


def _print_estimate(extraction: object) -> None:
    from stable_audio_tools.attribution.extraction import Extraction

    assert isinstance(extraction, Extraction)
    estimate = extraction.estimate()
    seconds = estimate.seconds_per_item * estimate.items
    print(f"items        {estimate.items} ({estimate.left_out} left out from the start)")
    print(f"parameters   {estimate.parameters:,}")
    print(f"engine       {estimate.engine}")
    print(f"time         {estimate.seconds_per_item:.3f} s per item, {seconds / 60:.1f} min in all on one process")
    print(f"disk         {estimate.disk / 2**20:.1f} MiB")
    if estimate.peak_memory is not None:
        print(f"memory       {estimate.peak_memory / 2**30:.2f} GiB at its peak, on the CPU")
    if estimate.peak_gpu is not None:
        print(f"GPU memory   {estimate.peak_gpu / 2**30:.2f} GiB at its peak")


main = command(parser, run)
