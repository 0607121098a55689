"""Clips of every container are right within half a frame and 1 ms, or refused by name, whatever happens to the file."""

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from data_pipeline import campaign
from data_pipeline.campaign import run, try_one, untold
from data_pipeline.mutations import MUTATIONS, Mutant
from data_pipeline.ruler import CLIP, KINDS, SIZE, Kind, Truth, judge, noise, numbered, read_numbers, write

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import read_clip
from mova_engine.errors import MovaError

UNKNOWN = ("avi, bframes", "avi, h264")  # when their pictures are shown is a guess


@pytest.mark.parametrize("kind", ["ts", "mkv, mpeg2", "mpg, mpeg1", "vob", "flv, flv1", "wmv", "mov", "webm", "gif"])
def test_whole_files_are_right_from_everywhere(files, kind):
    settings = KINDS[kind]
    for start in (0, 1.3, 3.5):
        clip = read_clip(files(kind), CLIP, start=start, silent="zeros")
        assert judge(clip, start, Truth(settings.fps, settings.audio is not None)) is None


def test_the_judge_sees_what_is_wrong(files):
    clip = read_clip(files("ts"), CLIP, start=1)
    truth = Truth(KINDS["ts"].fps)
    assert judge(clip, 1, truth) is None
    assert "s late" in judge(clip, 1.04, truth)
    clip.audio[:] = np.roll(clip.audio, 100)
    assert "is that of -0.002 s" in judge(clip, 1, truth)
    clip.audio[:] = np.random.default_rng(0).normal(size=len(clip.audio))
    assert "spoilt is the sound" in judge(clip, 1, truth)
    clip.audio[:] = 0
    assert judge(clip, 1, truth) is None
    clip.video[5, :20, :20] = 125
    assert judge(clip, 1, truth) == "spoilt is picture 5"


@pytest.mark.parametrize("kind", UNKNOWN)
def test_times_that_are_a_guess_are_refused(files, kind):
    with pytest.raises(MovaError, match="B frames does not say when they are shown"):
        read_clip(files(kind), CLIP)


@pytest.mark.parametrize("kind", ["ts", "vob"])
@pytest.mark.parametrize("start", [0, 2.9, 3.4, 3.7, 4.2])
def test_where_the_clock_restarts_the_file_ends(files, tmp_path, kind, start):
    """Two recordings joined as they are; the second would stand at the same times."""
    settings = KINDS[kind]
    other = write(tmp_path / f"other.{settings.suffix}", settings, first=300, seconds=3)
    path = tmp_path / f"joined.{settings.suffix}"
    path.write_bytes(files(kind).read_bytes() + other.read_bytes())
    if start < 3.5:
        assert judge(read_clip(path, CLIP, start=start), start, Truth(settings.fps)) is None
    else:
        # The last packets before the joint may be marked as damaged.
        with pytest.raises(MovaError, match=r"its clock restarts \d\.\d+ s after its first|damaged video at 4.9"):
            read_clip(path, CLIP, start=start)


@pytest.mark.parametrize("kind", ["ts", "ts, mpeg2"])
def test_lost_packets_are_seen(files, tmp_path, kind):
    data = files(kind).read_bytes()
    for share in (0.15, 0.2, 0.25):
        at = int(len(data) * share) // 188 * 188
        (tmp_path / "lost.ts").write_bytes(data[:at] + data[at + 20 * 188 :])
        with pytest.raises(MovaError, match=r"lost.ts: damaged (video|audio)( at|: 0)"):
            read_clip(tmp_path / "lost.ts", CLIP)
        # What is damaged before the clip and does not reach into it does not count.
        start = 3.4
        assert judge(read_clip(tmp_path / "lost.ts", CLIP, start=start), start, Truth(KINDS[kind].fps)) is None


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_pictures_missing_from_a_constant_rate(files, tmp_path, suffix):
    """Nothing is damaged, and the container may say that the picture before stands longer."""
    path = tmp_path / f"holes.{suffix}"
    with av.open(str(files("mkv, ffv1"))) as source, av.open(str(path), "w") as sink:
        stream = source.streams.video[0]
        copy = sink.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size and packet.pts is not None and not 1.0 < packet.pts * packet.time_base < 1.1:
                packet.stream = copy
                sink.mux(packet)
    with pytest.raises(MovaError, match=r"damaged video: 0.1\d+ s without a picture from (0.9|1.0)"):
        read_clip(path, CLIP, silent="zeros")
    assert judge(read_clip(path, CLIP, start=1.5, silent="zeros"), 1.5, Truth(Fraction(30), False)) is None


