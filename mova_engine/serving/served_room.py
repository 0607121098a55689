"""How large clips may be on the devices of a model's workers, by the planner: noted by workers, read by servers."""

import math

from mova_engine.config.model import ClipConfig
from mova_engine.serving.store_database import StoreDatabase


class ServedRoom:
    """Tokens of the video tower that a clip of a model may have on each host that makes its clips."""

    def __init__(self, store: StoreDatabase, model: str) -> None:
        self._store, self._model, self._key = store, model, f"room {model}"

    def note(self, host: str, own: ClipConfig, longest: ClipConfig) -> None:
        """Keep what fits a host. own: the model's clip. longest: the longest of its size that fits, at most its own."""
        tokens = None if longest.frames == own.frames else longest.video_tokens
        self._store.add_measured(self._key, {host: tokens})

    def tokens(self) -> int | None:
        """The most tokens that fit wherever there is a worker; without one, wherever there was. None: no limit."""
        noted = self._store.measured(self._key)
        hosts = self._store.hosts(self._model) & noted.keys() or noted.keys()
        least = min((math.inf if noted[host] is None else noted[host] for host in hosts), default=math.inf)
        return None if math.isinf(least) else int(least)
