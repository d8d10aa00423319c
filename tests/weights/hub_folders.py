"""Settings in folders of the hub, as diffusers 0.4 to 0.10 and transformers 4.22 to 4.26 wrote.

Those of SD 1.4, both inpainting models, 2.1 and 2.1-base are taken from people's copies of the hub,
shortened where files agree. Those of the upscaler, unCLIP, depth, a whole CLIP and the images'
towers are put together from the fields that these versions write: no copy was at hand.
"""

DOWN = [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"]
UP = ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]
SD1_4_UNET = {
    "_class_name": "FlaxUNet2DConditionModel",
    "_diffusers_version": "0.5.0.dev0",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": DOWN,
    "dropout": 0.0,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": UP,
}
SD1_5_INPAINTING_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0.dev0",
    "_name_or_path": "./stable-diffusion-v1-5-inpainting/unet",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": DOWN,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 9,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 32,
    "up_block_types": UP,
}
SD2_INPAINTING_UNET = SD1_5_INPAINTING_UNET | {
    "_diffusers_version": "0.8.0",
    "_name_or_path": "stability/stable-diffusion-2-inpainting/unet",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "use_linear_projection": True,
}
SD2_1_BASE_UNET = SD2_INPAINTING_UNET | {
    "_diffusers_version": "0.10.0.dev0",
    "_name_or_path": "./stability/stable-diffusion-2-1-base/unet",
    "in_channels": 4,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 64,
}
SD2_1_UNET = SD2_1_BASE_UNET | {"sample_size": 96, "upcast_attention": True}
X4_UNET = SD2_1_BASE_UNET | {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 8,
    "block_out_channels": [256, 512, 512, 1024],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "in_channels": 7,
    "num_class_embeds": 1000,
    "only_cross_attention": [True, True, True, False],
    "sample_size": 128,
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0.dev0",
    "_name_or_path": "./stable-diffusion-v1-5-inpainting/vae",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
X4_VAE = VAE | {
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
SD1_4_TEXT = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.23.1",
    "vocab_size": 49408,
}
SD2_TEXT = SD1_4_TEXT | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
    "torch_dtype": "float16",
}
PNDM_0_4 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.4.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
PNDM_0_10 = PNDM_0_4 | {"clip_sample": False, "prediction_type": "epsilon"}
DDIM_V = PNDM_0_10 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
X4_DDIM = DDIM_V | {"beta_start": 0.0001, "beta_end": 0.02}
X4_DDPM = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",  # as if it predicted anything
    "trained_betas": None,
    "variance_type": "fixed_small",
}
COSINE_DDPM = X4_DDPM | {"beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 1.0}
END = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True}
TOKENIZER = {  # of SD 2 as well
    "add_prefix_space": False,
    "model_max_length": 77,
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": END,
}
SD2_SPECIAL = {"eos_token": END, "pad_token": "!", "unk_token": END}
# What transformers 4.23 wrote about generation into every config.
GENERATION = {
    "add_cross_attention": False,
    "architectures": None,
    "attention_dropout": 0.0,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "dropout": 0.0,
    "exponential_decay_length_penalty": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "is_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "return_dict": True,
    "temperature": 1.0,
    "tie_word_embeddings": True,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.23.1",
    "typical_p": 1.0,
    "use_bfloat16": False,
}
L_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
L_IMAGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
CLIP_L = {
    "_commit_hash": None,
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": GENERATION
    | L_TEXT
    | {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "pad_token_id": 1,
        "vocab_size": 49408,
    },
    "text_config_dict": L_TEXT,
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": GENERATION
    | L_IMAGE
    | {
        "hidden_act": "quick_gelu",
        "image_size": 224,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_channels": 3,
        "pad_token_id": None,
    },
    "vision_config_dict": L_IMAGE,
}
SAFETY = CLIP_L | {"architectures": ["StableDiffusionSafetyChecker"]}
H_IMAGE = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
    "torch_dtype": "float32",
    "transformers_version": "4.27.0.dev0",
}
DPT = {
    "architectures": ["DPTForDepthEstimation"],
    "attention_probs_dropout_prob": 0.0,
    "auxiliary_loss_weight": 0.4,
    "backbone_config": GENERATION
    | {
        "depths": [3, 4, 9],
        "drop_path_rate": 0.0,
        "embedding_dynamic_padding": True,
        "embedding_size": 64,
        "global_padding": "SAME",
        "hidden_act": "relu",
        "hidden_sizes": [256, 512, 1024, 2048],
        "layer_type": "bottleneck",
        "model_type": "bit",
        "num_channels": 3,
        "num_groups": 32,
        "out_features": ["stage1", "stage2", "stage3"],
        "output_stride": 32,
        "stage_names": ["stem", "stage1", "stage2", "stage3"],
        "width_factor": 1,
    },
    "backbone_featmap_shape": [1, 1024, 24, 24],
    "backbone_out_indices": [2, 5, 8, 11],
    "fusion_hidden_size": 256,
    "head_in_index": -1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 384,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "is_hybrid": True,
    "layer_norm_eps": 1e-12,
    "model_type": "dpt",
    "neck_hidden_sizes": [256, 512, 768, 768],
    "neck_ignore_stages": [0, 1],
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
    "readout_type": "project",
    "reassemble_factors": [1, 1, 1, 0.5],
    "semantic_classifier_dropout": 0.1,
    "semantic_loss_ignore_index": 255,
    "torch_dtype": "float32",
    "transformers_version": None,
    "use_auxiliary_head": True,
    "use_batch_norm_in_fusion_residual": False,
}


