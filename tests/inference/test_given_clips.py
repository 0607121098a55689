"""Sound for pictures, pictures for sound, and parts of a clip anew: through the pipeline and as a user runs it."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import Clip, read_clip
from mova_engine.data.media.write import write_mp4
from mova_engine.diffusion.guidance import Guidance
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main
from mova_engine.inference.audio_alone import generate_sound
from mova_engine.inference.clip_codecs import ClipCodecs
from mova_engine.inference.clip_sinks import WholeClip
from mova_engine.inference.encoded_clip import SOLID_LEVELS, ColourSpread
from mova_engine.inference.extension import Extension, extended
from mova_engine.inference.given_clip import (
    GivenClip,
    Window,
    kept_audio_latents,
    kept_frames,
    kept_latent_frames,
    with_kept_sound,
)
from mova_engine.inference.pipeline import Pipeline, load_pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings

SHAPE = ClipConfig(frames=9, height=32, width=48)
WINDOW = Window(0.15, 0.25)


def pictures_and_sound(frames=9, seed=0, samples=SHAPE.audio_samples):
    generator = np.random.default_rng(seed)
    pictures = np.repeat(np.repeat(generator.integers(0, 255, (frames, 4, 6, 3), np.uint8), 8, 1), 8, 2)
    time = np.arange(samples) / SHAPE.sample_rate
    return pictures, (0.4 * np.sin(2 * np.pi * (300 + 100 * seed) * time)).astype(np.float32)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / "clip.mp4"
    pictures, sound = pictures_and_sound()
    write_mp4(path, pictures, sound[: round(SHAPE.duration * SHAPE.sample_rate)])
    return path


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory):
    """Stereo, 16 bits, at another rate than the model's."""
    path = tmp_path_factory.mktemp("given") / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=44100, layout="stereo")
        samples = (8000 * np.sin(np.arange(2 * 44100) / 40)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return path


def packets(path, kind):
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [bytes(packet) for packet in container.demux(stream) if packet.size]


def test_given_pictures_come_back_and_their_sound_follows_them(pipeline):
    one, two = (pictures_and_sound(seed=seed)[0] for seed in (1, 2))
    clips = [pipeline("rain", given=GivenClip.pictures(pictures), steps=2) for pictures in (one, two, one)]
    assert np.array_equal(clips[0].frames, one)
    assert np.array_equal(clips[0].audio, clips[2].audio)
    assert np.abs(clips[0].audio - clips[1].audio).max() > 1e-2 * np.abs(clips[0].audio).max()


def test_given_sound_comes_back_and_its_pictures_follow_it(pipeline):
    one, two = (pictures_and_sound(seed=seed)[1] for seed in (1, 2))
    clips = [pipeline("rain", given=GivenClip.sound(sound), steps=2) for sound in (one, two)]
    assert np.array_equal(clips[0].audio[0], one[: clips[0].audio.shape[1]])
    assert (clips[0].frames != clips[1].frames).mean() > 0.2


@pytest.mark.parametrize(
    ("video", "audio"), [(WINDOW, "all"), ("all", WINDOW), (WINDOW, WINDOW), ("none", WINDOW), (WINDOW, "none")]
)
def test_what_is_outside_the_window_stays_to_the_bit(pipeline, video, audio):
    pictures, sound = pictures_and_sound(seed=3)
    clip = pipeline("rain", given=GivenClip(Clip(pictures, sound), video, audio), steps=2)
    frames = np.array(kept_frames(video, SHAPE))
    assert np.array_equal(clip.frames[frames], pictures[frames])
    assert not np.array_equal(clip.frames[~frames], pictures[~frames]) or frames.all()
    kept = np.repeat(kept_audio_latents(audio, SHAPE), SHAPE.audio_samples // SHAPE.audio_tokens)
    kept = kept[: clip.audio.shape[1]]
    assert np.array_equal(clip.audio[0][kept], sound[: len(kept)][kept])
    assert kept.all() or np.abs(clip.audio[0] - sound[: len(kept)])[~kept].max() > 0.01


def test_positions_that_a_window_takes():
    # Latent frames: picture 0, 1-4, 5-8; they begin at 0, 1/24 and 5/24 s.
    assert kept_latent_frames(Window(0.0, 0.02), SHAPE) == (False, True, True)
    assert kept_latent_frames(Window(5 / 24, 8 / 24), SHAPE) == (True, True, False)
    assert kept_frames(Window(2 / 24, 4 / 24), SHAPE) == (True, *(False,) * 4, *(True,) * 4)
    assert kept_frames("all", SHAPE) == (True,) * 9
    assert kept_frames("none", SHAPE) == (False,) * 9
    # Audio latents of 20 ms.
    assert [i for i, kept in enumerate(kept_audio_latents(Window(0.1, 0.15), SHAPE)) if not kept] == [5, 6, 7]


def test_kept_sound_fades_into_the_window():
    ones, zeros = np.ones(SHAPE.audio_samples, np.float32), np.zeros(SHAPE.audio_samples, np.float32)
    mixed = with_kept_sound(zeros, ones, Window(0.1, 0.2), SHAPE)
    begin, end = (round(second * SHAPE.sample_rate) for second in (0.1, 0.2))
    assert (mixed[:begin] == 1).all() and (mixed[end:] == 1).all()
    assert (mixed[begin + 480 : end - 480] == 0).all()
    assert np.abs(np.diff(mixed)).max() < 1 / 470


@pytest.fixture
def sample(run_folder, tmp_path):
    def run(*args):
        common = ["--checkpoint", run_folder, "--out", tmp_path / "out", "--device", "cpu", "--steps", 2]
        assert main([str(word) for word in (*common, *args)]) == 0
        (row,) = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
        return tmp_path / "out" / "000.mp4", row

    return run


@pytest.mark.parametrize("passes", ["exact", "2", "once"])
def test_sound_for_a_video_leaves_its_packets_as_they_are(sample, clip_file, passes):
    path, row = sample("--prompt", "rain", "--video", clip_file, "--video-passes", passes)
    assert packets(path, "video") == packets(clip_file, "video")
    clip = read_clip(path, SHAPE, silent="zeros")
    assert np.array_equal(clip.pictures, read_clip(clip_file, SHAPE).pictures)
    assert (row["given_video"], row["given_audio"], row["source"]) == ("all", "none", str(clip_file))
    assert row["video_every"] == {"exact": 1, "2": 2, "once": 0}[passes]


def test_pictures_for_a_sound_leave_its_samples_as_they_are(sample, sound_file, clip_file):
    path, row = sample("--prompt", "rain", "--audio", sound_file)
    with av.open(str(path)) as container, av.open(str(sound_file)) as source:
        streams = container.streams.audio[0], source.streams.audio[0]
        assert (streams[0].codec_context.name, streams[0].codec_context.sample_rate) == ("flac", 44100)
        made, given = (
            np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in file.decode(audio=0)])
            for file in (container, source)
        )
    # The clip's 9 frames last 0.375 s.
    assert len(made) == round(0.375 * 44100)
    assert np.array_equal(made, given[: len(made)])
    assert (row["given_video"], row["given_audio"]) == ("none", "all")


