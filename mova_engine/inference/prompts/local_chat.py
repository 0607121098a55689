"""A language model in a folder on this machine, run by transformers; nothing is downloaded.

Its weights come to the device when prompts are enhanced, before those of the towers, and are freed afterwards: they are
a part of a `Residency` of their own.
"""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mova_engine.backend import Backend
from mova_engine.codecs.interface import optional
from mova_engine.config.enhance import EnhanceConfig
from mova_engine.config.stages import ModelStage
from mova_engine.errors import MovaError, require_package
from mova_engine.inference.prompts.chat import ChatError, Message
from mova_engine.memory.residency import Part, Residency, ResidencyReport

# The part's name, and that of the stage in which it works.
PART, STAGE = "prompt model", "enhance prompts"
_WHAT = "a local model for prompts"


class LocalChat:
    """A causal language model, or one of text and pictures, from a folder of transformers or a .gguf file.

    Raises MovaError for a missing package, a folder without such a model, and one without a chat template.
    """

    backend = "local"

    def __init__(self, config: EnhanceConfig, device: Backend) -> None:
        path = Path(config.model)
        if path.suffix == ".gguf" and path.is_file():
            require_package("gguf", f"{path}")
            self._options: dict[str, Any] = {"gguf_file": path.name}
            self._folder = path.parent
        elif (path / "config.json").is_file():
            self._options, self._folder = {}, path
        else:
            raise MovaError(f"{path}: neither a .gguf file nor a folder of a model as transformers writes it")
        self.model, self._config, self._device = path.name, config, device
        # None while they are not read; `Residency` has them read and dropped.
        self.weights: Any = None
        settings = self._from("AutoConfig")
        pictures: Any = optional("transformers", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", _WHAT)
        self.sees_pictures = type(settings) in pictures
        self._text: Any = self._from("AutoProcessor" if self.sees_pictures else "AutoTokenizer")
        if not getattr(self._text, "chat_template", None):
            raise MovaError(f"{path}: has no chat template: take a model that is made for chats")
        text_settings = settings.get_text_config()
        self._context = getattr(text_settings, "max_position_embeddings", None)
        self._residency = Residency(
            torch.device(device.name), [Part(PART, self, self._read, "files")], [ModelStage(STAGE, (PART,))]
        )
        files = sorted(self._folder.iterdir()) if path.is_dir() else [path]
        stats = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files if each.is_file()]
        asked = [config.temperature, config.seed, config.most_tokens]
        self.identity = json.dumps([stats, asked, version("transformers"), torch.__version__, device.name])

    def report(self) -> ResidencyReport:
        """When the model's weights were read and dropped, and their size."""
        return self._residency.report()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """As ChatModel: the weights are on the device within the block."""
        with self._residency.stage(STAGE):
            yield

    def reply(self, messages: Sequence[Message]) -> str:
        """As ChatModel; takes the seconds of the timeout at most, after the weights are read. It hears no sound."""
        if any(message.sound is not None for message in messages):
            raise ChatError(f"{self.model} takes no sound: only endpoints do")
        with self.ready():
            try:
                return self._generated(messages)
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ChatError(f"{self.model} cannot be run: {reason[:200]}") from error

    @torch.no_grad()
    def _generated(self, messages: Sequence[Message]) -> str:
        config, weights = self._config, self.weights
        inputs = self._tokens(messages).to(weights.device)
        given = inputs["input_ids"].shape[1]
        if self._context is not None and given + config.most_tokens > self._context:
            raise ChatError(
                f"{self.model} takes {self._context} tokens, fewer than {given} of what is asked and "
                f"{config.most_tokens} of the reply (most_tokens)"
            )
        sampling = (
            {"do_sample": True, "temperature": config.temperature} if config.temperature else {"do_sample": False}
        )
        # The generators of whoever calls stay as they are.
        with torch.random.fork_rng(self._forked()):
            torch.manual_seed(config.seed)
            made = weights.generate(**inputs, max_new_tokens=config.most_tokens, max_time=config.timeout, **sampling)
        tokens = made[0, given:].tolist()
        ends = weights.generation_config.eos_token_id
        if not tokens or tokens[-1] not in (ends if isinstance(ends, list) else [ends]):
            raise ChatError(
                f"{self.model} did not end its reply in {config.most_tokens} tokens and {config.timeout:g} s"
            )
        tokenizer = getattr(self._text, "tokenizer", self._text)
        return tokenizer.decode(tokens, skip_special_tokens=True)

    def _forked(self) -> list[torch.device]:
        return [] if self._device.name == "cpu" else [torch.device(self._device.name)]

    def _tokens(self, messages: Sequence[Message]) -> Any:
        turns = [{"role": message.role, "content": self._content(message)} for message in messages]
        # Reasoning models are asked not to think aloud, which others' templates do not look at; processors refuse it.
        more = {} if self.sees_pictures else {"enable_thinking": False}
        return self._text.apply_chat_template(
            turns, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
            **more,
        )  # fmt: skip

    def _content(self, message: Message) -> Any:
        if not self.sees_pictures:
            return message.text
        text = {"type": "text", "text": message.text}
        return [*({"type": "image", "image": Image.open(io.BytesIO(each))} for each in message.pictures), text]

    def _read(self, device: torch.device) -> None:
        name = "AutoModelForImageTextToText" if self.sees_pictures else "AutoModelForCausalLM"
        # A .gguf file's weights are made floating-point ones, for which its header names no kind.
        dtype: Any = "auto" if not self._options else torch.float32 if device.type == "cpu" else torch.bfloat16
        self.weights = self._from(name, dtype=dtype).requires_grad_(False).eval().to(device)

    def _from(self, name: str, **more: Any) -> Any:
        kind = optional("transformers", name, _WHAT)
        try:
            return kind.from_pretrained(self._folder, local_files_only=True, **self._options, **more)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MovaError(f"{self._config.model}: transformers cannot read it: {reason[:200]}") from error
