"""A job as clients see it: OpenAI's video object, and the engine's own facts under x_mova."""

import math
from dataclasses import asdict
from typing import Any

from mova_engine.serving.job_store import JobStore
from mova_engine.serving.video_job import VideoJob

# Milliseconds after which a client should ask again: a fiftieth of the whole, within these.
_SOONEST_MS, _LATEST_MS, _UNKNOWN_MS, _PARTS = 500, 5000, 1000, 50
# The words of files that clients may fetch: name in the job's folder, kind of content.
VARIANTS = {
    "video": ("video.mp4", "video/mp4"),
    "thumbnail": ("thumb.webp", "image/webp"),
    "spritesheet": ("sprite.webp", "image/webp"),
    "preview": ("preview.webp", "image/webp"),
    "waveform": ("waveform.json", "application/json"),
    "manifest": ("manifest.json", "application/json"),
    "first_frame": ("first.png", "image/png"),
}
# Those that are there before the job is done.
EARLY_VARIANTS = ("preview", "first_frame")


def video_object(job: VideoJob, store: JobStore) -> dict[str, Any]:
    """The job as JSON has it."""
    settings = job.settings
    error = None
    if job.status == "failed":
        error = {"code": job.error_code or "internal_error", "message": job.error_message or "the clip was not made"}
    return {
        "id": job.id,
        "object": "video",
        "created_at": job.created_at,
        "completed_at": job.completed_at,
        "expires_at": job.expires_at,
        "status": job.status,
        "progress": job.progress,
        "model": job.model,
        "prompt": settings.prompt,
        "seconds": settings.seconds,
        "size": settings.size,
        "error": error,
        "remixed_from_video_id": job.remixed_from,
        "x_mova": {
            "stage": job.stage,
            "step": job.step,
            "steps": job.steps,
            "eta_s": None if job.eta_s is None else round(job.eta_s, 1),
            "queue_position": job.queue_position,
            "started_at": job.started_at,
            "seed": settings.seed,
            "width": settings.width,
            "height": settings.height,
            "frames": settings.frames,
            "fps": settings.fps,
            "mode": settings.mode,
            "enhanced_prompt": settings.enhanced_prompt,
            "preview": not job.ended and store.file(job.id, "preview.webp").exists(),
            "cancelling": job.cancel_asked and not job.ended,
            "settings": asdict(settings),
            "facts": dict(job.facts),
        },
    }


def poll_after_ms(job: VideoJob) -> int:
    """After how many milliseconds a client should look again. OpenAI's client keeps the first value for good."""
    if job.predicted_s is None or not math.isfinite(job.predicted_s):
        return _UNKNOWN_MS
    return int(min(_LATEST_MS, max(_SOONEST_MS, 1000 * job.predicted_s / _PARTS)))
