"""The form of the released checkpoints: their index, their names of classes, their components' configurations."""

from mova_engine.config.model import PRESETS

INDEX = "model_index.json"
# Our own entry of the index: name, text length, clip, sampling, diffusion. diffusers skips names with an underscore.
OWN_ENTRY = "_mova_engine"
# Beside the index of a folder that `mova quantise` wrote: of what it was made, and with which errors.
QUANTISATION = "quantisation.json"
BOUNDARY_RATIO = 0.9
# What a released folder holds that does not state it.
RELEASED = PRESETS["mova-360p"]
# (library, class) of the released checkpoints' model_index.json.
MODEL_CLASSES = {
    "video_dit": ("mova.diffusion.models.wan_video_dit", "WanModel"),
    "video_dit_2": ("mova.diffusion.models.wan_video_dit", "WanModel"),
    "audio_dit": ("mova.diffusion.models.wan_audio_dit", "WanAudioModel"),
    "dual_tower_bridge": ("mova.diffusion.models.interactionv2", "DualTowerConditionalBridge"),
}
EMBEDDED = "mova_engine.codecs"
# By component, then by the kind that MovaConfig names.
CODEC_CLASSES = {
    "video_vae": {"wan": ("diffusers", "AutoencoderKLWan"), "dct": (EMBEDDED, "DctVideoCodec")},
    "audio_vae": {"dac": ("mova.diffusion.models.dac_vae", "DAC"), "mdct": (EMBEDDED, "MdctAudioCodec")},
    "text_encoder": {"umt5": ("transformers", "UMT5EncoderModel"), "bytes": (EMBEDDED, "ByteTextEncoder")},
}
SCHEDULER_CLASS = ("mova.diffusion.schedulers.flow_match_pair", "FlowMatchPairScheduler")
ABSENT = (None, None)
SCHEDULER_CONFIG = {
    "_class_name": "FlowMatchPairScheduler",
    "exponential_shift": False,
    "exponential_shift_mu": None,
    "extra_one_step": False,
    "inverse_timesteps": False,
    "num_inference_steps": 100,
    "num_train_timesteps": 1000,
    "reverse_sigmas": False,
    "shift": 5.0,
    "shift_terminal": None,
    "sigma_max": 1.0,
    "sigma_min": 0.003 / 1.002,
}
# Options of the towers' classes that change the network, and that the released models leave off: (key, value we have).
TOWER_OPTIONS = {
    "has_image_input": False,
    "has_image_pos_emb": False,
    "has_ref_conv": False,
    "add_control_adapter": False,
    "seperated_timestep": False,  # spelt so in the checkpoints
    "require_clip_embedding": False,
    "fuse_vae_embedding_in_latents": False,
}
