"""ai-toolkit (ostris): a job's YAML or JSON file, as its examples and its interface write them."""

# What a file holds may be of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mova_engine.config.command import read_yaml
from mova_engine.config.from_tools import translation as to
from mova_engine.config.from_tools.translation import NO_OPTIONS, Keys, Only, Rule, Same, Translation, Unused, named
from mova_engine.errors import MovaError

_TRAINERS = ("sd_trainer", "ui_trainer", "diffusion_trainer")
_SAMPLES = "samples have the clips' size, and the model's own guidance"
_SIZE = (
    "a run has one size, the checkpoint's unless told, or buckets: leave it out, or give --clip.height and "
    "--clip.width, or --buckets.aspects; clips are scaled and cropped to them"
)
_STRETCHED = (
    "clips keep their speed, as their sound does, and are the file's beginning: set it to false, or give --clip.frames"
)
_LENGTH = "clips are videos with sound: give their number of frames, or --clip.frames"
_TIMES = "times are drawn uniformly here and then shifted: use linear, or give --diffusion.video-shift"

# Names are those of the parts of a job's process, with the part before them.
_TABLE: dict[str, Rule] = {
    "type": Only(_TRAINERS, "adapters of a model are what is trained here (sd_trainer)"),
    **named("device sqlite_db_path log_dir performance_log_every", Unused("it is no part of the job")),
    "trigger_word": Only(to.NEUTRAL, "write the word into the captions and prompts, and remove it"),
    "network.type": Only(("lora",), "low-rank adapters (lora) are what is trained here"),
    "network.pretrained_lora_path": Same("lora.init"),
    "network.dropout": Only(to.NEUTRAL, "adapters have no dropout here: remove it"),
    **named(
        "conv conv_alpha transformer_only split_multistage_loras lokr_full_rank lokr_factor old_lokr_format",
        Unused("adapters are of linear layers of all towers, of the bridge too; lora.targets says which"),
        "network.",
    ),
    "network.network_kwargs": Only(to.NEUTRAL, "remove it; --lora.targets says which layers are adapted"),
    "network.all_layers": Only(to.NEUTRAL, "linear layers alone are adapted: remove it"),
    "network.layer_offloading": Unused(to.OF_MEMORY),
    "save.save_every": Same("checkpoint.every"),
    "save.max_step_saves_to_keep": Same("checkpoint.keep_last"),
    "save.dtype": Unused("adapters are saved as they are trained"),
    **named("push_to_hub hf_repo_id hf_private", Unused(to.OF_UPLOADS), "save."),
    **named("log_every verbose use_wandb use_ui_logger project_name run_name", Unused(to.OF_LOGS)),
    "datasets.caption_ext": Only(("txt", ".txt"), "captions are in .txt files, or in metadata.jsonl"),
    "datasets.caption_dropout_rate": Same("diffusion.text_dropout"),
    "datasets.num_workers": Same("loader.workers"),
    **named(
        "cache_latents cache_latents_to_disk cache_text_embeddings cache_tensors_to_disk "
        "cache_clip_vision_to_disk prefetch_factor cache_latents_num_workers load_image_when_caching_latents "
        "debug fast_image_size",
        Unused("clips and captions are encoded once, and kept beside the clips or in --loader.cache"),
        "datasets.",
    ),
    "datasets.num_repeats": Unused("a run has one folder of clips, and its length is train.steps"),
    "datasets.do_i2v": Unused("MOVA always goes on from a first frame"),
    "datasets.do_audio": Unused("sound is always learnt; --loader.silent-audio says what to do with clips without"),
    **named(
        "is_reg prior_reg flip_x flip_y random_crop random_scale augments augmentations shuffle_tokens "
        "token_dropout_rate keep_tokens control_path control_path_1 control_path_2 control_path_3 "
        "inpaint_path mask_path alpha_mask invert_mask unconditional_path clip_image_path "
        "trigger_word default_caption random_triggers replacements controls square_crop standardize_images "
        "auto_frame_count use_short_captions extra_values audio_normalize audio_preserve_pitch",
        Only(to.NEUTRAL, "clips and captions are taken as they are: remove it"),
        "datasets.",
    ),
    **named(
        "network_weight loss_multiplier scale",
        Only((1,), "all clips count alike: remove it"),
        "datasets.",
    ),
    "train.steps": Same("steps"),
    "train.lr": Same("optim.lr"),
    "train.max_grad_norm": Same("optim.clip"),
    "train.audio_loss_multiplier": Same("diffusion.audio_weight"),
    "train.train_unet": Only((True,), "the towers' adapters are what is trained here"),
    "train.noise_scheduler": Only(("flowmatch",), "MOVA is a model of flow matching (flowmatch)"),
    "train.loss_type": Only(("mse",), "the loss is the mean square (mse)"),
    "train.content_or_style": Only(("balanced",), "all noise levels are drawn alike: use balanced"),
    "train.switch_boundary_every": Unused("each step draws the expert it trains"),
    "train.gradient_checkpointing": Unused(to.OF_MEMORY),
    **named("xformers sdp attention_backend", Unused(to.OF_OPERATORS), "train."),
    **named(
        "cache_text_embeddings bypass_guidance_embedding force_first_sample text_encoder_lr unet_lr max_loss_debug",
        Unused("it changes nothing here"),
        "train.",
    ),
    "train.unload_text_encoder": Only(to.NEUTRAL, "captions are always used; their features are kept: remove it"),
    **named(
        "diff_output_preservation_multiplier diff_output_preservation_class blank_prompt_preservation_multiplier",
        Unused("it belongs to other keys, which are off"),
        "train.",
    ),
    "train.max_denoising_steps": Only((999, 1000), "both experts are trained on all their noise levels: remove it"),
    "train.reg_weight": Only((1,), "all clips count alike: remove it"),
    **named(
        "noise_multiplier target_noise_multiplier img_multiplier latent_multiplier noisy_latent_multiplier "
        "pred_scaler optimal_noise_pairing_samples",
        Only((1,), "noise and latents are taken as they are: remove it"),
        "train.",
    ),
    **named(
        "train_text_encoder noise_offset min_denoising_steps min_snr_gamma snr_gamma learnable_snr_gos "
        "weight_jitter start_step free_u random_noise_multiplier random_noise_shift do_cfg do_random_cfg "
        "do_prior_divergence do_fft_loss t0_loss_target do_differential_guidance do_guidance_loss "
        "diff_output_preservation blank_prompt_preservation inverted_mask_prior short_and_long_captions "
        "single_item_batching match_noise_norm adaptive_scaling_factor standardize_images standardize_latents "
        "force_consistent_noise blended_blur_noise train_turbo merge_network_on_save negative_prompt "
        "adapter_assist_name_or_path prompt_saturation_chance prompt_dropout_prob do_paramiter_swapping "
        "correct_pred_norm target_norm_std max_loss validation_config latent_feature_extractor_path "
        "diffusion_feature_extractor_path do_blank_stabilization linear_timesteps linear_timesteps2",
        Only(to.NEUTRAL, "not there: remove it"),
        "train.",
    ),
    **named(
        "name_or_path arch dtype vae_path vae_dtype vae_device te_name_or_path te_dtype te_device "
        "extras_name_or_path model_paths attn_masking in_context",
        Unused(to.OF_THE_MODEL),
        "model.",
    ),
    **named(
        "quantize qtype quantize_te qtype_te quantize_kwargs accuracy_recovery_adapter text_encoder_bits",
        Unused(to.OF_QUANTISING),
        "model.",
    ),
    **named(
        "low_vram auto_memory layer_offloading layer_offloading_transformer_percent "
        "layer_offloading_text_encoder_percent split_model_over_gpus "
        "split_model_other_module_param_count_scale",
        Unused(to.OF_MEMORY),
        "model.",
    ),
    **named(
        "compile block_compile compile_mode compile_fullgraph compile_dynamic cache_size_limit",
        Unused(to.OF_OPERATORS),
        "model.",
    ),
    **named(
        "lora_path assistant_lora_path inference_lora_path",
        Only(to.NEUTRAL, "merge it first (mova lora merge) and train on the merged folder"),
        "model.",
    ),
    **named(
        "ignore_if_contains only_if_contains",
        Only(to.NEUTRAL, "remove it; --lora.targets says which layers are adapted"),
        "model.",
    ),
    **named(
        "train_high_noise train_low_noise",
        Only((True,), "both experts are trained: set it to true"),
        "model.model_kwargs.",
    ),
    **named(
        "sampler width height num_frames fps neg guidance_scale guidance_rescale network_multiplier format "
        "adapter_conditioning_scale refiner_start_at extra_values do_cfg_norm sample_start_step",
        Unused(_SAMPLES),
        "sample.",
    ),
    "ema_decay": Unused("the weights are not averaged (use_ema)"),
}
_OF_A_SAMPLE = ("width", "height", "num_frames", "fps", "neg", "guidance_scale", "sample_steps", "network_multiplier")


