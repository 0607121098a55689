"""musubi-tuner (kohya-ss): a shell script with its training command, a .toml of the same options (`--config_file`), and
the .toml of the data set that they name, or such a .toml alone.
"""

# What a file holds may be of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from mova_engine.config.from_tools import translation as to
from mova_engine.config.from_tools.musubi_files import read_options, read_toml
from mova_engine.config.from_tools.translation import NO_OPTIONS, Keys, Only, Rule, Same, Translation, Unused, named
from mova_engine.errors import MovaError

_STATES = "states of musubi-tuner cannot be read: name its adapters by network_weights"
_DROPOUT = "adapters have no dropout here: remove it"
_TIMES = "times are drawn uniformly here and then shifted: use timestep_sampling sigma, or give --diffusion.video-shift"
_SIZE = (
    "a run has one size, or buckets, to which clips are scaled and cropped: leave it out, or give --clip.height and "
    "--clip.width, or --buckets.aspects"
)
_START = "where a clip begins is said in metadata.jsonl (start, in seconds): use head, or give --clip.frames"

_TABLE: dict[str, Rule] = {
    "seed": Same("seed"),
    "learning_rate": Same("optim.lr"),
    "network_weights": Same("lora.init"),
    "max_data_loader_n_workers": Same("loader.workers"),
    "sample_prompts": Same("validation.prompts"),
    "sample_at_first": Same("validation.at_start"),
    **named(
        "dit dit_high_noise vae vae_dtype t5 clip task fp8_t5 vae_cache_cpu force_v2_1_time_embedding fp8_llm "
        "text_encoder1 text_encoder2 vae_chunk_size vae_spatial_tile_sample_min_size",
        Unused(to.OF_THE_MODEL),
    ),
    **named(
        "gradient_checkpointing gradient_checkpointing_cpu_offload blocks_to_swap "
        "use_pinned_memory_for_block_swap block_swap_h2d_only block_swap_ring_size offload_inactive_dit "
        "img_in_txt_in_offloading disable_numpy_memmap split_attn",
        Unused(to.OF_MEMORY),
    ),
    **named("fp8_base fp8_scaled", Unused(to.OF_QUANTISING)),
    **named(
        "sdpa flash_attn sage_attn xformers flash3 compile compile_backend compile_mode compile_dynamic "
        "compile_fullgraph compile_cache_size_limit cuda_allow_tf32 cuda_cudnn_benchmark dynamo_backend "
        "dynamo_mode dynamo_fullgraph dynamo_dynamic",
        Unused(to.OF_OPERATORS),
    ),
    **named(
        "logging_dir log_with log_prefix log_tracker_name wandb_run_name log_tracker_config wandb_api_key log_config",
        Unused(to.OF_LOGS),
    ),
    **named(
        "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token "
        "huggingface_repo_visibility save_state_to_huggingface async_upload",
        Unused(to.OF_UPLOADS),
    ),
    **named(
        "metadata_title metadata_author metadata_description metadata_license metadata_tags metadata_reso "
        "metadata_arch no_metadata training_comment",
        Unused("it is no part of the training"),
    ),
    **named(
        "ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph persistent_data_loader_workers",
        Unused("processes are arranged by --parallel.* and --loader.workers"),
    ),
    **named(
        "save_state save_state_on_train_end save_last_n_epochs_state save_last_n_steps_state",
        Unused("a run goes on from every checkpoint"),
    ),
    "save_precision": Unused("adapters are saved as they are trained"),
    "show_timesteps": Unused("it is no part of the training"),
    "guidance_scale": Unused("it concerns HunyuanVideo alone"),
    "network_module": Only(
        ("networks.lora_wan", "networks.lora", "musubi_tuner.networks.lora_wan"),
        "low-rank adapters (networks.lora_wan) are what is trained here",
    ),
    "network_dropout": Only(to.NEUTRAL, _DROPOUT),
    "dim_from_weights": Only(to.NEUTRAL, "give network_dim, the rank of network_weights"),
    "scale_weight_norms": Only(to.NEUTRAL, "norms of adapters are not limited here: remove it"),
    "base_weights": Only(to.NEUTRAL, "merge them first (mova lora merge) and train on the merged folder"),
    "base_weights_multiplier": Only(to.NEUTRAL, "merge base_weights first (mova lora merge)"),
    **named("resume resume_from_huggingface", Only(to.NEUTRAL, _STATES)),
    "min_timestep": Only((None, 0), "both experts are trained on all their noise levels: remove it"),
    "max_timestep": Only((None, 1000), "both experts are trained on all their noise levels: remove it"),
    "preserve_distribution_shape": Unused("all noise levels are drawn"),
    "num_timestep_buckets": Only(to.NEUTRAL, "remove it; --diffusion.stratified spreads the times of a step evenly"),
    "weighting_scheme": Only(("none",), "all noise levels count alike here: remove it"),
    "sigmoid_scale": Only((1,), _TIMES),
    **named("logit_mean logit_std mode_scale", Unused("it belongs to a weighting_scheme")),
    "lr_decay_steps": Only(to.NEUTRAL, "remove it; --optim.decay-start says where the decay begins"),
    "lr_scheduler_type": Only(to.NEUTRAL, "remove it and choose lr_scheduler constant or cosine"),
    "lr_scheduler_args": Only(to.NEUTRAL, "remove it and choose lr_scheduler constant or cosine"),
    **named(
        "lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale",
        Unused("it belongs to other schedulers"),
    ),
    "one_frame": Only(to.NEUTRAL, "clips are videos with sound: remove it"),
}
_DATA: dict[str, Rule] = {
    "caption_extension": Only((".txt", "txt"), "captions are in .txt files, or in metadata.jsonl"),
    "cache_directory": Unused("encoded clips are kept beside the clips, or in --loader.cache"),
    "source_fps": Unused("the rate is read from each file"),
    "bucket_no_upscale": Only(to.NEUTRAL, "clips are scaled to the run's size: remove it"),
    "max_frames": Only(to.NEUTRAL, "give target_frames, the length of all clips"),
    "frame_stride": Only(to.NEUTRAL, _START),
    "frame_sample": Only(to.NEUTRAL, _START),
    "image_directory": Only(to.NEUTRAL, "clips are videos with sound: name a video_directory"),
    "image_jsonl_file": Only(to.NEUTRAL, "clips are videos with sound: name a video_directory"),
}


