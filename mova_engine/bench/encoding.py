"""Measures what encoding costs a training step when several processes share a clip, by who encodes it.

    each     every process encodes every clip, as the published reference does
    one      one process encodes a clip when it is needed, the others wait for it
    rounds   each of N processes encodes a different one of the next N clips, at the same time, as the trainer does
    nobody   latents are in memory: the cost of the step itself

Gloo processes on this machine run optimizer steps with online encoding, the schemes in turns. The video encoder has the
released one's architecture (diffusers' AutoencoderKLWan) with random weights and `--codec-width` channels, because the
embedded codec costs next to nothing.
"""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from mova_engine.backend import Backend, get_backend
from mova_engine.bench.settings import EncodingConfig
from mova_engine.bench.timing import LEAST, Timing, interleave, median_ratio, stopwatch
from mova_engine.checkpoints.folder import Codecs
from mova_engine.codecs import build_audio_codec, build_text_encoder
from mova_engine.codecs.interface import optional
from mova_engine.codecs.wan import WanVideoCodec
from mova_engine.config.mesh import choose_mesh
from mova_engine.config.model import MovaConfig, get_preset
from mova_engine.config.recipes import load_config
from mova_engine.data.dataset import open_dataset
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.loader import Loader, build_loader
from mova_engine.data.synthetic.bounce import generate
from mova_engine.distributed.processes import Processes, read_launch, start_processes
from mova_engine.distributed.rounds import Rounds
from mova_engine.errors import MovaError
from mova_engine.ops import bind
from mova_engine.train.batch import BatchBuilder
from mova_engine.train.masters import Weights
from mova_engine.train.model_setup import build_model
from mova_engine.train.optimizer import build_optimizer
from mova_engine.train.step import Updater

SCHEMES = ("each", "one", "rounds", "nobody")
# Codec calls for a clip: the video, and its first-frame condition.
_CALLS = 2


