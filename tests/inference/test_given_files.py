"""Files of kinds that users have, as what is given of a clip: cut without encoding anew, of other codecs, rounded."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import probe, read_clip
from mova_engine.data.media.flac_layout import flac_layout
from mova_engine.data.media.remux import check_source_sound, with_new_sound, with_source_sound
from mova_engine.data.media.write import PictureEncoder, write_mp4
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main

SHAPE = ClipConfig(frames=9, height=32, width=48)


def write_video(path, codec="libx264", hidden=0, frames=20):
    """Grey pictures, each lighter than the one before. hidden: how many an edit list hides at the beginning."""
    options = {"avoid_negative_ts": "disabled"} if hidden else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=24, options={"bf": "2", "g": "40"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        packets = []
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 + 10 * index, np.uint8), "rgb24")
            frame.pts = index
            packets += stream.encode(frame)
        for packet in (*packets, *stream.encode(None)):
            packet.pts -= round(hidden / 24 / packet.time_base)
            packet.dts -= round(hidden / 24 / packet.time_base)
            container.mux(packet)
    return path


def write_levels(path, layout, order=None):
    """Sound of a second, whose channel k has the level (k + 1) / 16. order: Apple's tag of the channels' order."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48000, layout=layout)
        levels = 2048 * np.arange(1, stream.codec_context.layout.nb_channels + 1)
        frame = av.AudioFrame.from_ndarray(np.tile(levels, 48000).astype(np.int16)[None], "s16", layout)
        frame.sample_rate = 48000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    if order is not None:
        data = path.read_bytes()
        place = data.index(b"chan") + 8  # behind the kind, version and flags
        path.write_bytes(data[:place] + order.to_bytes(4, "big") + data[place + 4 :])
    return path


def placed(layout):
    """Names of a layout's channels; the only pair of surround channels is SL, SR."""
    names = [channel.name for channel in layout.channels]
    return names if "SL" in names else [{"BL": "SL", "BR": "SR"}.get(name, name) for name in names]


@pytest.mark.parametrize(
    ("layout", "order"),
    [
        *((name, None) for name in ("mono", "stereo", "3.0", "quad", "quad(side)", "5.0", "5.1", "5.1(side)")),
        *((name, None) for name in ("6.1", "6.1(back)", "7.1")),
        ("5.1", (123 << 16) | 6),  # L C R Ls Rs LFE, of films
    ],
)
def test_sound_kept_as_flac_stays_with_its_loudspeakers(tmp_path, layout, order):
    source = write_levels(tmp_path / ("a.mov" if order else "a.wav"), layout, order)
    check_source_sound(source, 0)
    encoder = PictureEncoder("b.mp4", 24)
    encoder.add(np.zeros((9, 32, 48, 3), np.uint8))
    (tmp_path / "b.mp4").write_bytes(with_source_sound(source, encoder, 24))
    with av.open(str(tmp_path / "b.mp4")) as container:
        frame = next(container.decode(audio=0))
        made = av.AudioResampler("s16").resample(frame)[0].to_ndarray()[0] / 2048
        found = dict(zip(placed(frame.layout), made[: frame.layout.nb_channels], strict=True))
    names = ["FL", "FC", "FR", "SL", "SR", "LFE"] if order else placed(av.AudioLayout(layout))
    assert found == {name: k for k, name in enumerate(names, 1)}