def translate(path: Path, options: Mapping[str, str | None] = NO_OPTIONS) -> Translation:
    """The settings of a run that a file of musubi-tuner asks for. options: those of the command line.

    Raises MovaError in one line for a file that cannot be read, and for keys without a counterpart, by name.
    """
    given = read_options(path)
    if "datasets" in given:
        return _of_data_alone(path, given, options)
    keys = Keys(path, given, options)
    data_file = keys.text("dataset_config")
    keys.used("dataset_config")
    data: dict[str, Any] = {}
    if data_file:
        beside = next((x for x in (Path(data_file), path.parent / data_file) if x.is_file()), None)
        if beside is None:
            raise MovaError(f"{path}: dataset_config {data_file}: there is no such file")
        data = _dataset(keys, read_toml(beside))
    elif "--data" not in options:
        raise MovaError(f"{path}: names no dataset_config: give --data, the folder of clips")
    keys.values.update(data)
    repeats, batch = keys.whole("num_repeats", 1, 1), keys.whole("batch_size", 1, 1)
    keys.used("num_repeats", "batch_size")
    _data(keys)
    accumulation = keys.whole("gradient_accumulation_steps", 1, 1)
    to.batches(keys, batch, accumulation, "gradient_accumulation_steps")
    steps = _lengths(keys, repeats, batch, accumulation)
    _adapters(keys)
    to.optimizer(keys, "optimizer_type", "optimizer_args", _pairs(keys, "optimizer_args"))
    if not keys.has("learning_rate"):
        keys.set("optim.lr", 2e-6)
    clip = float(keys.number("max_grad_norm", 1.0))
    keys.set("optim.clip", clip or 1e9, "max_grad_norm", why="" if clip else "no clipping")
    least = float(keys.number("lr_scheduler_min_lr_ratio", 0.0))
    to.course(keys, "lr_scheduler", "lr_warmup_steps", steps, least)
    keys.used("lr_scheduler_min_lr_ratio")
    to.precision(keys, "mixed_precision", {"no": "float32", "bf16": "bfloat16"})
    _noise_levels(keys)
    keys.set("memory", "auto")
    folder = Path(keys.text("output_dir") or "runs") / (keys.text("output_name") or path.stem)
    keys.set("name", folder.name, "output_name")
    keys.set("out", str(folder), "output_dir")
    keys.set("lora.export", ["musubi"], why="the finished adapters for musubi-tuner and ComfyUI too")
    keys.apply(_TABLE)
    return keys.finish()


