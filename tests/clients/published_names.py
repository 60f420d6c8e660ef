"""The names that stable-audio-tools 0.0.16 to 0.0.19 define at the top of their modules, by module."""

OFFERED = {
    "": "create_model_from_config create_model_from_config_path get_pretrained_model",
    "data.dataset": """
        AUDIO_KEYS LocalDatasetConfig LocalWebDatasetConfig PreEncodedDataset S3DatasetConfig
        SampleDataset WebDatasetDataLoader audio_decoder collation_fn create_dataloader_from_config
        fast_scandir get_audio_filenames get_dbmax get_latent_filenames is_silence is_silence_audio
        is_valid_sample keyword_scandir log_and_continue npy_decoder remove_long_silence
    """,
    "data.utils": "Mono PadCrop PadCrop_Normalized_T PhaseFlipper Stereo VolumeNorm",
    "inference.generation": """
        build_mask generate_diffusion_cond generate_diffusion_cond_inpaint generate_diffusion_uncond
    """,
    "inference.sampling": """
        DistributionShift alpha_sigma_to_t get_alphas_sigmas get_bmask make_cond_model_fn sample
        sample_discrete_euler sample_flow_dpmpp sample_flow_pingpong sample_k sample_rf sample_rk4
        sample_timesteps_logsnr t_to_alpha_sigma truncated_logistic_normal_rescaled
    """,
    "inference.utils": "prepare_audio set_audio_channels",
    "interface.aeiou": """
        audio_spectrogram_image embeddings_table mel_spectrogram pca_point_cloud point_cloud power_to_db
        proj_pca project_down spectrogram_image tokens_spectrogram_image
    """,
    "interface.gradio": "create_ui load_model model model_type sample_rate sample_size",
    "interface.interfaces.diffusion_cond": "create_diffusion_cond_ui",
    "models": "create_model_from_config create_model_from_config_path",
    "models.adp": "FixedEmbedding NumberEmbedder Patcher UNet1d UNetCFG1d Unpatcher XUNet1d",
    "models.arc": "ConvDiscriminator ConvNeXtDiscriminator get_relativistic_losses",
    "models.autoencoders": """
        AudioAutoencoder DACDecoderWrapper DACEncoderWrapper DecoderBlock DiffusionAutoencoder
        EncoderBlock OobleckDecoder OobleckEncoder TAAEBlock TAAEDecoder TAAEEncoder
        WNConv1d WNConvTranspose1d create_autoencoder_from_config create_decoder_from_config
        create_diffAE_from_config create_encoder_from_config fold_channels_into_batch
        unfold_channels_from_batch
    """,
    "models.blocks": """
        AdaRMSNorm Downsample1d Downsample1d_2 ForcedWNConv1d FourierFeatures LinearGEGLU RMSNorm ResConvBlock
        ResidualBlock SelfAttention1d SkipBlock SnakeBeta Upsample1d Upsample1d_2 expand_to_planes linear_geglu
        normalize rms_norm snake_beta zero_init
    """,
    "models.bottleneck": """
        Bottleneck DACRVQBottleneck DACRVQVAEBottleneck DiscreteBottleneck DitheredFSQBottleneck FSQBottleneck
        L2Bottleneck RVQBottleneck RVQVAEBottleneck SoftNormBottleneck TanhBottleneck VAEBottleneck
        WassersteinBottleneck compute_mean_kernel compute_mmd vae_sample
    """,
    "models.codebook_patterns": """
        CoarseFirstPattern CodebooksPatternProvider DelayedPatternProvider LayoutCoord MusicLMPattern
        ParallelPatternProvider Pattern PatternLayout UnrolledPatternProvider
    """,
    "models.conditioners": """
        CLAPAudioConditioner CLAPTextConditioner Conditioner IntConditioner ListConditioner MultiConditioner
        NumberConditioner PhonemeConditioner PretransformConditioner SourceMixConditioner T5Conditioner
        TokenizerLUTConditioner create_multi_conditioner_from_conditioning_config
    """,
    "models.convnext": "ConvNeXtBlock ConvNeXtDecoder ConvNeXtEncoder WNConv1d WNConvTranspose1d checkpoint",
    "models.diffusion": """
        ConditionedDiffusionModel ConditionedDiffusionModelWrapper DAU1DCondWrapper DiTUncondWrapper DiTWrapper
        DiffusionAttnUnet1D DiffusionModel DiffusionModelWrapper UNet1DCondWrapper UNet1DUncondWrapper
        UNetCFG1DWrapper create_diffusion_cond_from_config create_diffusion_uncond_from_config
    """,
    "models.discriminators": """
        BigVGANDiscriminator DACGANLoss EncodecDiscriminator OobleckDiscriminator get_hinge_losses
    """,
    "models.dit": "DiffusionTransformer",
    "models.encodec": """
        DiscriminatorOutput DiscriminatorSTFT FeatureMapType LogitsType MultiScaleSTFTDiscriminator
        NormConv2d checkpoint get_2d_padding
    """,
    "models.factory": """
        create_bottleneck_from_config create_model_from_config create_model_from_config_path
        create_pretransform_from_config
    """,
    "models.fsq": "DitheredFSQ leaky_hard_clip round_ste",
    "models.inpainting": "MaskType random_inpaint_mask",
    "models.lm": "AudioLanguageModel AudioLanguageModelWrapper LMOutput create_audio_lm_from_config",
    "models.lm_backbone": "AudioLMBackbone ContinuousTransformerAudioLMBackbone",
    "models.local_attention": """
        ContinuousLocalTransformer TransformerDecoder1D TransformerDownsampleBlock1D
        TransformerEncoder1D TransformerUpsampleBlock1D checkpoint
    """,
    "models.pqmf": "PQMF design_kaiser_lowpass design_prototype_filter generate_modulated_filter_bank pad_signal",
    "models.pretrained": "get_pretrained_model",
    "models.pretransforms": """
        AudiocraftCompressionPretransform AutoencoderPretransform PQMFPretransform PatchedPretransform
        PretrainedDACPretransform Pretransform WaveletPretransform
    """,
    "models.transformer": """
        AbsolutePositionalEmbedding Attention ConformerModule ContinuousTransformer DynamicTanh FeedForward GLU
        LayerNorm LayerScale RotaryEmbedding RunningInstanceNorm ScaledSinusoidalEmbedding TransformerBlock
        apply_rotary_pos_emb checkpoint create_causal_mask or_reduce rotate_half
    """,
    "models.utils": """
        compile copy_state_dict enable_torch_compile load_ckpt_state_dict multinomial
        next_multiple_of_64 next_power_of_two remove_weight_norm_from_model sample_top_k sample_top_p
    """,
    "models.wavelets": "WaveletDecode1d WaveletEncode1d",
    "training": "create_demo_callback_from_config create_training_wrapper_from_config",
    "training.arc": "ARCTrainingWrapper",
    "training.autoencoders": """
        AutoencoderDemoCallback AutoencoderTrainingWrapper create_loss_modules_from_bottleneck trim_to_shortest
    """,
    "training.diffusion": """
        DiffusionAutoencoderDemoCallback DiffusionAutoencoderTrainingWrapper DiffusionCondDemoCallback
        DiffusionCondInpaintDemoCallback DiffusionCondInpaintTrainingWrapper
        DiffusionCondTrainingWrapper DiffusionUncondDemoCallback DiffusionUncondTrainingWrapper
    """,
    "training.factory": "create_demo_callback_from_config create_training_wrapper_from_config",
    "training.lm": "AudioLanguageModelDemoCallback AudioLanguageModelTrainingWrapper",
    "training.losses.auraloss": """
        FIRFilter MelSTFTLoss MultiResolutionSTFTLoss SDSDRLoss SISDRLoss STFTLoss STFTMagnitudeLoss
        SpectralConvergenceLoss SumAndDifference SumAndDifferenceSTFTLoss apply_reduction get_window
    """,
    "training.losses.losses": """
        AuralossLoss L1Loss LossModule LossWithTarget MSELoss MultiLoss StereoImageLoss TargetValueLoss
        TimeDomainMMDLoss ValueLoss
    """,
    "training.losses.metrics": "PESQMetric",
    "training.losses.semantic": "HubertLoss MelSpectrogramLoss fold_channels_into_batch",
    "training.losses.utils": "DynamicLossWeighting grouped_mmd mmd",
    "training.utils": """
        InverseLR copy_state_dict create_optimizer_from_config create_scheduler_from_config get_rank log_audio
        log_image log_metric log_point_cloud logger_project_name
    """,
}