def system(unet, vae, text, scheduler, special=None, **others):
    """The files of a folder, those for the tokenizer as the hub has them."""
    files = {
        "unet/config.json": unet,
        "vae/config.json": vae,
        "text_encoder/config.json": text,
        "scheduler/scheduler_config.json": scheduler,
        "tokenizer/tokenizer_config.json": TOKENIZER,
        **{name.replace("__", "/") + ".json": values for name, values in others.items()},
    }
    return files | ({"tokenizer/special_tokens_map.json": special} if special else {})


UNCLIP_UNET = SD2_1_UNET | {
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 2048,
}
REAL = {
    "sd-1-4": (system(SD1_4_UNET, VAE, SD1_4_TEXT, PNDM_0_4), "sd1"),
    "sd-1-4 with safety checker": (
        system(SD1_4_UNET, VAE, SD1_4_TEXT, PNDM_0_4, safety_checker__config=SAFETY),
        "sd1+safety",
    ),
    "sd-1-5-inpainting": (
        system(SD1_5_INPAINTING_UNET, VAE, SD1_4_TEXT | {"projection_dim": 768}, PNDM_0_4),
        "sd1-inpainting",
    ),
    "sd-2-1": (system(SD2_1_UNET, VAE, SD2_TEXT, DDIM_V, SD2_SPECIAL), "sd2-v"),
    "sd-2-1-base": (system(SD2_1_BASE_UNET, VAE, SD2_TEXT, PNDM_0_10, SD2_SPECIAL), "sd2-base"),
    "sd-2-inpainting": (
        system(SD2_INPAINTING_UNET, VAE, SD2_TEXT, PNDM_0_10, SD2_SPECIAL),
        "sd2-inpainting",
    ),
    "x4-upscaler": (
        system(
            X4_UNET,
            X4_VAE,
            SD2_TEXT,
            X4_DDIM,
            SD2_SPECIAL,
            low_res_scheduler__scheduler_config=X4_DDPM,
        ),
        "sd2-x4-upscaler",
    ),
    "sd-2-1-unclip": (
        system(
            UNCLIP_UNET,
            VAE,
            SD2_TEXT,
            DDIM_V,
            SD2_SPECIAL,
            image_encoder__config=H_IMAGE,
            image_noising_scheduler__scheduler_config=COSINE_DDPM,
        ),
        "sd2-unclip-h",
    ),
}
