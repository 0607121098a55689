"""The card beside adapters: README.md with their base, words, settings and samples, as hubs of models show it."""

from collections.abc import Mapping
from pathlib import Path

from mova_engine.adapters.form import BASE
from mova_engine.config.command import to_yaml
from mova_engine.config.train import TrainConfig
from mova_engine.train.run_folder import SAMPLES

CARD = "README.md"
# Metadata of a file of adapters: words that call up what they have learnt, and the step after which it was saved.
WORDS, STEP = "words", "step"


def metadata_of(config: TrainConfig, step: int) -> dict[str, str]:
    """What a file's metadata says of the training."""
    words = {WORDS: ", ".join(config.lora.words)} if config.lora.words else {}
    return {"recipe": config.name, STEP: str(step), **words}


def write_card(config: TrainConfig, step: int, facts: Mapping[str, str], alpha: float, folder: Path) -> None:
    """Write the card of the adapters that lie in `folder`. facts: their file's metadata. alpha: theirs."""
    (folder / CARD).write_text(adapter_card(config, step, facts, alpha), encoding="utf-8")


def adapter_card(config: TrainConfig, step: int, facts: Mapping[str, str], alpha: float) -> str:
    """The card's text, Markdown with a head of YAML."""
    base = config.model.checkpoint.name if config.model.checkpoint is not None else "unknown"
    # Without their first frames and seeds.
    prompts = [line.partition(" --")[0].strip() for line in config.validation.prompt]
    words = ", ".join(config.lora.words)
    head = {"base_model": base, "library_name": "mova_engine", "tags": ["lora", "text-to-video", "text-to-audio"]}
    if words:
        head["instance_prompt"] = words
    shown = prompts[0] if prompts else words or "a cat purrs"
    settings = {
        "rank": config.lora.rank,
        "alpha": f"{alpha:g}",
        "layers": ", ".join(config.lora.targets),
        "steps": f"{step} of {config.steps}",
        "clips a step": config.global_batch_size or config.loader.batch,
        "learning rate": f"{config.optim.lr:g}",
        "share of clips without their caption": f"{config.diffusion.text_dropout:g}",
        "computed in": config.dtype,
        "seed": config.seed,
    }
    lines = ["---", to_yaml(head).rstrip(), "---", "", f"# {config.name}", ""]
    lines += [f"Low-rank adapters (LoRA) for {base}, a model of video and its sound, after {step} training steps."]
    lines += [f"Words that call up what they have learnt: {words}."] if words else []
    lines += ["", "## Use", "", f'    mova sample --checkpoint {base} --lora adapters.safetensors --prompt "{shown}"']
    lines += ["", "`mova lora convert` writes them for other tools.", "", "## Base", ""]
    lines += [f"{base}, whose weights have the fingerprint `{facts[BASE]}`. With other weights a warning is printed."]
    lines += ["", "## Settings", "", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in settings.items()]
    if _sampled(config, step):
        where = f"../../{SAMPLES}/step-{step:06d}"
        lines += ["", "## Samples", "", f"![samples after step {step}]({where}/contact_sheet.png)", ""]
        lines += [f"* {prompt}" for prompt in prompts]
    return "\n".join(lines) + "\n"


def _sampled(config: TrainConfig, step: int) -> bool:
    every = config.validation.every
    return bool(every) and step % every == 0 and (config.validation.has_prompts or config.validation.samples > 0)
