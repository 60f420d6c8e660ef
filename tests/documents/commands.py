"""The command lines of five documents, as facts: the script, its flags, and values of the kind that the document names.

`/path/to/...` and names in capitals stand for the reader's own files.
"""

from typing import NamedTuple


class Line(NamedTuple):
    """One command line of a document."""

    document: str
    script: str
    flags: str


_DATA = "stable_audio_tools/configs/dataset_configs"
_MODELS = "stable_audio_tools/configs/model_configs"
_START = (
    f"--dataset-config {_DATA}/local_training_custom.json --pretrained-ckpt-path dataset/pretrained_model/model.ckpt "
    "--pretransform-ckpt-path dataset/pretrained_model/vae_model.ckpt"
)

LINES = [
    Line("upstream", "run_gradio.py", "--pretrained-name stabilityai/stable-audio-open-1.0"),
    Line("upstream", "train.py", "--dataset-config /path/to/D --model-config /path/to/M --name harmonai_train"),
    Line("upstream", "unwrap_model.py", "--model-config /path/to/M --ckpt-path /path/to/wrapped --name model_unwrap"),
    Line(
        "upstream",
        "pre_encode.py",
        "--model-config /path/to/M.json --ckpt-path /path/to/model.ckpt --model-half --dataset-config /path/to/D.json "
        "--output-path /path/to/out --sample-size 1320960",
    ),
    Line("friendly", "train.py", "--dataset-config /path/to/D --model-config /path/to/M --name my_experiment"),
    Line("friendly", "unwrap_model.py", "--model-config /path/to/M --ckpt-path /path/to/w.ckpt --name /path/to/new"),
    Line(
        "friendly",
        "train.py",
        f"--dataset-config {_DATA}/local_training_example.json "
        f"--model-config {_MODELS}/autoencoders/stable_audio_2_0_vae.json --name vae_training --num-gpus 8 "
        "--batch-size 10 --num-workers 8 --save-dir /path/to/out",
    ),
    Line(
        "friendly",
        "unwrap_model.py",
        f"--model-config {_MODELS}/autoencoders/stable_audio_2_0_vae.json --ckpt-path /path/to/last.ckpt "
        "--name /path/to/unwrapped_last",
    ),
    Line(
        "friendly",
        "reconstruct_audios.py",
        f"--model-config {_MODELS}/autoencoders/stable_audio_2_0_vae.json --ckpt-path /path/to/unwrapped_last.ckpt "
        "--audio-dir /path/to/audio --output-dir /path/to/out --frame-duration 1.0 --overlap-rate 0.01 "
        "--batch-size 50",
    ),
    Line(
        "friendly",
        "train.py",
        f"--dataset-config {_DATA}/local_training_example.json "
        f"--model-config {_MODELS}/txt2audio/stable_audio_2_0.json "
        "--pretransform-ckpt-path /path/to/unwrapped_last.ckpt --name dit_training --num-gpus 8 --batch-size 10 "
        "--save-dir /path/to/out",
    ),
    Line(
        "open",
        "generate.py",
        "--output-dir /path/to/out --cond-yaml-path example/generation/generate_conditions.yaml --n-sample-per-cond 2 "
        "--batch-size 20 --clip-length",
    ),
    Line("open", "run_gradio.py", "--pretrained-name stabilityai/stable-audio-open-1.0 --tmp-dir /path/to/tmp"),
    Line("jamendo", "download_mtg_jamendo.py", "--target 5000 --audio-dir dataset/small-5000/audio"),
    Line(
        "jamendo",
        "scripts/dac_hist_dedup.py",
        f"--dataset-config {_DATA}/local_training_custom.json --output-dir outputs/dac_dedup --device cuda "
        "--similarity-device cuda --similarity-threshold 0.95 --histogram-mode per_codebook --max-audio-seconds 120",
    ),
    Line(
        "jamendo",
        "scripts/precompute_song_describer_clap_embeddings.py",
        "--csv-path dataset/small-700/song_describer.csv --audio-dir dataset/small-700/audio "
        "--output-path dataset/small-700/song_describer_clap_embeddings.npz --prompt-source training_style "
        "--prompt-seed 0 --device cuda",
    ),
    Line(
        "jamendo",
        "train.py",
        f"--model-config model_config.json {_START} --batch-size 8 --num-workers 8 --precision 16-mixed "
        "--name stable_audio_open_finetune --save-dir outputs",
    ),
    Line(
        "jamendo",
        "train.py",
        f"--model-config model_config_freeze_vae.json {_START} --batch-size 8 --num-workers 8 --precision 16-mixed "
        "--name stable_audio_open_finetune_freeze_vae --save-dir outputs",
    ),
    Line(
        "jamendo",
        "train_lora.py",
        f"--model-config model_config_lora.json {_START} --batch-size 32 --num-workers 8 --precision 16-mixed "
        "--name stable_audio_lora_jamendo --save-dir outputs",
    ),
    Line(
        "jamendo",
        "unwrap_model.py",
        "--model-config model_config.json --ckpt-path /path/to/checkpoint.ckpt --name model_unwrap",
    ),
    Line(
        "jamendo",
        "scripts/eval_song_describer_checkpoint_clap.py",
        "--model-config model_config.json --ckpt-path model_unwrap.ckpt "
        "--precomputed-embeddings-path dataset/small-700/song_describer_clap_embeddings.npz --steps 100 --cfg-scale 7 "
        "--gen-batch-size 4 --clap-batch-size 8 --device cuda",
    ),
]