def test_sound_that_flac_gives_to_other_loudspeakers_is_refused_before_weights_are_read(
    run_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("mova_engine.inference.sampling_run.load_pipeline", None)
    source, words = tmp_path / "a.wav", "a.wav: its sound has the channels FL FR .*: mix it down to stereo first"
    for layout in ("2.1", "3.0(back)", "3.1", "4.0", "4.1", "6.0", "hexagonal", "7.0", "7.1(wide)"):
        write_levels(source, layout)
        with pytest.raises(MovaError, match=words):
            check_source_sound(source, 0)
    command = ["--checkpoint", run_folder, "--out", tmp_path / "out", "--prompt", "rain", "--audio", source]
    with pytest.raises(MovaError, match=words):
        main([str(word) for word in command])


def test_two_channels_of_any_name_are_stereo():
    for names in (("DL", "DR"), ("BIL", "BIR"), ("NONE", "NONE")):
        assert flac_layout(names) == ("stereo", [0, 1])
    assert flac_layout(("NONE",)) == ("mono", [0])
    with pytest.raises(MovaError, match="has the channels FL LFE"):
        flac_layout(("FL", "LFE"))


@pytest.fixture
def sample(run_folder, tmp_path):
    def run(*args):
        common = ["--checkpoint", run_folder, "--out", tmp_path / "out", "--device", "cpu", "--steps", 2]
        assert main([str(word) for word in (*common, *args)]) == 0
        return [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]

    return run


@pytest.mark.parametrize("hidden", [0, 3])
def test_new_sound_begins_with_the_first_picture_that_is_shown(tmp_path, hidden):
    source, made = write_video(tmp_path / "a.mp4", hidden=hidden), tmp_path / "b.mp4"
    made.write_bytes(with_new_sound(source, np.zeros(18000, np.float32), 48000))
    pictures = read_clip(source, SHAPE, silent="zeros").pictures
    assert abs(pictures[0].mean() - (20 + 10 * hidden)) < 2
    assert np.array_equal(read_clip(made, SHAPE, silent="zeros").pictures, pictures)


def test_clips_of_a_folder_that_cannot_be_copied_are_left_out_before_anything_is_made(sample, tmp_path, caplog):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, codec in (("a.mp4", "libx264"), ("b.mkv", "libvpx")):
        write_video(folder / name, codec, frames=9)
        (folder / name).with_suffix(".txt").write_text("rain")
    (row,) = sample("--prompts", folder, "--given", "video")
    assert row["source"].startswith("a")
    assert "pictures of the kind vp8 cannot be copied into mp4" in caplog.text


def test_all_pictures_of_a_clip_are_extended_though_its_duration_is_rounded(sample, tmp_path):
    blocks = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3), np.uint8)
    source, pictures = tmp_path / "a.mp4", np.repeat(np.repeat(blocks, 8, 1), 8, 2)
    write_mp4(source, pictures, np.zeros(10000))
    # B-frames make an edit list, whose durations are in milliseconds.
    assert probe(source).duration < 5 / 24
    sample("--prompt", "rain", "--extend", source, "--seconds", 0.5, "--overlap", 5)
    made = read_clip(tmp_path / "out" / "000.mp4", SHAPE, silent="zeros").pictures
    given = read_clip(source, ClipConfig(frames=5, height=32, width=48), silent="zeros").pictures
    # H.264 loses some of these pictures; others differ by 80.
    assert np.abs(made[:5].astype(int) - given).mean() < 10


def test_prompts_keep_their_seeds_with_an_image_for_all(sample, tmp_path):
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("rain --d 77\nwind\n")
    rows = sample("--prompts", tmp_path / "a.txt", "--image", tmp_path / "a.png")
    assert [(row["seed"], row["source"]) for row in rows] == [
        (77, str(tmp_path / "a.png")),
        (1, str(tmp_path / "a.png")),
    ]


def test_a_retake_from_the_beginning_takes_a_first_frame(sample, tmp_path, capsys):
    source, sound = tmp_path / "a.mp4", np.sin(np.arange(18000) / 20).astype(np.float32)
    write_mp4(source, np.full((9, 32, 48, 3), 200, np.uint8), sound)
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(tmp_path / "a.png")
    retake = ("--prompt", "rain", "--retake", source, "--window", 0)
    sample(*retake, 0.2)
    assert "without --image it gets a white one" in capsys.readouterr().err
    sample(*retake, 0.2, "--image", tmp_path / "a.png", "--overwrite")
    assert "white" not in capsys.readouterr().err
    # The image is what the model was trained to be given there.
    first = read_clip(tmp_path / "out" / "000.mp4", SHAPE, silent="zeros").pictures[0]
    assert abs(first.mean() - 90) < 5 and first.std() < 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--video", "long.mp4", "--video-passes", "²"), "video_passes must be exact, once or a number"),
        (("--retake", "long.mp4", "--window", 0.1, 0.2), "the rest would be lost. Cut it, or give --clip.frames 17"),
        (("--retake", "long.mp4", "--window", 0.1, 0.2, "--image", "a.png"), "leave --image out"),
        (("--last-image", "a.png", "--keyframe", "a.png:0.333"), "--last-image and a --keyframe both give the last"),
        (("--audio-alone", "--video-shift", 2.0), "--video-shift has no effect with --audio-alone"),
    ],
)
def test_what_does_not_go_together_is_refused(run_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("mova_engine.inference.sampling_run.load_pipeline", None)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save("a.png")
    write_video("long.mp4")
    command = ["--checkpoint", run_folder, "--out", "out", "--device", "cpu", "--prompt", "rain", *arguments]
    with pytest.raises(MovaError, match=message):
        main([str(word) for word in command])
