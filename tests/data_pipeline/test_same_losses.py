"""The same clips give the same losses to the bit, whether they lie in a folder, a manifest, one film or shards afar."""

import json
from pathlib import Path

import av
import numpy as np
import one_layer
import pytest
from data_pipeline.fault_server import FaultServer, write_shard
from data_pipeline.test_manifests import write_csv, write_parquet
from rich.console import Console

from mova_engine.config.model import PRESETS, get_preset
from mova_engine.config.recipes import load_config
from mova_engine.data.media.decode import read_clip
from mova_engine.data.metadata import read_metadata
from mova_engine.data.shard_index import write_index
from mova_engine.data.synthetic.bounce import generate
from mova_engine.files import byte_ranges
from mova_engine.train.metrics import read_metrics
from mova_engine.train.trainer import Trainer

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.long
COUNT = 5
STRICT = {"on_bad_clip": "stop"}


def write_film(path: Path, pictures: np.ndarray, sound: np.ndarray) -> None:
    """FFV1 and PCM at 24 pictures and 48,000 samples a second, each picture and packet stamped with its own time."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", 24)
        video.height, video.width, video.pix_fmt = *pictures.shape[1:3], "bgr0"
        audio = container.add_stream("pcm_s16le", 48000, layout="mono")
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="bgr0")
            frame.pts = number
            container.mux(video.encode(frame))
            heard = av.AudioFrame.from_ndarray(sound[None, 2000 * number : 2000 * (number + 1)].copy(), "s16", "mono")
            heard.sample_rate, heard.pts = 48000, 2000 * number
            container.mux(audio.encode(heard))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def scenes(folder: Path, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures uint8 [36, h, w, 3] and sounds int16 [72000] of clips that are written to a folder. 36 pictures are
    1.5 s, so that in a film of them each clip begins at a whole picture and sample.
    """
    generate(folder, count, seed=3)
    pictures, sounds = [], []
    for entry in read_metadata(folder):
        clip = read_clip(entry.path, get_preset("nano").clip)
        pictures.append(np.concatenate([clip.pictures, np.repeat(clip.pictures[-1:], 3, axis=0)]))
        sound = np.zeros(72_000, np.int16)
        heard = np.round(clip.audio * 32767).astype(np.int16)[:72_000]
        sound[: len(heard)] = heard
        sounds.append(sound)
    return pictures, sounds


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """The same clips in four ways: one folder of files, one film with starts; and the clips' captions."""
    root = tmp_path_factory.mktemp("clips")
    pictures, sounds = scenes(root / "bounce", COUNT)
    (root / "cut").mkdir()
    rows = []
    for number in range(COUNT):
        # Beyond the clip's end a file holds what the film does: it reaches the last latent of sound.
        after = [number, (number + 1) % COUNT] if number + 1 < COUNT else [number]
        name, caption = f"{number}.mkv", f"ball number {number}"
        write_film(
            root / "cut" / name,
            np.concatenate([pictures[k] for k in after]),
            np.concatenate([sounds[k] for k in after]),
        )
        rows.append({"video_path": name, "caption": caption, "id": str(number)})
    (root / "cut" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_film(root / "film.mkv", np.concatenate(pictures), np.concatenate(sounds))
    return root, rows


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(PRESETS, "nano", one_layer.nano())
    for name, value in (("FIRST_WAIT_S", 0.01), ("LONGEST_WAIT_S", 0.05), ("SILENCE_S", 2.0)):
        monkeypatch.setattr(byte_ranges, name, value)


def losses(data: Path, out: Path, **loader) -> list[dict]:
    config = load_config(
        "nano",
        data=data,
        out=out,
        steps=6,
        device="cpu",
        loader={
            "batch": 2,
            "num_fit_clips": 4,
            "cache": out.with_name(f"{out.name}-cache"),
            "on_bad_clip": "stop",
            **loader,
        },
        validation={"every": 0},
        optim={"warmup": 2},
        log={"every": 1, "tensorboard": False},
    )
    assert Trainer(config, Console(quiet=True)).run() == 0
    keys = ("step", "loss", "video", "audio", "grad_norm")
    rows = [{key: row[key] for key in keys if key in row} for row in read_metrics(out / "metrics.jsonl")]
    assert len(rows) == 6 and all(len(row) >= 3 for row in rows)
    return rows


def test_folder_manifest_film_and_shards_give_the_same_losses(placed, tmp_path):
    root, rows = placed
    folder = losses(root / "cut", tmp_path / "folder")
    assert len({row["loss"] for row in folder}) == 6
    manifest = write_csv(root / "cut" / "clips.csv", rows)
    assert losses(manifest, tmp_path / "manifest") == folder
    virtual = [{**row, "video_path": "film.mkv", "start": 1.5 * number} for number, row in enumerate(rows)]
    film = write_parquet(root / "film.parquet", virtual)
    assert losses(film, tmp_path / "film") == folder
    parts = {"a": rows[:2], "b": rows[2:]}
    for name, some in parts.items():
        members = {}
        for row in some:
            told = json.dumps({"caption": row["caption"], "id": row["id"]}).encode()
            members |= {row["video_path"]: root / "cut" / row["video_path"], f"{row['id']}.json": told}
        write_shard(root / "shards" / f"{name}.tar", members)
    with FaultServer(root / "shards").running() as server:
        addresses = [f"{server.url}/{name}.tar" for name in parts]
        write_index(addresses, root / "shards" / "clips.parquet", say=lambda _: None)
        for name in parts:
            server.faults[f"{name}.tar"] = [503, "short", "whole", "wrong"]
        assert losses(root / "shards" / "clips.parquet", tmp_path / "shards") == folder
        online = losses(root / "shards" / "clips.parquet", tmp_path / "online", encode="online", workers=1)
        assert online == folder
        assert server.asked["a.tar"] > 8 and not any(server.faults.values())
