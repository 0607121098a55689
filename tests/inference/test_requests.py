"""First frames and prompts from files of any kind: their content says what they are, not their names."""

import json
import shutil

import av
import numpy as np
import pytest
from data_pipeline.media import barcode, clicks, every, read_barcode, write_media
from PIL import Image

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import read_clip
from mova_engine.errors import MovaError
from mova_engine.inference.requests import make_requests, read_frame, read_prompts

CLIP = ClipConfig(frames=5, height=48, width=48)
# Suffix, and what FFmpeg is told to write: the codecs that these containers usually hold.
CONTAINERS = {
    "ts": "libx264", "mts": "libx264", "m2ts": "libx264", "mpg": "mpeg2video", "flv": "libx264", "wmv": "wmv2",
    "3gp": "libx264", "qt": "libx264", "vob": "mpeg2video", "ogv": "libvpx", "mxf": "mpeg2video", "webm": "libvpx-vp9",
    "mkv": "libx264", "avi": "mpeg4", "mov": "libx264", "mp4": "libx264", "asf": "wmv2", "nut": "ffv1",
    "m4v": "libx264",
}  # fmt: skip
MUXERS = {"mts": "mpegts", "m2ts": "mpegts", "qt": "mov", "m4v": "mp4", "ogv": "matroska"}


def write(path, codec, first=5, count=8):
    with av.open(str(path), "w", format=MUXERS.get(path.suffix[1:])) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        stream.codec_context.bit_rate = 2_000_000
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(barcode(first + index, 96, 96), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_video_of_any_container_gives_its_first_frame(tmp_path):
    clip = ClipConfig(frames=1, height=96, width=96)
    for suffix, codec in CONTAINERS.items():
        path = write(tmp_path / f"clip.{suffix}", codec)
        frame = read_frame(path, clip)
        assert read_barcode(frame) == 5, suffix
        np.testing.assert_array_equal(frame, read_clip(path, clip, silent="zeros").video[0], err_msg=suffix)


def test_names_that_deceive(tmp_path):
    movie = write_media(tmp_path / "movie.mp4", every(24, 8), clicks([0.1], 0.4))
    Image.fromarray(barcode(77, 48, 48)).save(tmp_path / "picture.png")
    shutil.copy(movie, tmp_path / "movie.jpg")
    shutil.copy(movie, tmp_path / "movie")
    shutil.copy(tmp_path / "picture.png", tmp_path / "picture.mp4")
    assert read_barcode(read_frame(tmp_path / "movie.jpg", CLIP)) == 0
    assert read_barcode(read_frame(tmp_path / "movie", CLIP, start=0.25)) == 6
    assert read_barcode(read_frame(tmp_path / "picture.mp4", CLIP)) == 77


def test_a_data_set_of_other_containers_gives_prompts(tmp_path):
    rows = []
    for index, suffix in enumerate(("ts", "wmv", "3gp")):
        write(tmp_path / f"{suffix}.{suffix}", CONTAINERS[suffix], first=10 * index)
        rows.append({"video_path": f"{suffix}.{suffix}", "caption": f"kind {suffix}"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_prompts(tmp_path, ClipConfig(frames=5, height=96, width=96))
    assert [read_barcode(prompt.first_frame) for prompt in prompts] == [0, 10, 20]


def test_a_line_of_prompts_may_name_its_first_frame_and_seed(tmp_path, caplog):
    """As in musubi-tuner's prompt files, whose other switches are said not to be used."""
    Image.fromarray(barcode(7, 48, 48)).save(tmp_path / "start.png")
    path = tmp_path / "prompts.txt"
    path.write_text("# two cats\nA cat -- asleep --i start.png --d 9 --w 640 --s 20\n\nrain\n")
    prompts = read_prompts(path, CLIP)
    assert [(x.caption, x.source, x.seed) for x in prompts] == [
        ("A cat -- asleep", "start.png", 9),
        ("rain", None, None),
    ]
    assert read_barcode(prompts[0].first_frame) == 7 and prompts[1].first_frame is None
    assert "--w, --s of a line are not used: steps, width are the same for all prompts" in caplog.text
    # A prompt that is sampled again has another seed.
    assert [request.seed for _, request in make_requests(prompts, 4, 3)] == [9, 4, 10, 6]


@pytest.mark.parametrize(
    "line, says",
    [
        ("rain --ar 16", "prompt 1: unknown switch --ar; known are --i FILE, a first frame, and --d SEED"),
        ("rain --d -1", "prompt 1: --d takes a seed, a whole number, got '-1'"),
        ("rain --i none.png", "none.png: no such file"),
    ],
)
def test_lines_of_prompts_that_cannot_be_used(tmp_path, line, says):
    (tmp_path / "prompts.txt").write_text(line)
    with pytest.raises(MovaError) as error:
        read_prompts(tmp_path / "prompts.txt", CLIP)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"just a note\n", "nor a video"), (b"", "nor a video"), (b"\x89PNG\r\n\x1a\n", "not a readable picture"),
     (b"GIF89a", "not a readable picture")],
)  # fmt: skip
def test_what_is_neither_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "thing.png"
    path.write_bytes(content)
    with pytest.raises(MovaError, match=f"thing.png: .*{message}") as caught:
        read_frame(path, CLIP)
    assert "\n" not in str(caught.value)
    for place, words in ((tmp_path, "not a file but a folder"), (tmp_path / "none.mp4", "no such file")):
        with pytest.raises(MovaError, match=words):
            read_frame(place, CLIP)