# The guide to spectrogram models: the flags of its scripts, with values of its examples.
_SPECTROGRAMS = "--hop_length 256 --sample_rate 22050 --n_fft 1024"
LINES += [
    Line("mel", script, flags)
    for script, flags in (
        (
            "scripts/audio_to_images.py",
            f"--input_dir /path/to/audio --output_dir data/mels --resolution 1024,256 --mel_spec_method image "
            f"--num_channels 1 {_SPECTROGRAMS}",
        ),
        (
            "scripts/audio_to_images.py",
            "--input_dir /path/to/audio --output_dir data/bigvgan --resolution 2048,128 --mel_spec_method bigvgan "
            "--bigvgan_model bigvgan_v2_44khz_128band_256x",
        ),
        (
            "scripts/train_vae.py",
            "--dataset_name data/mels --mel_spec_method image --batch_size 2 --gradient_accumulation_steps 12 "
            "--ldm_config_file config/ldm_autoencoder_kl.yaml --ldm_checkpoint_dir models/ldm --hf_checkpoint_dir "
            f"models/vae --max_epochs 100 --save_images_batches 1000 --resolution 1024,256 --latent_dims 256,64 "
            f"--model_size small {_SPECTROGRAMS}",
        ),
        (
            "scripts/train_unet.py",
            "--dataset_name data/mels --mel_spec_method image --output_dir models/ddpm --model_size small "
            "--train_batch_size 2 --eval_batch_size 2 --num_epochs 100 --max_training_num_steps 100000 "
            "--save_images_steps 10000 25000 --save_model_steps 10000 25000 --gradient_accumulation_steps 8 "
            "--learning_rate 1e-4 --lr_scheduler cosine --lr_warmup_steps 500 --mixed_precision no --use_ema True "
            "--num_train_steps 1000 --num_inference_steps 1000 --train_scheduler ddpm --test_scheduler ddpm "
            f"{_SPECTROGRAMS}",
        ),
        (
            "scripts/train_unet.py",
            "--dataset_name data/mels --output_dir models/latent --train_batch_size 2 --num_epochs 100 "
            "--max_training_num_steps 100000 --vae models/vae",
        ),
        (
            "scripts/train_unet.py",
            "--dataset_name data/mels --output_dir models/cond --train_batch_size 2 --num_epochs 100 "
            "--max_training_num_steps 100000 --encodings data/encodings.p",
        ),
        (
            "scripts/train_unet.py",
            "--dataset_name data/mels --output_dir models/more --train_batch_size 2 --num_epochs 100 "
            "--max_training_num_steps 100000 --from_pretrained models/ddpm",
        ),
        (
            "scripts/inference_unet.py",
            "--pretrained_model_path models/ddpm --mel_spec_method image --num_images 10 --num_inference_steps 50 "
            "--n_iter 32 --seed 42 --eval_batch_size 32 --scheduler ddim",
        ),
        (
            "scripts/inference_unet.py",
            "--pretrained_model_path models/latent --mel_spec_method bigvgan --num_images 10 --scheduler ddpm "
            "--continuous_outpainting --target_length 60 --percentage_overlap 0.5 --gold_label_path /path/to/audio",
        ),
        (
            "scripts/convert_bigvgan_pt_to_audio.py",
            "--directory data/tensors --bigvgan_model bigvgan_v2_44khz_128band_256x",
        ),
        (
            "scripts/evaluation.py",
            "--reference_paths /path/to/audio --generated_path models/ddpm/samples --metric frechet_audio_distance "
            "--model_names clap-laion-music --log_dir models/evaluation --log_step 0",
        ),
    )
]

# Files that the documents have the reader start, by sbatch or bash.
STARTED = [
    "scripts/run_dtrak_attribution.sh",
    "scripts/run_dtrak_attribution.slurm",
    "scripts/run_eval_song_describer_checkpoint_clap.slurm",
    "scripts/run_dac_hist_dedup.slurm",
    "scripts/run_precompute_song_describer_clap_embeddings.slurm",
]
