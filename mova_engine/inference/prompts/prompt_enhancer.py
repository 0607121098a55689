"""Enhances prompts as settings say: for commands, sampling runs and servers."""

from collections.abc import Sequence
from threading import Lock

import numpy as np

from mova_engine.backend import Backend, default_backend
from mova_engine.config.enhance import EnhanceConfig
from mova_engine.inference.prompts.chat import ChatModel
from mova_engine.inference.prompts.chat_endpoint import ChatEndpoint
from mova_engine.inference.prompts.enhanced_prompt import EnhancedPrompt, enhance
from mova_engine.inference.prompts.enhancement_cache import EnhancementCache
from mova_engine.inference.prompts.prompt_checks import TextLimit


class PromptEnhancer:
    """What `config` names, opened once. limit: how the text encoder of the model counts that makes the clips; None: its
    tokens are not counted. device: of a local model; default: the best one.

    May be called from several threads. Raises MovaError for settings that cannot be used here.
    """

    def __init__(self, config: EnhanceConfig, limit: TextLimit | None = None, device: Backend | None = None) -> None:
        self.config, self.limit = config, limit
        self._model = open_chat(config, device)
        self._cache = None if config.cache is None else EnhancementCache(config.cache)
        # A local model takes one prompt at a time; an endpoint serves several.
        self._lock = Lock() if config.backend == "local" else None

    def enhance(self, prompt: str, frame: np.ndarray | None = None) -> EnhancedPrompt:
        """Enhance a prompt; frame: the clip's first picture, uint8 [h, w, 3]."""
        if self._lock is None:
            return enhance(prompt, frame, self._model, limit=self.limit, cache=self._cache)
        with self._lock:
            return enhance(prompt, frame, self._model, limit=self.limit, cache=self._cache)

    def enhance_all(self, prompts: Sequence[tuple[str, np.ndarray | None]]) -> list[EnhancedPrompt]:
        """Enhance pairs of a prompt and a first picture, in their order; equal pairs once. A local model is loaded once
        for all of them, and freed.
        """
        found: dict[tuple[str, bytes | None], EnhancedPrompt] = {}
        keys = [(text, None if frame is None else frame.tobytes()) for text, frame in prompts]
        if self._model is None:
            return [self.enhance(text) for text, _ in prompts]
        with self._model.ready():
            for key, (text, frame) in zip(keys, prompts, strict=True):
                if key not in found:
                    found[key] = self.enhance(text, frame)
        return [found[key] for key in keys]


def open_chat(config: EnhanceConfig, device: Backend | None = None) -> ChatModel | None:
    """The language model that settings name; None: there is none. Raises MovaError where it cannot be used."""
    if config.backend == "endpoint":
        return ChatEndpoint(config)
    if config.backend == "local":
        from mova_engine.inference.prompts.local_chat import LocalChat

        return LocalChat(config, device or default_backend())
    return None
