"""Clips that are encoded while they are decoded: the file of the whole to the byte, or none."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from inference.conftest import build

from mova_engine.codecs.wan import WanVideoCodec
from mova_engine.config.model import ClipConfig
from mova_engine.data.media.contact_sheet import SheetClip, contact_sheet
from mova_engine.data.media.decode import Clip
from mova_engine.data.media.write import encode_mp4
from mova_engine.diffusion.guidance import Guidance
from mova_engine.inference.clip_sinks import WholeClip
from mova_engine.inference.encoded_clip import SampleEncoder, sample_encoders
from mova_engine.inference.extension import Extension, extended
from mova_engine.inference.given_clip import GivenClip, Window
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_folder import SampleFolder
from mova_engine.inference.sample_settings import SampleSettings

# Wan's VAE is made once for all of them, which takes seconds.
pytestmark = pytest.mark.long

SHAPE = ClipConfig(frames=17, height=32, width=48)
SETTINGS = SampleSettings(1, Guidance("none"))
REQUESTS = [Request("rain", 3), Request("a ball", 4)]


@pytest.fixture(scope="module")
def wan():
    """A pipeline whose codec makes four frames at a time."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra [codecs])")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipeline = build()
    pipeline.codecs, pipeline.clip = pipeline.codecs._replace(video=WanVideoCodec(vae)), SHAPE
    return pipeline


def whole(clip: Clip) -> bytes:
    return encode_mp4("clip", clip.pictures, clip.audio, fps=SHAPE.fps, sample_rate=SHAPE.sample_rate)


def test_the_file_and_the_sheet_are_those_of_the_whole_clip(wan, tmp_path):
    clips = list(wan.generate(REQUESTS, SETTINGS, batch=2))
    made = list(wan.generate_into(sample_encoders(SHAPE, 17, 2), REQUESTS, SETTINGS, batch=2))
    assert [each.data for each in made] == [whole(clip) for clip in clips]
    plain = [SheetClip(clip.pictures, clip.audio, "", SHAPE.fps, SHAPE.sample_rate) for clip in clips]
    # 17 frames and 11 tiles: every second one.
    assert made[0].sheet.stride == 2 and len(made[0].sheet.video) == 9
    assert np.array_equal(contact_sheet([each.sheet for each in made]), contact_sheet(plain))
    (alone,) = wan.generate_into(sample_encoders(SHAPE, 17, 1), REQUESTS[:1], SETTINGS)
    assert np.array_equal(contact_sheet([alone.sheet]), contact_sheet(plain[:1]))


def test_pictures_are_let_go_as_they_are_encoded(wan):
    seen = []

    class Watched(SampleEncoder):
        def add(self, pictures):
            seen.append((len(pictures), weakref.ref(pictures)))
            super().add(pictures)
            assert not [number for number, (_, part) in enumerate(seen[:-2]) if part() is not None]

    list(wan.generate_into(lambda request: Watched(SHAPE, 17, request, 1), REQUESTS[:1], SETTINGS))
    assert [count for count, _ in seen] == [1, 4, 4, 4, 4]


def test_what_stops_between_frames_leaves_no_file(wan, tmp_path):
    """A run that is cancelled there, and a decoder that fails: the first clip is there, whole, and no second one."""
    stages = []

    def cancelled(stage):
        stages.append(stage)
        if stages.count("decoding: 9 of 17 frames done") == 2:
            raise KeyboardInterrupt

    failing = []

    def fail(module, inputs, output):
        failing.append(1)
        if len(failing) == 7:
            raise RuntimeError("out of memory")

    for name, on_stage, error, encoded in (
        ("cancelled", cancelled, KeyboardInterrupt, 9),
        ("failed", lambda _: None, RuntimeError, 1),
    ):
        folder, closed = SampleFolder(tmp_path / name, SHAPE, 2), []

        class Closed(SampleEncoder):
            def close(self, closed=closed):
                closed.append(self._encoder.pictures)
                super().close()

        def encoder(request, kind=Closed):
            return kind(SHAPE, 17, request, 2)

        hook = wan.codecs.video.vae.decoder.register_forward_hook(fail) if name == "failed" else None
        with pytest.raises(error):
            for request, clip in zip(
                REQUESTS, wan.generate_into(encoder, REQUESTS, SETTINGS, on_stage=on_stage), strict=True
            ):
                folder.add(clip, request.caption, {})
        if hook is not None:
            hook.remove()
        assert sorted(path.name for path in folder.folder.glob("*.mp4")) == ["000.mp4"]
        assert closed == [17, encoded]
        assert all(part is None for part in wan.codecs.video.vae._feat_map)
    (clip,) = wan.generate(REQUESTS[:1], SETTINGS)
    assert (tmp_path / "failed" / "000.mp4").read_bytes() == whole(clip)


def test_kept_pictures_stand_in_their_places(wan):
    """Of a window that is made anew, in parts as of the whole."""
    pictures = np.random.default_rng(0).integers(0, 255, (17, 32, 48, 3), np.uint8)
    given = GivenClip(Clip(pictures, np.zeros(0, np.float32)), video=Window(0.3, 0.6))
    (clip,) = wan.generate([Request("rain", 3, given=given)], SETTINGS)
    kept = [bool((clip.pictures[i] == pictures[i]).all()) for i in range(17)]
    # Latent frames 2 and 3 show pictures 5 to 12, from 0.208 to 0.542 s; 4 ends at 0.708 s.
    assert kept == [i < 5 for i in range(17)]


def test_a_long_clip_is_encoded_window_by_window(wan):
    extension = Extension.of(replace(SHAPE, frames=17), 1.0, overlap=5)
    (clip,) = extended(wan, lambda _: WholeClip(24, 32, 48), REQUESTS[:1], SETTINGS, extension)
    (made,) = extended(wan, sample_encoders(SHAPE, 24, 1), REQUESTS[:1], SETTINGS, extension)
    assert len(clip.pictures) == 24 and made.data == whole(clip)
