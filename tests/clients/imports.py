"""What other people's projects import, as facts: by project, the names of each module."""

IMPORTS = {
    "stable-codec": {
        "": "get_pretrained_model",
        "models": "create_model_from_config",
        "models.autoencoders": "AudioAutoencoder fold_channels_into_batch unfold_channels_from_batch",
        "models.bottleneck": (
            "VAEBottleneck RVQBottleneck DACRVQBottleneck DACRVQVAEBottleneck RVQVAEBottleneck WassersteinBottleneck"
        ),
        "models.discriminators": "EncodecDiscriminator OobleckDiscriminator DACGANLoss",
        "models.fsq": "DitheredFSQ",
        "models.utils": "load_ckpt_state_dict remove_weight_norm_from_model",
        "training.losses": (
            "MelSpectrogramLoss MultiLoss AuralossLoss ValueLoss L1Loss LossWithTarget MSELoss HubertLoss LossModule "
            "auraloss"
        ),
        "training.utils": (
            "create_optimizer_from_config create_scheduler_from_config log_metric log_image log_point_cloud "
            "logger_project_name log_audio copy_state_dict"
        ),
        "interface.aeiou": "audio_spectrogram_image tokens_spectrogram_image",
        "data.dataset": (
            "S3DatasetConfig LocalWebDatasetConfig log_and_continue audio_decoder npy_decoder is_valid_sample "
            "collation_fn AUDIO_KEYS remove_long_silence"
        ),
        "data.utils": "Stereo Mono PhaseFlipper PadCrop_Normalized_T VolumeNorm",
    },
    "stable-audio-controlnet": {
        "models.diffusion": "DiTWrapper UNetCFG1DWrapper UNet1DCondWrapper ConditionedDiffusionModelWrapper",
        "models.dit": "DiffusionTransformer",
        "models.utils": "load_ckpt_state_dict",
        "models.blocks": "FourierFeatures",
        "models.transformer": (
            "ContinuousTransformer checkpoint ScaledSinusoidalEmbedding RotaryEmbedding AbsolutePositionalEmbedding "
            "TransformerBlock"
        ),
        "models.conditioners": "MultiConditioner create_multi_conditioner_from_conditioning_config",
        "models.factory": "create_pretransform_from_config",
        "models.pretransforms": "Pretransform",
        "inference.generation": "generate_diffusion_cond",
        "inference.sampling": "get_alphas_sigmas",
    },
    "LoRAW": {"training.utils": "copy_state_dict"},
    "smthemex ComfyUI": {"models.utils": "load_file"},
    "rsxdalv TTS-WebUI": {"interface.gradio": "load_model model model_type sample_rate sample_size"},
    "indexed projects": {"models.lora": "load_and_apply_loras"},
}
