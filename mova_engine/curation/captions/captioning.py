"""Captions many clips at once, and goes on where an interrupted run ended.

captions = caption_clips(rows, CaptionSettings(url="http://localhost:8000/v1", model="omni"), Path("OUT"))
captions[clip_id].text
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mova_engine.config.captions import CaptionSettings
from mova_engine.curation.captions.caption_store import CaptionStore
from mova_engine.curation.captions.clip_captioner import Caption, ClipCaptioner
from mova_engine.inference.background_threads import in_background

FOLDER = "captions"


def caption_clips(
    rows: Iterable[Mapping[str, Any]],
    settings: CaptionSettings,
    out: Path,
    done: Callable[[Caption], None] = lambda caption: None,
) -> dict[str, Caption]:
    """{clip_id: caption} of clips, in the order of rows.

    rows: of `clips.parquet`: clip_id, video_path, start, frames, fps, width, height, and what is there of kind, crop_x,
    crop_y, crop_width, crop_height, sound_shift and gain_db. What models said is kept in `out`/captions, by clip, role,
    model and what was asked, and not asked for again; a reply that failed its checks twice is a reason that is kept,
    what a server did not do is tried again in the next run. done: called with each caption, in this thread.
    Raises MovaError for settings that cannot be used, and for a folder that cannot be read or written.
    """
    store = CaptionStore(out / FOLDER)
    captioner = ClipCaptioner(settings, store)
    asked = [(Future[Caption](), row) for row in rows]
    found: dict[str, Caption] = {}
    in_background(captioner.caption, asked, min(settings.at_once, len(asked)), "caption")
    try:
        for future, _ in asked:
            caption = future.result()
            found[caption.clip] = caption
            done(caption)
    finally:
        for future, _ in asked:
            future.cancel()
        store.close()
    return found