def run(settings: EncodingConfig, backend: Backend, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A row for each number of processes."""
    if backend.name != "cpu" or dtype != torch.float32:
        raise MovaError("encode compares processes on the CPU in float32: leave --device and --dtype out")
    if min(settings.processes) < 2 or settings.codec_width < 1:
        raise MovaError("--processes takes numbers of at least 2, --codec-width one of at least 1")
    torch.set_num_threads(settings.threads or 1)
    optional("diffusers", "AutoencoderKLWan", "the benchmark of encoding")
    get_preset(settings.model)
    return [_measure(size, settings) for size in settings.processes]


def _measure(size: int, settings: EncodingConfig) -> dict[str, Any]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    options = {"model": settings.model, "width": settings.codec_width, "pairs": settings.pairs}
    with TemporaryDirectory() as folder:
        generate(Path(folder) / "clips", size, seed=0)
        arguments = (size, port, torch.get_num_threads(), Path(folder), options, results)
        torch.multiprocessing.spawn(_as_rank, arguments, nprocs=size)
        times, calls = results.get()
    model = get_preset(settings.model)
    row = {
        "job": "encode",
        "processes": size,
        "model": settings.model,
        "video_tokens": model.clip.video_tokens,
        "codec_width": settings.codec_width,
        "steps_per_run": size,
        "schemes": {},
        "ratios": {name: vars(median_ratio(times[name], times["rounds"])) for name in ("each", "one", "nobody")},
    }
    print(f"{size} processes, {settings.model}, seconds per step of one clip")
    for name in SCHEMES:
        timing, encodes = Timing.of(times[name]), calls[name] / (_CALLS * size)
        row["schemes"][name] = {
            "encodes_per_clip": encodes,
            "median_s": timing.median,
            "fastest_s": timing.fastest,
            "slowest_s": timing.slowest,
            "runs": timing.runs,
        }
        ratio = row["ratios"].get(name)
        beside = f", rounds {ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}] as fast" if ratio else ""
        print(f"  {name:8} {timing.median:8.3f} s, {encodes:g} encodes of a clip by the group{beside}", flush=True)
    return row


class _ByOne(Rounds):
    """The first rank makes all batches, each when it is needed."""

    def own(self, batches: Iterator[Any]) -> Iterator[Any]:
        return batches

    def shared(self, made: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        while True:
            yield self.broadcast(None if self.rank else next(made), 0)


def _as_rank(rank: int, size: int, port: int, threads: int, folder: Path, settings: dict, results: Any) -> None:
    torch.set_num_threads(threads)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    bench = _Bench(folder, settings["model"], settings["width"])
    backend = get_backend("cpu")
    runs = {name: stopwatch(bench.runner(name), backend) for name in SCHEMES}
    bench.check()
    times = interleave(runs, rounds=settings["pairs"])
    done = max(settings["pairs"], LEAST) + 1
    calls = [torch.tensor([bench.calls[name] for name in SCHEMES])]
    bench.processes.world_group.all_reduce(calls[0])
    if not rank:
        seconds = {name: [t / size for t in times[name]] for name in SCHEMES}
        results.put((seconds, {n: c / done for n, c in zip(SCHEMES, calls[0].tolist(), strict=True)}))
    dist.destroy_process_group()


class _Bench:
    """One rank: a model that is trained on clips that are encoded by one of the schemes."""

    def __init__(self, folder: Path, model: str, width: int) -> None:
        self.folder, self.config = folder, load_config("nano", model={"preset": model}, loader={"batch": 1})
        sizes, backend, launch = get_preset(model), get_backend("cpu"), read_launch()
        shape = choose_mesh(launch.world, sizes.video.num_heads, context_parallel=launch.world)
        self.processes: Processes = start_processes(backend, launch, shape)
        ops = self.processes.operators(bind(backend))
        self.codecs, self.sizes = _codecs(sizes, width), sizes
        self.scheme = ""
        self.calls: dict[str, int] = dict.fromkeys(SCHEMES, 0)
        video = self.codecs.video
        assert isinstance(video, WanVideoCodec), "made by _codecs"
        encode = video.encode

        def counted(video: torch.Tensor) -> torch.Tensor:
            self.calls[self.scheme] += 1
            return encode(video)

        video.encode = counted
        mova, _ = build_model(self.config, sizes, ops, backend.device(), self.processes, fill=True)
        weights = Weights(mova, torch.float32)
        optimizer = build_optimizer(weights.masters, self.config.optim, ops)
        self.updater = Updater(self.config, mova, weights, optimizer, ops, self.processes)
        _, _, text_encoder = self.codecs.encoders()
        self.build = BatchBuilder(text_encoder.encode([""])[0], backend.device(), audio_only=False)
        self.memory = self.loader("nobody", folder / f"memory-{launch.rank}", preload=True)
        self.calls["nobody"] = 0
        self.step = 0

    def loader(self, scheme: str, cache: Path, preload: bool = False) -> Loader:
        """A loader by a scheme, with a cache of this rank; calls of the encoder are counted for the scheme."""
        clips = LatentCache(cache, self.sizes.clip, *self.codecs.encoders())
        self.scheme = scheme
        data = open_dataset(self.folder / "clips", clips, preload=preload, ahead=False)
        shared = self.processes.rounds
        assert shared is not None, "several processes share each clip"
        rounds = {"one": _ByOne(shared.group), "rounds": shared}.get(scheme)
        return build_loader(data, 1, rounds=rounds)

    def runner(self, scheme: str) -> Callable[[], None]:
        """A function that runs as many steps as there are processes, on clips that are not encoded yet."""

        def run() -> None:
            self.processes.wait_for_first()
            with _Batches(self, scheme) as batches:
                for _ in range(self.processes.launch.world):
                    self.updater.step(self.step, self.updater.prepared(self.step, batches, self.build))
                    self.step += 1
            self.processes.wait_for_first()

        return run

    def check(self) -> None:
        """Raise MovaError unless every scheme gives this rank bit-identical clips."""
        expected = None
        for scheme in SCHEMES:
            with _Batches(self, scheme) as batches:
                found = [next(batches) for _ in range(self.processes.launch.world)]
            expected = expected or found
            for ours, first in zip(found, expected, strict=True):
                same = all(torch.equal(x, first[k]) if isinstance(x, torch.Tensor) else True for k, x in ours.items())
                if ours["id"] != first["id"] or not same:
                    raise MovaError(f"encode '{scheme}' gives other batches than '{SCHEMES[0]}': no speed is reported")
        self.calls = dict.fromkeys(SCHEMES, 0)


class _Batches:
    """A with-block with the batches of a new loader, whose cache is a new folder: no clip is encoded yet."""

    def __init__(self, bench: _Bench, scheme: str) -> None:
        self.bench, self.scheme, self.folder = bench, scheme, TemporaryDirectory()

    def __enter__(self) -> Iterator[dict[str, Any]]:
        if self.scheme == "nobody":
            self.bench.scheme = "nobody"
            self.bench.memory.load_state_dict(self.bench.memory.state_dict() | {"position": 0})
            return iter(self.bench.memory)
        return iter(self.bench.loader(self.scheme, Path(self.folder.name)))

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()


def _codecs(sizes: MovaConfig, width: int) -> Codecs:
    wan = optional("diffusers", "AutoencoderKLWan", "the benchmark of encoding")
    torch.manual_seed(0)
    return Codecs(
        WanVideoCodec(wan(base_dim=width)),
        build_audio_codec("mdct"),
        build_text_encoder("bytes", tokens=sizes.text_tokens, dim=sizes.video.text_dim),
    )