def translate(path: Path, options: Mapping[str, str | None] = NO_OPTIONS) -> Translation:
    """The settings of a run that a job of ai-toolkit asks for. options: those of the command line.

    Raises MovaError in one line for a file that is no such job, and for keys without a counterpart, by name.
    """
    if not path.is_file():
        raise MovaError(f"--from-aitk: there is no file {path}")
    job = read_yaml(path)
    config = job.get("config")
    processes = config.get("process") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(processes, list) or not processes:
        raise MovaError(f"{path} is no job of ai-toolkit: it has no config with a process")
    keys = Keys(path, {}, options)
    process = to.one_of(keys, "process", processes, "process")
    keys.values = _flat(keys, process)
    for name, value in job.items():
        if name not in ("job", "config", "meta"):
            keys.values[name] = value
    for name, value in config.items():
        if name not in ("name", "process"):
            keys.values[name] = value
    keys.values["name"] = config.get("name") or path.stem
    name = keys.text("name")
    folder = Path(keys.text("training_folder") or "runs") / name
    keys.set("name", name, "name")
    keys.set("out", str(folder), "training_folder")
    _data(keys)
    batch = keys.whole("train.batch_size", 1, 1)
    accumulation = max(
        keys.whole("train.gradient_accumulation", 1, 1), keys.whole("train.gradient_accumulation_steps", 1, 1)
    )
    counts = ("train.batch_size", "train.gradient_accumulation", "train.gradient_accumulation_steps")
    to.batches(keys, keys.whole("datasets.batch_size", batch, 1), accumulation, "datasets.batch_size", *counts)
    alpha = keys.number("network.linear_alpha", keys.number("network.alpha", 1.0))
    rank = keys.whole("network.rank", keys.whole("network.linear", 4, 1), 1)
    keys.set("lora.rank", rank, "network.rank", "network.linear")
    keys.set("lora.alpha", float(alpha), "network.linear_alpha", "network.alpha")
    steps = keys.whole("train.steps", 1000, 1)
    if not keys.has("train.steps"):
        keys.set("steps", steps)
    if not keys.has("train.lr"):
        keys.set("optim.lr", 1e-6)
    params = "train.optimizer_params"
    to.optimizer(keys, "train.optimizer", params, to.mapping(path, params, keys.values.get(params)))
    to.course(keys, "train.lr_scheduler", "train.lr_warmup_steps", steps)
    if keys.values.get("train.lr_scheduler_params"):
        keys.refuse("train.lr_scheduler_params", "remove it, or give --optim.warmup", "--optim.warmup")
    keys.unused("train.lr_scheduler_params", "it is empty")
    to.precision(
        keys, "train.dtype", {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp32": "float32", "float32": "float32"}
    )
    _noise_levels(keys)
    _average(keys)
    _samples(keys)
    keys.set("memory", "auto")
    kind = str(keys.values.get("save.save_format") or "safetensors")
    if kind in ("safetensors", "diffusers"):
        export = "diffusers" if kind == "diffusers" else "comfy"
        keys.set("lora.export", [export], "save.save_format", why=f"the finished adapters as {export} too")
    keys.apply(_TABLE)
    return keys.finish()


def _flat(keys: Keys, process: dict[str, Any]) -> dict[str, Any]:
    """The keys of a process, those of its parts with the part's name before them."""
    found: dict[str, Any] = {}
    for name, value in process.items():
        if name == "datasets":
            only = to.one_of(keys, name, value, "data set")
            found |= {f"datasets.{key}": each for key, each in only.items()}
        elif name == "logging":
            found |= to.mapping(keys.source, name, value)
        elif name in ("network", "save", "train", "model", "sample") and isinstance(value, dict):
            found |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            found[name] = value
    extra = to.mapping(keys.source, "model.model_kwargs", found.pop("model.model_kwargs", None))
    return found | {f"model.model_kwargs.{key}": each for key, each in extra.items()}


def _data(keys: Keys) -> None:
    folders = [name for name in ("datasets.folder_path", "datasets.dataset_path") if keys.values.get(name)]
    if folders:
        keys.set("data", keys.text(folders[0]), *folders)
    elif "--data" not in keys.options:
        raise MovaError(f"{keys.source}: names no folder_path: give --data, the folder of clips")
    for name in ("datasets.resolution", "datasets.buckets", "datasets.bucket_tolerance"):
        keys.refuse(name, _SIZE, "--clip.height", "--clip.width", "--buckets.aspects", "--buckets.sizes")
    frames = keys.whole("datasets.num_frames", 1, 1)
    if frames == 1:
        keys.refuse(
            "datasets.num_frames", "clips are videos with sound: give their length, or --clip.frames", "--clip.frames"
        )
    else:
        keys.set("clip.frames", frames, "datasets.num_frames")
    if keys.values.get("datasets.shrink_video_to_frames"):
        keys.refuse("datasets.shrink_video_to_frames", _STRETCHED, "--clip.frames")
    keys.unused("datasets.shrink_video_to_frames", "a clip is the file's beginning, at clip.fps")
    if keys.has("datasets.fps"):
        keys.set("clip.fps", keys.whole("datasets.fps", 24, 1), "datasets.fps")
    if not keys.has("datasets.caption_dropout_rate"):
        keys.set("diffusion.text_dropout", 0.0)


def _noise_levels(keys: Keys) -> None:
    """linear draws uniform times without a shift."""
    kind = keys.values.get("train.timestep_type")
    if kind == "linear" and "--diffusion.video-shift" not in keys.options:
        keys.set("diffusion.video_shift", 1.0, "train.timestep_type", why="uniform times, not shifted")
    else:
        keys.refuse("train.timestep_type", _TIMES, "--diffusion.video-shift")


def _average(keys: Keys) -> None:
    ema = to.mapping(keys.source, "train.ema_config", keys.values.pop("train.ema_config", None))
    if ema.pop("use_ema", False):
        decay = to.number(keys.source, "train.ema_config: ema_decay", ema.pop("ema_decay", 0.99))
        keys.set("optim.ema", decay, why="of ema_config")
    for name, value in ema.items():
        keys.values[name] = value


def _samples(keys: Keys) -> None:
    """Prompts, each with its seed and first frame."""
    samples, prompts = (to.listing(keys.source, n, keys.values.get(n)) for n in ("sample.samples", "sample.prompts"))
    listed = [to.mapping(keys.source, "sample.samples", x) for x in samples] or [{"prompt": x} for x in prompts]
    off = bool(keys.values.get("train.disable_sampling")) or not listed
    keys.unused("train.disable_sampling", "no prompts are sampled" if off else "prompts are sampled")
    names = ("sample.prompts", "sample.samples", "sample.sample_every", "sample.sample_steps", "sample.seed",
             "sample.walk_seed", "train.skip_first_sample")  # fmt: skip
    if off:
        for name in names:
            keys.unused(name, "no prompts are sampled")
        return
    lines = [_line(keys, each, index) for index, each in enumerate(listed)]
    keys.set("validation.prompt", lines, "sample.prompts", "sample.samples", "sample.seed", "sample.walk_seed")
    keys.set("validation.every", keys.whole("sample.sample_every", 100), "sample.sample_every")
    keys.set("validation.steps", keys.whole("sample.sample_steps", 20, 1), "sample.sample_steps")
    first = not keys.values.get("train.skip_first_sample")
    keys.set("validation.at_start", first, "train.skip_first_sample")


def _line(keys: Keys, sample: dict[str, Any], index: int) -> str:
    """A prompt as a line of prompts: caption, `--i FILE`, `--d SEED`."""
    seed = keys.whole("sample.seed", 0)
    own = sample.get("seed")
    seed = (
        int(to.number(keys.source, "sample.samples: seed", own))
        if own is not None
        else seed + index * bool(keys.values.get("sample.walk_seed"))
    )
    line = " ".join(str(sample.get("prompt") or "").split())
    if sample.get("ctrl_img"):
        line += f" --i {sample['ctrl_img']}"
    for name in sample.keys() - {"prompt", "seed", "ctrl_img", *_OF_A_SAMPLE}:
        raise MovaError(f"{keys.source}: sample.samples: {name} has no counterpart: remove it")
    if "[trigger]" in line:
        raise MovaError(f"{keys.source}: a prompt has [trigger]: write the word itself, in captions too")
    return f"{line} --d {seed}"