def _of_data_alone(path: Path, given: dict[str, Any], options: Mapping[str, str | None]) -> Translation:
    """A data set's file: the run is the recipe's."""
    keys = Keys(path, {}, options)
    keys.values.update(_dataset(keys, given))
    if keys.has("batch_size"):
        keys.set("loader.batch", keys.whole("batch_size", 1, 1), "batch_size")
    keys.used("num_repeats")
    _data(keys)
    return keys.finish()


def _dataset(keys: Keys, given: dict[str, Any]) -> dict[str, Any]:
    """The keys of the one data set of a file, with the general ones under them."""
    only = to.one_of(keys, "datasets", given.get("datasets"), "data set")
    return {**to.mapping(keys.source, "general", given.get("general")), **only}


def _data(keys: Keys) -> None:
    keys.apply(_DATA)
    if keys.has("video_directory"):
        keys.set("data", keys.text("video_directory"), "video_directory")
    if keys.has("video_jsonl_file"):
        listed = Path(keys.text("video_jsonl_file"))
        if listed.name == "metadata.jsonl":
            keys.set("data", str(listed.parent), "video_jsonl_file")
        else:
            keys.refuse("video_jsonl_file", "name it metadata.jsonl, in the folder of the clips", "--data")
    if keys.has("resolution"):
        size = keys.values["resolution"]
        sides = size if isinstance(size, list) else [size, size]
        if len(sides) != 2:
            raise MovaError(f"{keys.source}: resolution must be one number or two, width and height, got {size}")
        width, height = (int(to.number(keys.source, "resolution", side)) for side in sides)
        keys.set("clip.width", width, "resolution")
        keys.set("clip.height", height, why="of resolution")
    if keys.values.get("enable_bucket"):
        keys.refuse("enable_bucket", _SIZE, "--clip.height", "--clip.width", "--buckets.aspects", "--buckets.sizes")
    else:
        keys.unused("enable_bucket", "a run has one size unless it is given buckets")
    if keys.has("target_frames"):
        frames = to.listing(keys.source, "target_frames", keys.values["target_frames"])
        if len(frames) == 1:
            keys.set("clip.frames", int(to.number(keys.source, "target_frames", frames[0])), "target_frames")
        else:
            several = "all clips have one length, or that of a bucket: give one, or --clip.frames, or --buckets.frames"
            keys.refuse("target_frames", several, "--clip.frames", "--buckets.frames")
    if keys.values.get("frame_extraction", "head") == "head":
        keys.unused("frame_extraction", "a clip is the file's beginning, or begins at `start` of metadata.jsonl")
    else:
        keys.refuse("frame_extraction", _START, "--clip.frames")


