"""The model at its full size on a small machine: 32.66 billion parameters in NF4, streamed from the disk.

    python -m benchmarks.full_size write FOLDER
    python -m benchmarks.full_size run FOLDER --clips CLIPS --out benchmarks/results/full-size.json

`write` makes a folder of MOVA-360p's sizes with random weights, layer by layer (about 17 GB); words, pictures and sound
go through the embedded codecs, which have the released ones' shapes. `run` gives it to `mova sample` and `mova train`,
each in a process whose own memory is limited, and records time, memory and what came out; a second sampling run on a
folder of which one layer's bytes are changed must give another clip. CLIPS: a folder of clips, as `mova nano clips`
writes one.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.checkpoints.folder import write_mova
from mova_engine.checkpoints.quantised_files import open_component
from mova_engine.checkpoints.quantised_writing import ComponentWriter, quantisation_config
from mova_engine.codecs import build_audio_codec, build_video_codec
from mova_engine.config.model import COMPONENTS, MovaConfig, get_preset
from mova_engine.files.folders import replaced_folder
from mova_engine.files.results import write_result
from mova_engine.files.streamed import write_header
from mova_engine.files.tensors import stored_tensors
from mova_engine.memory.quantised import linear_names, quantisable
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import ABSMAX, NESTED_ABSMAX, NESTED_OFFSET, NF4, WEIGHT, Held
from mova_engine.ops import bind

GIGABYTE = 1 << 30
# About the deviation of trained weights, for inputs of 5,120 channels.
_SCALE = 0.024
# Bytes that the second sampling run has otherwise, in the middle of one layer's codes.
_CHANGED = 1 << 20
# 324 video tokens; long enough for the sound of the embedded clips.
_CLIP = ("--clip.frames", "33", "--clip.height", "96", "--clip.width", "96")


def full_size() -> MovaConfig:
    """MOVA-360p with the embedded codecs, whose latents and features have the same shapes."""
    return replace(get_preset("mova-360p"), video_codec="dct", audio_codec="mdct", text_encoder="bytes")


def write(folder: Path) -> None:
    """Write the folder: every tensor random, from a seed of its own, so that no two layers are alike."""
    mova = Mova(full_size(), bind(get_backend("cpu")), "meta", torch.bfloat16).requires_grad_(False)
    codecs = {"video_codec": build_video_codec("dct"), "audio_codec": build_audio_codec("mdct")}
    with replaced_folder(folder) as fresh:
        # The tensors' places alone: their bytes are a hole in the file, which takes no room.
        write_mova(mova, fresh, write=_write_hole, **codecs)
        for name in COMPONENTS:
            stored, module = open_component(fresh / name), getattr(mova, name)
            layers = {layer: module.get_submodule(layer) for layer in quantisable(module, NF4)}
            plain = [layer for layer in linear_names(module) if layer not in layers]
            started = time.monotonic()
            writer = ComponentWriter(
                stored,
                dict.fromkeys(layers, NF4),
                _random_codes(name, layers),
                lambda key, like, name=name: _random(f"{name}.{key}", like),
            )
            with replaced_folder(fresh / f"{name}.new") as new:
                writer.write(new, quantisation_config(NF4, plain))
            for file in (fresh / name).iterdir():
                file.unlink()
            (fresh / name).rmdir()
            (fresh / f"{name}.new").rename(fresh / name)
            sys.stdout.write(f"{name}: {writer.bytes / 1e9:.2f} GB in {time.monotonic() - started:.0f} s\n")
            sys.stdout.flush()


def _write_hole(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with open(path, "wb") as file:
        end = write_header(file, {name: (x.dtype, x.shape) for name, x in tensors.items()})
        file.truncate(end)


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little"))


def _random_codes(component: str, layers: Mapping[str, Any]) -> Callable[[str], Held]:
    """Random codes, and scales that give about the deviation of trained weights."""

    def held(layer: str) -> Held:
        generator = seeded(f"{component}.{layer}")
        specs = NF4.tensors(layers[layer].out_features, layers[layer].in_features)
        found: dict[str, Tensor] = {
            name: torch.randint(0, 256, specs[name][1], dtype=torch.uint8, generator=generator)
            for name in (WEIGHT, ABSMAX)
        }
        found[NESTED_ABSMAX] = torch.rand(specs[NESTED_ABSMAX][1], generator=generator) * _SCALE / 3
        found[NESTED_OFFSET] = torch.tensor(_SCALE)
        return found

    return held


def _random(name: str, like: Tensor) -> Tensor:
    values = torch.randn(like.shape, generator=seeded(name)) * 0.02
    is_norm = name.endswith(".weight") and "norm" in name
    return (values + 1 if is_norm else values).to(like.dtype)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the stored bytes of each layer of each component, and of all that is no layer."""
    found: dict[str, Any] = {}
    for component in COMPONENTS:
        tensors = stored_tensors(folder / component)
        for file in sorted({each.file for each in tensors.values()}):
            with safe_open(file, "pt") as opened:
                for name in sorted(opened.keys()):
                    digest = found.setdefault(_layer(component, name), hashlib.sha256())
                    digest.update(opened.get_tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {layer: digest.hexdigest() for layer, digest in found.items()}


def _layer(component: str, name: str) -> str:
    numbers = [i for i, word in enumerate(name.split(".")) if word.isdigit()]
    kept = name.split(".")[: numbers[0] + 1] if numbers and "embedding" not in name else ["rest"]
    return ".".join([component, *kept])


def limited(command: list[str], log: Path, limit: int) -> dict[str, float]:
    """Run a command in a control group whose memory is limited, page cache included, and watch it. Returns seconds,
    bytes at the peak (anonymous; of mapped files; of the whole group, with cached file pages) and bytes read from disk.
    """
    started, peaks = time.monotonic(), {"anonymous": 0, "mapped files": 0, "read from disk": 0}
    with open(log, "w") as out, control_group(limit) as group:
        child = subprocess.Popen(
            command, stdout=out, stderr=out, preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
        )
        while child.poll() is None:
            try:
                status = dict(line.split(":", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
                disk = dict(line.split(": ") for line in Path(f"/proc/{child.pid}/io").read_text().splitlines())
                for name, key in (("anonymous", "RssAnon"), ("mapped files", "RssFile")):
                    peaks[name] = max(peaks[name], int(status[key].split()[0]) * 1024)
                peaks["read from disk"] = max(peaks["read from disk"], int(disk["read_bytes"]))
            except (OSError, KeyError, ValueError):
                pass  # it has just ended
            time.sleep(0.2)
        found = [group / name for name in ("memory.peak", "memory.max_usage_in_bytes") if (group / name).exists()]
        peaks["group, with cached file pages"] = int(found[0].read_text())
    if child.returncode:
        raise SystemExit(f"{' '.join(command[2:5])} failed: {log}\n{log.read_text()[-2000:]}")
    return {"seconds": time.monotonic() - started, **peaks}


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A control group of at most `limit` bytes, whose processes are killed rather than given more."""
    root = Path("/sys/fs/cgroup")
    unified = (root / "cgroup.controllers").exists()
    group = (root if unified else root / "memory") / f"mova-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(limit))
    except OSError as error:
        raise SystemExit(f"limits take control groups, which this user cannot make here: {error}") from error
    try:
        yield group
    finally:
        group.rmdir()


@contextmanager
def changed(folder: Path) -> Iterator[str]:
    """Within the block, a megabyte of one layer's codes has other bytes. Yields the tensor's name."""
    component, name = "video_dit_2", "blocks.20.ffn.0.weight"
    found = stored_tensors(folder / component)[name]
    with open(found.file, "r+b") as file:
        header = int.from_bytes(file.read(8), "little")
        begin = json.loads(file.read(header))[name]["data_offsets"][0] + 8 + header
        file.seek(begin)
        kept = file.read(_CHANGED)
        try:
            file.seek(begin)
            file.write(bytes(byte ^ 0x77 for byte in kept))
            file.flush()
            yield f"{component}.{name}"
        finally:
            file.seek(begin)
            file.write(kept)


def run(folder: Path, clips: Path, out: Path, work: Path, limit: int) -> None:
    """Sample, sample with a changed layer, and train adapters for a step; write what was measured."""
    engine = [sys.executable, "-m"]
    common = [*_CLIP, "--device", "cpu", "--dtype", "bfloat16", "--memory.weights", "files"]

    def sample(name: str) -> tuple[dict[str, float], str]:
        command = [*engine, "mova_engine.inference", "--checkpoint", str(folder), "--out", str(work / name)]
        command += ["--prompt", "a ball bounces on a wooden floor", "--steps", "2", "--seed", "0", *common]
        measured = limited(command, work / f"{name}.log", limit)
        (made,) = (work / name).glob("*.mp4")
        return measured, hashlib.sha256(made.read_bytes()).hexdigest()

    work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    rows["sample"], clip = sample("sample")
    rows["sample again"], again = sample("again")
    with changed(folder) as name:
        rows["sample, a layer changed"], other = sample("changed")
    command = [*engine, "mova_engine.train", "--recipe", "lora", "--model.checkpoint", str(folder), "--steps", "1"]
    command += ["--data", str(clips), "--out", str(work / "lora"), "--global-batch-size", "1", "--loader.batch", "1"]
    command += ["--memory.checkpointing", "full", "--validation.every", "0", *common]
    rows["LoRA step"] = limited(command, work / "lora.log", limit)
    write_result(
        out,
        "full-size",
        circumstances(get_backend("cpu")),
        parameters=sum(p.numel() for p in Mova(full_size(), bind(get_backend("cpu")), "meta").parameters()),
        bytes=sum(path.stat().st_size for path in folder.rglob("*.safetensors")),
        limit_bytes=limit,
        clip=list(_CLIP),
        runs=rows,
        clips={"sample": clip, "sample again": again, f"{name} changed": other},
        layers=hashes(folder),
    )
    if clip != again or clip == other:
        raise SystemExit("two runs on the same weights differ, or one on other weights does not")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("write", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/full-size"))
    parser.add_argument("--gigabytes", type=float, default=8.0, help="limit of each process's own memory")
    args = parser.parse_args()
    if args.what == "write":
        write(args.folder)
    elif args.clips is None or args.out is None:
        parser.error("run needs --clips and --out")
    else:
        run(args.folder, args.clips, args.out, args.work, int(args.gigabytes * GIGABYTE))