def test_cut_streams_begin_with_their_first_whole_picture(files, tmp_path):
    for kind, block in (("ts", 188), ("ts, mpeg2", 188)):
        data = files(kind).read_bytes()
        path = tmp_path / f"cut.{KINDS[kind].suffix}"
        path.write_bytes(data[len(data) // 3 // block * block :])
        assert judge(read_clip(path, CLIP), 0, Truth(KINDS[kind].fps, later=True)) is None


def test_a_program_stream_cut_amid_a_picture_has_other_first_stamps(files, tmp_path):
    """The first stamp is taken for the rest of the picture that it is cut in; what is counted from it is wrong."""
    path = tmp_path / "m.mpg"
    found = [try_one("mpg", "beheaded", files("mpg"), path, seed) for seed in (1000, 1003, 1019)]
    assert [finding.outcome for finding in found] == ["right"] * 3


def test_a_cover_is_no_video_and_the_default_streams_are_read(tmp_path):
    """Two streams each, the second marked as default; and a picture attached to sound."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        videos = [container.add_stream("ffv1", rate=24) for _ in range(2)]
        sounds = [container.add_stream("pcm_s16le", rate=48000, layout="mono") for _ in range(2)]
        for k, video in enumerate(videos):
            video.width = video.height = SIZE
            video.pix_fmt = "yuv420p"
            video.disposition = sounds[k].disposition = av.stream.Disposition(k)
        wave = noise()[: 3 * 48000]
        for stream, samples in zip(sounds, (-np.roll(wave, 999), wave), strict=True):
            frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(stream.encode(frame))
        for n in range(60):
            for k, video in enumerate(videos):
                frame = av.VideoFrame.from_ndarray(numbered(n if k else 4000 - n), format="rgb24")
                frame.pts, frame.time_base = n, Fraction(1, 24)
                container.mux(video.encode(frame))
    assert judge(read_clip(path, CLIP), 0, Truth(Fraction(24))) is None

    covered = write(tmp_path / "cover.mp4", Kind("mp4", "mjpeg", pix="yuvj420p"), seconds=1)
    data = bytearray(covered.read_bytes())
    with av.open(str(covered)) as source, av.open(str(tmp_path / "song.mp4"), "w") as sink:
        copies = {s.index: sink.add_stream_from_template(s) for s in source.streams}
        copies[0].disposition = av.stream.Disposition.attached_pic
        for packet in source.demux():
            if packet.size and (packet.stream_index == 1 or packet.pts == 0):
                packet.stream = copies[packet.stream_index]
                sink.mux(packet)
    assert data
    with pytest.raises(MovaError, match="has no video"):
        read_clip(tmp_path / "song.mp4", CLIP)


def test_names_are_names_of_files_and_nothing_else_is_opened(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30:00.mp4", "concat:a|b.mp4", "pipe:0.mp4", "file:x.mp4", "-i.mp4", "%03d.mp4"):
        Path(name).write_bytes(files("mp4").read_bytes())
        assert judge(read_clip(name, CLIP), 0, Truth(Fraction(30))) is None
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:5,\n12:30:00.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/12:30:00.mp4\n")
    (tmp_path / "text.mp4").write_text("not a film, but \033[31mtext\n" * 50)
    for name in ("list.m3u8", "list.mp4", "text.mp4"):
        with pytest.raises(MovaError, match=f"{name}: (not a media file of a known format|damaged)"):
            read_clip(tmp_path / name, CLIP)
    for name in ("http://127.0.0.1/a.mp4", "concat:12:30:00.mp4"):
        with pytest.raises(MovaError, match="no such file"):
            read_clip(name, CLIP)
    os.mkfifo("pipe.mp4")
    for name, message in (("pipe.mp4", "but a pipe"), (".", "but a folder"), ("a\0b", "embedded null")):
        with pytest.raises(MovaError, match=message):
            read_clip(name, CLIP)


FILM_ORDER = (123 << 16) | 6  # L C R Ls Rs LFE


def test_an_order_of_channels_of_their_own_kills_nobody(tmp_path):
    """QuickTime sound in film order: PyAV frees its layout twice. 440 Hz in the centre must be what is heard."""
    t = np.arange(2 * 48000) / 48000
    sound = np.zeros((6, len(t)), np.float32)
    sound[1] = 0.5 * np.sin(2 * np.pi * 440 * t)
    path = tmp_path / "order.mov"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mjpeg", rate=24)
        video.width = video.height = SIZE
        video.pix_fmt = "yuvj420p"
        audio = container.add_stream("pcm_s16le", rate=48000, layout="5.1")
        frame = av.AudioFrame.from_ndarray((sound.T.reshape(1, -1) * 32767).astype(np.int16), "s16", "5.1")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        container.mux(audio.encode(frame))
        for n in range(48):
            picture = av.VideoFrame.from_ndarray(numbered(n), format="rgb24")
            picture.pts, picture.time_base = n, Fraction(1, 24)
            container.mux(video.encode(picture))
    data = bytearray(path.read_bytes())
    at = data.index(b"chan") + 8
    data[at : at + 4] = FILM_ORDER.to_bytes(4, "big")
    path.write_bytes(data)
    for _ in range(3):
        clip = read_clip(path, ClipConfig(frames=33, height=SIZE, width=SIZE))
        spectrum = np.abs(np.fft.rfft(clip.audio))
        assert abs(spectrum.argmax() * 48000 / len(clip.audio) - 440) < 2 and np.abs(clip.audio).max() > 0.2


@pytest.mark.parametrize(("kind", "part"), [("mp4", 0), ("mkv", 1), ("ts", 0), ("vob", 1), ("flv", 0), ("webm", 1)])
def test_mutants_are_right_or_refused(files, tmp_path, kind, part):
    """A few of each; the campaign beside this file makes as many as one likes."""
    out = tmp_path / f"m.{KINDS[kind].suffix}"
    found = [try_one(kind, name, files(kind), out, seed) for seed, name in enumerate(list(MUTATIONS)[part::2])]
    found = [finding for finding in found if finding is not None]
    assert [finding for finding in found if finding.outcome in ("wrong", "crashed")] == []
    assert len(found) > 5 and {finding.outcome for finding in found} >= {"right"}


@pytest.mark.parametrize(
    ("kind", "mutation", "seed"),
    [
        ("ogg, flac", "lost", 110_002_856),
        ("ogg, flac", "dropped", 110_001_928),
        ("mkv, ffv1", "spoilt", 110_001_113),
        ("mkv, ffv1", "huge", 110_004_071),
        ("mxf", "lost", 110_000_860),
        ("mxf", "truncated", 50_000_219),
        ("mp4, hevc", "moved_both", 110_000_034),
        ("ts, hevc", "moved", 110_002_419),
        ("ts, hevc", "moved", 120_001_730),
        ("ts, hevc", "moved", 5030),  # the first pictures' stamps
        ("ts, mpeg2", "moved", 1039),
        ("mkv", "moved", 310_000_105),
        ("mkv, ffv1", "spoilt", 5057),  # the first packet
        ("mkv, ffv1", "spoilt", 130_009_220),  # a key frame too
        ("mpg", "dropped", 1008),
        ("mpg", "dropped", 1026),
        ("mpg", "exchanged", 410_004_545),
        ("vob", "dropped", 310_003_548),
        ("avi, mjpeg", "joined_to_its_middle", 1001),
        ("avi", "lost", 310_004_924),
        ("avi", "zeroed", 310_005_677),
        ("gif", "inserted", 310_001_521),
        ("gif", "inserted", 1023),
        ("wmv, msmpeg4", "flipped", 410_002_907),
        ("wmv, msmpeg4", "moved_both", 120_001_455),
        ("ogg, vp8", "moved", 310_005_159),
        ("ogg, vp8", "dropped", 140_000_090),
        ("ogg, vp8", "zeroed", 10_000_830),  # a page that pictures of the clip refer to
    ],
)
def test_what_a_campaign_found_is_refused(files, tmp_path, kind, mutation, seed):
    finding = try_one(kind, mutation, files(kind), tmp_path / f"m.{KINDS[kind].suffix}", seed)
    assert finding.outcome == "refused", finding


@pytest.mark.parametrize("start", [0, 1.3])
@pytest.mark.parametrize(("tags", "by"), [(1, 15), (8, 15), (2, -10)])
def test_first_pictures_of_flv_off_the_grid_of_the_others_are_refused(files, tmp_path, tags, by, start):
    """Half a picture's time is no gap, and all of the clip would be that much too early or late."""
    data, place, own = bytearray(files("flv, flv1").read_bytes()), 13, []
    while place < len(data):
        own += [place] if data[place] == 9 else []
        place += int.from_bytes(data[place + 1 : place + 4]) + 15
    for place in own[:tags]:
        data[place + 4 : place + 7] = (int.from_bytes(data[place + 4 : place + 7]) + by).to_bytes(3)
    path = tmp_path / "moved.flv"
    path.write_bytes(data)
    with pytest.raises(MovaError, match=r"damaged video: the time of its first picture is .\d+ ms from"):
        read_clip(path, CLIP, start=start)


@pytest.mark.parametrize(
    ("kind", "mutation", "seed", "why"),
    [
        ("webm, vp9", "spoilt", 24, "neither libvpx-vp9 nor .webm has checksums"),
        ("ogg, vp8", "dropped", 10_000_986, "sound in Ogg is as sound that begins later"),
    ],
)
def test_harm_that_no_reader_can_detect(files, tmp_path, kind, mutation, seed, why):
    """As docs/data.md lists it: the decoders report no error, and no packet or frame is marked."""
    finding = try_one(kind, mutation, files(kind), tmp_path / f"m.{KINDS[kind].suffix}", seed)
    assert finding.outcome == "undetectable" and finding.said.endswith(why), finding


def test_sound_decoded_with_what_is_lost_is_silent(files, tmp_path):
    found = [try_one("wmv", "dropped", files("wmv"), tmp_path / "m.wmv", seed) for seed in (120_000_492, 710_002_190)]
    assert [finding.outcome for finding in found] == ["right"] * 2, found


def test_the_campaign_counts_what_no_reader_can_see_by_rules():
    assert "has checksums" in untold(KINDS["mov"], "noisy", Mutant(), "spoilt is picture 3")
    for kind, mutation, wrong in (
        ("mov", "moved", "spoilt is picture 3"),
        ("mov", "noisy", "picture 3 is number 9, 0.2 s late"),
        ("mkv, ffv1", "spoilt", "spoilt is picture 3"),
        ("vob", "noisy", "spoilt is the sound at 0.50 s"),
        ("mkv", "noisy", "spoilt is picture 3"),
        ("ogg, vp8", "noisy", "spoilt is the sound at 0.50 s"),
        ("ts", "moved", "the sound at 0.50 s is that of +0.100 s"),
    ):
        assert untold(KINDS[kind], mutation, Mutant(), wrong) is None
    edge = Mutant(untold="nothing follows")
    assert untold(KINDS["ts"], "moved", edge, "the sound at 0.50 s is that of +0.100 s") == "nothing follows"
    assert untold(KINDS["ts"], "moved", edge, "picture 3 is number 9, 0.2 s late") is None


def test_a_table_of_the_campaign(tmp_path, monkeypatch, capsys):
    found = [campaign.Finding("ts", "moved", 0, outcome, "why: because") for outcome in campaign.OUTCOMES]
    found.append(campaign.Finding("mov", "lost", 0, "right", ""))
    monkeypatch.setattr(campaign, "run", lambda *_: enumerate(found))
    monkeypatch.setattr("sys.argv", ["campaign", "--json", str(tmp_path / "counts.json")])
    assert campaign.main() == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kind", "inputs", *campaign.OUTCOMES] in rows and ["mov", "1", "1", "0", "0", "0", "0"] in rows
    assert ["ts", "5", *"11111"] in rows and ["total", "6", *"21111"] in rows and ["1", "because"] in rows
    said = json.loads((tmp_path / "counts.json").read_text())
    assert said["kind"]["total"] == {"inputs": 6, **dict.fromkeys(campaign.OUTCOMES, 1), "right": 2}
    assert [x["outcome"] for x in said["findings"]] == ["crashed", "undetectable", "wrong"]


def test_a_number_made_up_by_spoilt_blocks_is_none():
    pictures = np.stack([numbered(n) for n in range(8)])
    pictures[5] = np.where(numbered(9) > 125, 210, 40)
    assert read_numbers(pictures) == [0, 1, 2, 3, 4, None, 6, 7]
    # Where no picture has its grain, a codec has taken it.
    assert read_numbers(np.where(pictures > 125, 210, 40)) == [0, 1, 2, 3, 4, 9, 6, 7]


@pytest.mark.slow
def test_campaign(tmp_path):
    found = [x for _, x in run(tmp_path, 240, 0, list(KINDS), list(MUTATIONS), None)]
    assert len(found) > 100 and [x for x in found if x.outcome == "wrong"] == []
