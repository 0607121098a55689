"""What `mova serve` does: the store opened and held, workers started, the API answered until a signal ends it."""

import os
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mova_engine.adapters.reading import require_adapter
from mova_engine.backend import get_backend
from mova_engine.checkpoints.locate import open_model
from mova_engine.config.clip import ClipSettings
from mova_engine.config.enhance import EnhanceConfig
from mova_engine.config.model import MovaConfig
from mova_engine.config.sample import CACHE_FILE
from mova_engine.config.serve import ServeConfig
from mova_engine.config.signing import ProvenanceSettings
from mova_engine.data.media.provenance import require_signing
from mova_engine.data.media.signer import Signer
from mova_engine.diffusion.guidance import Guidance
from mova_engine.files.writable import check_writable
from mova_engine.inference.prompts.prompt_checks import TextLimit
from mova_engine.inference.prompts.prompt_enhancer import PromptEnhancer
from mova_engine.inference.prompts.text_limit import text_limit
from mova_engine.inference.sample_settings import default_settings
from mova_engine.serving.api_keys import ApiKeys, check_reach, is_loopback
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.job_times import JobTimes
from mova_engine.serving.served_room import ServedRoom
from mova_engine.serving.service import ServedModel, Service
from mova_engine.serving.store_database import StoreLimits
from mova_engine.serving.video_api import video_app
from mova_engine.serving.video_job import VideoSettings
from mova_engine.serving.worker_settings import SIGNING, WorkerSettings
from mova_engine.serving.worker_supervisor import WorkerSupervisor
from mova_engine.web.listening import listening_socket, serve_app

# Settings of a worker that hold paths.
Settings = TypeVar("Settings", EnhanceConfig, ProvenanceSettings)


def serve(config: ServeConfig, checkpoint: Path, say: Callable[[str], None]) -> int:
    """Serve as the command says until SIGINT or SIGTERM; returns 0. Raises MovaError for what cannot be used, before
    anything is started.
    """
    if config.device is not None:
        get_backend(config.device)
    folder, model = open_model(checkpoint, ClipSettings(), say)
    for _, path in config.adapters:
        require_adapter(Path(path))
    keys = None if config.keys is None else ApiKeys.read(config.keys)
    check_writable(config.store, "--store")
    if not config.no_provenance:
        require_signing("mova serve")
        Signer.open(config.store / SIGNING, config.provenance.certificate, config.provenance.key)
    limit = text_limit(folder, model)
    enhancer = None if config.enhance.backend == "none" else PromptEnhancer(config.enhance, limit)
    failed_s = min(86400.0, config.expire * 3600)
    limits = StoreLimits(
        queue=config.queue, per_owner=config.per_key, completed_s=config.expire * 3600, failed_s=failed_s
    )
    with ExitStack() as opened:
        listener = None
        if not config.worker_only:
            check_reach(config.host, keys, config.no_keys)
            listener = opened.enter_context(listening_socket(config.host, config.port))
        store = JobStore.open(config.database, config.store, limits)
        opened.callback(store.close)
        opened.enter_context(nullcontext() if store.is_shared else store.files.lock())
        name = config.name or checkpoint.resolve().name
        workers = WorkerSupervisor(store, _worker(config, checkpoint, name, limits), config.workers, say)
        # uvicorn repeats the signal that ended it when it is done: it must not end the process before its workers.
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.signal(number, lambda *_: workers.end())
            opened.callback(signal.signal, number, before)
        workers.start()
        opened.callback(workers.stop)
        if listener is None:
            say(f"{config.workers} worker(s) make clips of '{name}' for {config.store}   (Ctrl-C ends them)")
            workers.wait()
            return 0
        times = JobTimes(store, name)
        served = _served(config, name, folder, model, limit, times)

        def predict(_: ServedModel, settings: VideoSettings) -> float | None:
            form = settings.guidance or served.guidance
            return times.seconds(settings, settings.steps or served.steps, Guidance(form).evaluations)

        local = is_loopback(config.host)
        service = Service(
            models=(served,),
            keys=keys,
            local=local,
            allow_fetch=config.allow_fetch,
            enhance=config.enhance.backend,
            enhancer=None if enhancer is None else enhancer.enhance,
            predict=predict,
            room=lambda model: ServedRoom(store, model.name).tokens(),
            ready=workers.describe if config.workers else lambda: None,
            created_at=int(time.time()),
        )
        host, port = listener.getsockname()[:2]
        if local:
            more = "" if keys is not None else " --keys FILE"
            say(f"only this machine can reach the server; --host 0.0.0.0{more} lets others in")
        say(f"jobs and clips are in {config.store}")
        say(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}/   (Ctrl-C ends it)")
        serve_app(video_app(store, service), listener)
    return 0


def _worker(config: ServeConfig, checkpoint: Path, name: str, limits: StoreLimits) -> WorkerSettings:
    return WorkerSettings(
        name=secrets.token_hex(4),
        store=os.path.abspath(config.store),
        database=config.database,
        checkpoint=os.path.abspath(checkpoint),
        model=name,
        device=config.device,
        dtype=config.dtype,
        memory=config.memory,
        vram=config.vram,
        ram=config.ram,
        threads=config.threads,
        lora=tuple((known, os.path.abspath(path)) for known, path in config.adapters),
        hang_s=config.hang,
        batch=config.batch,
        sign=not config.no_provenance,
        provenance=_absolute(config.provenance, "certificate", "key"),
        enhance=_absolute(config.enhance, "cache"),
        limits=limits,
    )


def _absolute(settings: Settings, *names: str) -> Settings:
    """Settings whose paths do not depend on where a process runs."""
    paths = {name: getattr(settings, name) for name in names}
    return replace(settings, **{name: path.absolute() for name, path in paths.items() if path is not None})


def _served(
    config: ServeConfig, name: str, folder: Path, model: MovaConfig, limit: TextLimit, times: JobTimes
) -> ServedModel:
    """The model as clients see it."""
    own, clip = default_settings(model), model.clip
    found = ServedModel(
        name=name,
        clip=clip,
        tokens=limit,
        steps=own.steps,
        guidance=own.guidance.form,
        text_scale=own.guidance.text_scale,
        adapters=tuple(known for known, _ in config.adapters),
        calibrated=(folder / CACHE_FILE).is_file()
        or bool(config.checkpoint and (config.checkpoint / CACHE_FILE).is_file()),
    )
    stages = times.stages(clip.video_tokens, own.guidance.evaluations)
    if stages is None:
        return found
    return replace(found, clip_seconds=stages.encode + own.steps * stages.step + stages.decode)
