"""News of jobs for whoever watches: one look at the store for all who wait, and streams of events for browsers."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from mova_engine.errors import MovaError
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.video_job import VideoJob

# Seconds between looks at the store, and after which a silent stream says that it lives.
LOOK_S, HEARTBEAT_S = 0.25, 15.0
# A version that no store reaches: asked for what changed since then, it says which version it has.
_BEYOND = 1 << 62
log = logging.getLogger(__name__)


class JobFeed:
    """Tells watchers that a job has changed. The store is looked at only while somebody watches."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._watchers = dict[asyncio.Event, VideoJob]()
        self._looking: asyncio.Task[None] | None = None

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    def watchers_of(self, owner: str) -> int:
        """How many of one owner watch."""
        return sum(job.owner == owner for job in self._watchers.values())

    async def _look(self) -> None:
        version, _ = await asyncio.to_thread(self._store.changed_since, _BEYOND)
        for event in self._watchers:
            event.set()  # what changed before the first look is looked at once
        while self._watchers:
            await asyncio.sleep(LOOK_S)
            try:
                version, jobs = await asyncio.to_thread(self._store.changed_since, version)
            except MovaError as error:
                log.warning("%s", error)
                continue
            changed = {job.id for job in jobs}
            for event, watched in list(self._watchers.items()):
                if watched.id in changed:
                    event.set()

    async def events(
        self, job: VideoJob, last: int | None, shown: Callable[[VideoJob], dict[str, Any]]
    ) -> AsyncIterator[str]:
        """A stream of server-sent events: the job now and after each change, until it has ended or is gone. last: the
        version that the client has seen, which is not sent again.
        """
        changed = asyncio.Event()
        self._watchers[changed] = job
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            now: VideoJob | None = await asyncio.to_thread(self._store.get, job.id, job.owner)
            yield "retry: 2000\n\n"
            while True:
                if now is None:
                    yield f"event: deleted\ndata: {json.dumps({'id': job.id, 'deleted': True})}\n\n"
                    return
                if now.version != last:
                    last = now.version
                    yield f"id: {now.version}\nevent: video\ndata: {json.dumps(shown(now))}\n\n"
                if now.ended:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
                if not changed.is_set():
                    yield ": ping\n\n"
                changed.clear()
                now = await asyncio.to_thread(self._store.get, job.id, job.owner)
        finally:
            del self._watchers[changed]
