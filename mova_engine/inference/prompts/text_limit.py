"""How many tokens of a text a model's text encoder takes, by its folder, without its weights."""

from pathlib import Path

from mova_engine.codecs.interface import optional
from mova_engine.codecs.toy.byte_text import count_pieces
from mova_engine.codecs.umt5 import clean_prompt
from mova_engine.config.model import MovaConfig
from mova_engine.errors import MovaError
from mova_engine.inference.prompts.prompt_checks import TextLimit

_WHAT = "counting tokens"


def text_limit(folder: Path, config: MovaConfig) -> TextLimit:
    """The limit of a model folder's text encoder. MovaError for a tokenizer that cannot be read."""
    if config.text_encoder == "bytes":
        return TextLimit(count_pieces, config.text_tokens)
    tokenizer_class, fix_text = optional("transformers", "AutoTokenizer", _WHAT), optional("ftfy", "fix_text", _WHAT)
    path = folder / "tokenizer"
    try:
        tokenizer = tokenizer_class.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MovaError(f"{path}: no tokenizer that can be read ({str(error).strip().splitlines()[0]})") from None
    return TextLimit(
        lambda text: len(tokenizer(clean_prompt(text, fix_text), verbose=False).input_ids), config.text_tokens
    )