def _lengths(keys: Keys, repeats: int, batch: int, accumulation: int) -> int:
    """Steps, and what is counted in epochs; returns the steps."""
    epochs = {
        name: keys.values.get(name) for name in ("max_train_epochs", "save_every_n_epochs", "sample_every_n_epochs")
    }
    if "--steps" in keys.options:
        epochs["max_train_epochs"] = None
    if not keys.values.get("sample_prompts"):
        for name in ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first"):
            keys.unused(name, "there are no sample_prompts")
        epochs["sample_every_n_epochs"] = None
    an_epoch = 0
    if any(epochs.values()):
        data = keys.options.get("--data") or keys.settings.get("data")
        if data is not None:
            an_epoch = ceil(ceil(to.count_clips(Path(data)) * repeats / batch) / accumulation)
    why = f"an epoch is {an_epoch} steps"
    if epochs["max_train_epochs"] and an_epoch:
        steps = keys.whole("max_train_epochs", 0) * an_epoch
        keys.set("steps", steps, "max_train_epochs", why=why)
        keys.unused("max_train_steps", "max_train_epochs says it")
    else:
        steps = keys.whole("max_train_steps", 1600)
        keys.set("steps", steps, "max_train_steps")
        keys.unused("max_train_epochs", "--steps says it")
    for setting, name, alone in (
        ("checkpoint.every", "save_every_n_steps", "save_every_n_epochs"),
        ("validation.every", "sample_every_n_steps", "sample_every_n_epochs"),
    ):
        if epochs[alone] and an_epoch:
            keys.set(setting, keys.whole(alone, 0) * an_epoch, alone, why=why)
            keys.unused(name, f"{alone} says it")
        elif keys.values.get(name):
            keys.set(setting, keys.whole(name, 0), name)
    every = keys.settings.get("checkpoint", {}).get("every")
    last = keys.whole("save_last_n_steps", 0) or keys.whole("save_last_n_epochs", 0) * an_epoch
    if every and last:
        keys.set("checkpoint.keep_last", max(1, last // every), "save_last_n_steps", "save_last_n_epochs")
    elif every:
        keys.set("checkpoint.keep_every", every, why="all are kept")
    for name in ("save_last_n_steps", "save_last_n_epochs"):
        keys.unused(name, "nothing says how often to save")
    if "every" not in keys.settings.get("validation", {}):
        for name in ("sample_prompts", "sample_at_first"):
            keys.unused(name, "nothing says how often to sample (sample_every_n_steps)")
    return steps


def _adapters(keys: Keys) -> None:
    keys.set("lora.rank", keys.whole("network_dim", 4, 1), "network_dim")
    keys.set("lora.alpha", float(keys.number("network_alpha", 1)), "network_alpha")
    keys.set("diffusion.text_dropout", 0.0)
    pairs = _pairs(keys, "network_args")
    if "loraplus_lr_ratio" in pairs:
        ratio = to.number(keys.source, "network_args: loraplus_lr_ratio", pairs.pop("loraplus_lr_ratio"))
        keys.set("optim.lora_plus", ratio, why="of network_args")
    if pairs:
        advice = f"adapters here take no {', '.join(pairs)}: remove them; --lora.targets says which layers are adapted"
        keys.refuse("network_args", advice, "--lora.targets")
    keys.used("network_args")


def _noise_levels(keys: Keys) -> None:
    """sigma draws uniform times and shifts them, as is done here; uniform does not shift them."""
    kind = keys.values.get("timestep_sampling")
    if "--diffusion.video-shift" in keys.options:
        for name in ("timestep_sampling", "discrete_flow_shift"):
            keys.unused(name, "--diffusion.video-shift says it")
    elif kind in ("sigma", "uniform"):
        shift = float(keys.number("discrete_flow_shift", 1.0)) if kind == "sigma" else 1.0
        keys.set("diffusion.video_shift", shift, "timestep_sampling", "discrete_flow_shift")
    elif kind is not None:
        keys.refuse("timestep_sampling", _TIMES)
        keys.unused("discrete_flow_shift", "part of timestep_sampling")
    else:
        keys.unused("discrete_flow_shift", "without timestep_sampling noise levels are MOVA's own")
    if keys.values.get("timestep_boundary") is not None:
        boundary = float(keys.number("timestep_boundary", 0))
        keys.set("diffusion.boundary", boundary / 1000 if boundary > 1 else boundary, "timestep_boundary")


def _pairs(keys: Keys, name: str) -> dict[str, str]:
    """The value of an option that takes `key=value` words."""
    value = keys.values.get(name) or []
    words = value if isinstance(value, list) else str(value).split()
    found: dict[str, str] = {}
    for word in words:
        key, equals, text = str(word).partition("=")
        if not equals:
            raise MovaError(f"{keys.source}: {name}: '{word}' is not of the form key=value")
        found[key] = text
    return found