def test_sound_that_mp4_holds_is_copied(sample, clip_file):
    path, _ = sample("--prompt", "rain", "--audio", clip_file)
    assert packets(path, "audio") == packets(clip_file, "audio")


def test_a_retake(sample, clip_file):
    path, row = sample("--prompt", "x", "--retake", clip_file, "--window", 0.15, 0.25, "--retake-of", "audio")
    assert (row["given_video"], row["given_audio"]) == ("all", [0.15, 0.25])
    assert len(read_clip(path, SHAPE, silent="zeros").pictures) == 9


def test_pictures_of_a_silent_clip_are_made_anew(sample, tmp_path):
    pictures, sound = pictures_and_sound()
    write_mp4(tmp_path / "silent.mp4", pictures, 0 * sound[:18000])
    command = ("--prompt", "x", "--retake", tmp_path / "silent.mp4", "--window", 0.15, 0.25, "--retake-of", "video")
    path, row = sample(*command)
    assert (row["given_video"], row["given_audio"]) == ([0.15, 0.25], "all")
    made = read_clip(path, SHAPE, silent="zeros")
    assert not made.heard and not made.audio.any()


def test_folders_of_clips_give_their_pictures(sample, run_folder, clip_file, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(clip_file.read_bytes())
    (folder / "a.txt").write_text("rain")
    path, row = sample("--prompts", folder, "--given", "video")
    assert packets(path, "video") == packets(clip_file, "video")
    assert row["given_video"] == "all"


def test_a_shorter_video_shortens_the_clip(sample, tmp_path, capsys):
    pictures, sound = pictures_and_sound(7)
    write_mp4(tmp_path / "short.mp4", pictures, sound[: 7 * 2000])
    path, _ = sample("--prompt", "rain", "--video", tmp_path / "short.mp4")
    assert "the clip has 5 frames instead of 9" in capsys.readouterr().err
    assert len(packets(path, "video")) == 7


def test_what_cannot_be_given_is_refused_before_weights_are_read(run_folder, tmp_path, clip_file, monkeypatch):
    monkeypatch.setattr("mova_engine.inference.sampling_run.load_pipeline", None)
    picture, silent, long = tmp_path / "a.png", tmp_path / "silent.mp4", tmp_path / "long.mp4"
    from PIL import Image

    pictures, sound = pictures_and_sound(25, samples=2 * SHAPE.sample_rate)
    Image.fromarray(pictures[0]).save(picture)
    write_mp4(silent, pictures[:9], 0 * sound[:18000])
    write_mp4(long, pictures, sound)
    prompt, folder = ("--prompt", "rain"), ("--prompts", str(tmp_path))
    for arguments, message in (
        ((*prompt, "--video", picture), "is a picture; sound is made for a video"),
        ((*prompt, "--video", tmp_path / "none.mp4"), "none.mp4"),
        ((*prompt, "--video", long), "the rest would have no sound. Cut it, or give --clip.frames 25"),
        ((*prompt, "--audio", silent), "has no sound to keep"),
        ((*prompt, "--audio", picture), "not a media file of a known format"),
        ((*prompt, "--video", clip_file, "--audio", clip_file), "--video and --audio exclude one another"),
        ((*prompt, "--retake", clip_file), "--retake CLIP and --window BEGIN END go together"),
        ((*prompt, "--retake", clip_file, "--window", 0.3, 0.2), "a window must lie within the clip's"),
        ((*prompt, "--retake", clip_file, "--window", 0.3, 9), "a window must lie within the clip's"),
        ((*prompt, "--retake", clip_file, "--window", 0.1, 0.1000001), "makes nothing: it is less than one latent"),
        ((*prompt, "--retake", picture, "--window", 0.1, 0.2), "is a picture; a window is made anew of a video"),
        (
            (*prompt, "--retake", silent, "--window", 0.1, 0.2),
            "no sound to keep: .*--retake-of video keeps it",
        ),
        ((*prompt, "--video-passes", "once"), "--video-passes goes with --video"),
        ((*prompt, "--video", clip_file, "--video-passes", "often"), "video_passes must be exact, once or a number"),
        ((*prompt, "--video", clip_file, "--image", picture), "leave --image out"),
        (
            (*prompt, "--video", clip_file, "--sigmas", 1, "--audio-sigmas", 1, 0.5),
            "several --audio-sigmas for each of the video's are for videos that are made",
        ),
        ((*prompt, "--given", "video"), "--given goes with --prompts"),
        ((*prompt, "--extend", clip_file), "--extend CLIP goes with --seconds"),
        ((*prompt, "--extend", clip_file, "--seconds", 0.3), "needs no extension"),
        ((*prompt, "--extend", long, "--seconds", 0.6), "lasts 1.042 s already"),
        ((*prompt, "--seconds", 0.6, "--overlap", 4), r"windows must share 4n\+1 frames"),
        ((*prompt, "--audio-alone", "--image", picture), "--audio-alone makes sound from text"),
        ((*prompt, "--audio-alone", "--guidance", "dual"), "the audio tower alone has no bridge"),
        ((*prompt, "--seconds", 1e6), "seconds must lie between 0 and 3600"),
        ((*prompt, "--seconds", 0.6, "--video", clip_file), "--seconds goes with --prompt or --extend alone"),
        ((*folder, "--video", clip_file), "with --prompts FOLDER: --given video or audio"),
    ):
        command = ["--checkpoint", run_folder, "--out", tmp_path / "out", "--device", "cpu", *arguments]
        with pytest.raises(MovaError, match=message):
            main([str(word) for word in command])
    assert not (tmp_path / "out").exists()


def test_given_arrays_are_checked(pipeline):
    pictures, sound = pictures_and_sound()
    for given, message in (
        (
            GivenClip.pictures(pictures[:5]),
            r"must be uint8 \[9, 32, 48, 3\], got uint8 \[5, 32, 48, 3\]",
        ),
        (GivenClip.pictures(pictures / 255.0), "given pictures must be uint8"),
        (GivenClip.sound(sound[:100]), "given sound must be float32"),
        (GivenClip.sound(sound * np.nan), "finite"),
        (GivenClip(Clip(pictures, sound), Window(0.3, 9.0), "all"), "a window must lie within the clip's"),
        (GivenClip(Clip(pictures, sound), "all", Window(0.1, 0.1000001)), "makes nothing"),
    ):
        with pytest.raises(MovaError, match=message):
            pipeline("rain", given=given, steps=1)
    with pytest.raises(MovaError, match="nothing of the clip is given"):
        GivenClip(Clip(pictures, sound))
    with pytest.raises(MovaError, match="both given as a whole"):
        GivenClip(Clip(pictures, sound), "all", "all")


def test_windows_continue_one_another(pipeline):
    extension = Extension.of(SHAPE, 0.8, overlap=5)
    assert (extension.frames, extension.step, extension.windows()) == (19, 4, 4)
    settings, seen = SampleSettings(2, Guidance("none")), []
    generate = pipeline.generate

    def spy(requests, *args, **kwargs):
        for request, clip in zip(requests, generate(requests, *args, **kwargs), strict=True):
            seen.append((request, clip))
            yield clip

    pipeline.generate = spy
    (clip,) = extended(pipeline, lambda _: WholeClip(19, 32, 48), [Request("rain", 3)], settings, extension)
    assert len(clip.pictures) == 19 and len(clip.audio) == extension.sample(19)
    assert [request.seed for request, _ in seen] == [3, 4, 5, 6]
    for number, (before, (request, after)) in enumerate(zip([c for _, c in seen], seen[1:], strict=False)):
        # What both windows show is the same, and is in the result.
        assert np.array_equal(after.pictures[:5], before.pictures[-5:])
        begin = 4 * (number + 1)
        assert np.array_equal(clip.pictures[begin : begin + 5], after.pictures[:5])
        kept = 10 * SHAPE.audio_samples // SHAPE.audio_tokens  # of 5/24 s = 10.4 latents
        first = extension.sample(begin)
        assert np.array_equal(after.audio[:kept], before.audio[extension.sample(4) :][:kept])
        assert np.array_equal(clip.audio[first : first + kept], after.audio[:kept])
        assert request.caption == "rain"
    # Where a window goes over into the next, the sound has no jump beyond its own.
    jumps = np.abs(np.diff(clip.audio))
    assert jumps[extension.sample(8) - 20 : extension.sample(9) + 20].max() <= 1.5 * jumps.max()


@pytest.mark.parametrize("overlap", [1, 5, 13])
def test_sound_has_no_jump_where_a_window_ends(overlap):
    """Of 13 frames the sound goes on for 2 ms after its last whole latent, which is less than the fade."""
    shape = replace(SHAPE, frames=25)
    time = np.arange(2 * shape.audio_samples) / shape.sample_rate
    sine = (0.4 * np.cos(2 * np.pi * 300 * time)).astype(np.float32)
    extension = Extension(shape, 45, overlap)
    before = Clip(np.zeros((25, 2, 2, 3), np.uint8), sine[: extension.sample(25)])
    given = extension.continued(before)
    made = sine[extension.sample(25 - overlap) :][: shape.audio_samples]
    sound = with_kept_sound(made, given.source.audio, given.audio, shape)
    assert np.abs(np.diff(sound)).max() < 1.5 * np.abs(np.diff(sine)).max()


def test_a_clip_is_extended(sample, clip_file):
    path, row = sample("--prompt", "rain", "--extend", clip_file, "--seconds", 0.6, "--overlap", 5)
    shape = ClipConfig(frames=13, height=32, width=48)
    made = read_clip(path, shape, silent="zeros")
    given = read_clip(clip_file, SHAPE)
    # H.264 loses some of these pictures, which have nothing in common; others differ by 80.
    assert np.abs(made.pictures[:9].astype(int) - given.pictures).mean() < 10
    assert (row["seconds"], row["source"]) == (0.6, str(clip_file))
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == round(0.6 * 24)


def test_sound_alone_needs_neither_pictures_nor_bridge(pipeline):
    settings = SampleSettings(3, Guidance("text", 3.0), solver="heun")
    requests = [Request("rain", 3), Request("wind", 4)]
    sounds = list(generate_sound(pipeline, requests, settings, batch=2))
    for module in (pipeline.mova.video_dit, pipeline.mova.video_dit_2, pipeline.mova.dual_tower_bridge):
        for parameter in module.parameters():
            parameter.data.fill_(torch.nan)
    for request, sound in zip(requests, sounds, strict=True):
        assert len(sound) == round(SHAPE.duration * SHAPE.sample_rate)
        (alone,) = generate_sound(pipeline, [request], settings)
        assert np.abs(alone - sound).max() <= 1e-5 * np.abs(sound).max()
    assert np.abs(sounds[0] - sounds[1]).max() > 0.01 * np.abs(sounds[0]).max()
    with pytest.raises(MovaError, match="guidance must be none or text, got dual"):
        next(generate_sound(pipeline, requests, SampleSettings(3, Guidance("dual"))))


def test_sound_alone_is_written_as_wav(sample, tmp_path):
    _, row = sample("--prompt", "rain", "--audio-alone")
    assert row["video_path"] == "000.wav"
    sound = read_clip(tmp_path / "out" / "000.wav", SHAPE, silent="zeros", pictures=False)
    assert np.abs(sound.audio).max() > 0
    assert (tmp_path / "out" / "contact_sheet.png").is_file()


def test_keyframes_are_shown_to_the_model_in_their_places(pipeline):
    codecs = ClipCodecs(pipeline.codecs, pipeline.shape, pipeline.processes, None)
    pictures, _ = pictures_and_sound()
    request = Request("rain", 0, pictures[0], keyframes=((2, pictures[2]), (5, pictures[5])))
    condition = codecs.gather(codecs.encode([[request]], "")[0], [request], torch.device("cpu")).condition
    volume = torch.zeros(1, 3, 9, 32, 48)
    for index in (0, 2, 5):
        volume[0, :, index] = torch.from_numpy(pictures[index]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(condition[:, 4:], pipeline.codecs.video.encode(volume))
    mask = condition[0, :4].mean((2, 3))
    # Picture 2 is the second of latent frame 1, picture 5 the first of latent frame 2.
    assert mask.T.tolist() == [[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0]]


def test_a_keyframe_is_read(sample, clip_file, run_folder, tmp_path):
    sample("--prompt", "rain", "--image", clip_file, "--keyframe", f"{clip_file}:0.2")
    for word, message in (
        (f"{clip_file}", "FILE:SECONDS is wanted"),
        (f"{clip_file}:0", "--image gives the first"),
        (f"{clip_file}:9", "of a picture from 0.042 to 0.333 s"),
    ):
        command = ["--checkpoint", run_folder, "--out", tmp_path / "x", "--prompt", "rain", "--keyframe", word]
        with pytest.raises(MovaError, match=message):
            main([str(each) for each in command])


def test_a_clip_of_one_solid_colour_is_named(sample, monkeypatch, capsys):
    class Solid(Pipeline):
        def generate_into(self, sinks, requests, *args, **kwargs):
            for sink in map(sinks, requests):
                sink.add(np.full((9, 32, 48, 3), 120, np.uint8))
                yield sink.finish(np.zeros(18000, np.float32))

    made = load_pipeline

    def solid(*args, **kwargs):
        pipeline = made(*args, **kwargs)
        pipeline.__class__ = Solid
        return pipeline

    monkeypatch.setattr("mova_engine.inference.sampling_run.load_pipeline", solid)
    _, row = sample("--prompt", "rain")
    assert row["solid_colour"] is True
    assert "clip 0 ('rain') stays one solid colour" in capsys.readouterr().err
    pictures, spread = pictures_and_sound()[0], ColourSpread()
    for part in np.split(pictures, 3):
        spread.add(part)
    assert spread.levels == pytest.approx(float(pictures.std((0, 1, 2)).max()), rel=1e-9)
    assert spread.levels > SOLID_LEVELS
