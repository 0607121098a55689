"""A folder of small clips, all different, and the embedded codecs."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_pipeline.media import clicks
from data_pipeline.ruler import KINDS, write

from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec
from mova_engine.config.model import ClipConfig
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.media.write import write_mp4

CLIP = ClipConfig(frames=5, height=32, width=48)
COUNT = 7


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Paths of whole clips by kind, written when first asked for."""
    folder, made = tmp_path_factory.mktemp("kinds"), {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = write(folder / f"{kind}.{KINDS[kind].suffix}", KINDS[kind])
        return made[kind]

    return get


@pytest.fixture(scope="session")
def made_clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(COUNT):
        blocks = rng.integers(0, 256, (6, 4, 6, 3)).astype(np.uint8)
        video = blocks.repeat(8, axis=1).repeat(8, axis=2)
        write_mp4(folder / f"{index}.mp4", video, clicks([0.05 + 0.02 * index], 0.25)[0])
        rows.append({"video_path": f"{index}.mp4", "caption": f"clip number {index % 3}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def clips(made_clips, tmp_path) -> Path:
    """A copy that a test may spoil."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for file in made_clips.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def make_cache(tmp_path):
    """Caches in one folder, as separate runs would open them."""

    def make(**options) -> LatentCache:
        encoder = build_text_encoder("bytes", tokens=8, dim=16)
        codecs = build_video_codec("dct"), build_audio_codec("mdct"), options.pop("text", encoder)
        return LatentCache(options.pop("folder", tmp_path / "cache"), options.pop("clip", CLIP), *codecs, **options)

    return make