# Internals of networks and pages that are built otherwise here, and parts that lost their use upstream.
NOT_OFFERED = {
    "data.dataset": "get_all_s3_urls get_s3_contents group_by_keys",
    "interface.gradio": """
        autoencoder_process create_autoencoder_ui create_diffusion_prior_ui create_diffusion_uncond_ui
        create_lm_ui create_sampling_ui create_txt2audio_ui create_uncond_sampling_ui diffusion_prior_process
        generate_cond generate_lm generate_uncond
    """,
    "interface.interfaces.diffusion_cond": """
        condense_prompt create_sampling_ui delete_files_async diffusion_objective generate_cond model model_half
        model_type sample_rate sample_size
    """,
    "models.adp": """
        Attention AttentionBase BottleneckBlock1d ConditionedSequential Conv1d ConvBlock1d ConvTranspose1d
        Downsample1d DownsampleBlock1d FeedForward LearnedPositionalEmbedding MappingToScaleShift ResnetBlock1d
        STFT SinusoidalEmbedding T TimePositionalEmbedding Transformer1d TransformerBlock UNetAll1d UNetNCCA1d
        Upsample1d UpsampleBlock1d add_mask causal_mask closest_power_2 default exists
        get_extra_padding_for_conv1d group_dict_by_prefix groupby pad1d pad_for_conv1d rand_bool unpad1d
    """,
    "models.autoencoders": "ResidualUnit Transpose checkpoint get_activation",
    "models.blocks": "compile use_compile",
    "models.codebook_patterns": "logger",
    "models.conditioners": "clap_load_state_dict",
    "models.convnext": "ConvNextDecoderBlock ConvNextEncoderBlock",
    "models.diffusion": "Profiler",
    "models.diffusion_prior": "DiffusionPrior MonoToStereoDiffusionPrior PriorType",
    "models.discriminators": """
        BANDS DACDiscriminator IndividualDiscriminatorOut MPD MRD MSD MultiDiscriminator
        MultiPeriodDiscriminator MultiScaleDiscriminator MultiScaleSubbandCQTDiscriminator
        SharedDiscriminatorConvNet TensorDict
    """,
    "models.lm_backbone": "XTransformersAudioLMBackbone",
    "models.pqmf": """
        apply_alias_cancellation ensure_odd_length evaluate_filter_objective pad_to_nearest_power_of_two
        polyphase_analysis polyphase_synthesis prepare_signal_dimensions
    """,
    "models.wavelets": "get_filter_bank",
    "training.arc": "checkpoint euler_step sample_flow_dpmpp_w_intermediates",
    "training.diffusion": "DiffusionPriorDemoCallback DiffusionPriorTrainingWrapper Profiler create_source_mixture",
    "training.losses.auraloss": "normalized_complex_distance_loss",
    "training.losses.utils": "flat_pairwise_sq_distance mmd_loss_flat multi_bandwidth_kernel_2d",
}
