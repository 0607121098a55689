"""The released models' text encoder at its full size on a small machine: UMT5-XXL's 5.68 billion parameters in
bfloat16, streamed from the disk block by block.

    python -m benchmarks.full_size_text FOLDER --out benchmarks/results/full-size-text.json

Writes the encoder with random weights (11.4 GB) and a tokenizer of a few words to FOLDER, if it is not there, and
encodes a prompt with it in a process whose own memory is limited.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.full_size import GIGABYTE, limited, seeded
from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.codecs import build_text_encoder
from mova_engine.codecs.umt5 import Umt5TextEncoder
from mova_engine.files.folders import replaced_folder
from mova_engine.files.results import write_result
from mova_engine.files.streamed import write_streamed
from mova_engine.memory.residency import Residency
from mova_engine.memory.streamed_encoder import open_streamed_encoder

TOKENS, WIDTH = 512, 4096
# As google/umt5-xxl says of itself.
SIZES = {"vocab_size": 256384, "d_model": WIDTH, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
WORDS = ("<pad>", "</s>", "<unk>", "a", "ball", "bounces", "on", "wooden", "floor")


def write(folder: Path) -> None:
    """Write encoder and tokenizer as transformers does; every tensor is random, from a seed of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    config = UMT5Config(**SIZES, feed_forward_proj="gated-gelu", architectures=["UMT5EncoderModel"])
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config).to(torch.bfloat16)
    tensors = {name: (x.dtype, x.shape) for name, x in encoder.named_parameters()}

    def make(name: str) -> Tensor:
        shape = tensors[name][1]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return (torch.randn(shape, generator=seeded(name)) * shape[-1] ** -0.5).to(torch.bfloat16)

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with replaced_folder(folder) as fresh:
        (fresh / "text_encoder").mkdir()
        config.save_pretrained(fresh / "text_encoder")
        write_streamed(fresh / "text_encoder" / "model.safetensors", tensors, make)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )
        tokenizer.save_pretrained(fresh / "tokenizer")


def encode(folder: Path, prompt: str) -> None:
    """Encode a prompt with the streamed encoder; print the features' hash and the seconds it took."""
    device = torch.device("cpu")
    codec = build_text_encoder("umt5", folder, tokens=TOKENS, dim=WIDTH, device="meta")
    assert isinstance(codec, Umt5TextEncoder)
    part = open_streamed_encoder(codec, folder, device, torch.bfloat16)
    Residency(device, [part])
    assert part.read is not None
    part.read(device)
    started = time.monotonic()
    features = codec.encode([prompt])
    assert bool(features.isfinite().all()) and features.shape == (1, TOKENS, WIDTH)
    digest = hashlib.sha256(features.view(torch.uint8).numpy().data).hexdigest()
    sys.stdout.write(f"{digest} {time.monotonic() - started:.1f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--encode", metavar="PROMPT", help="encode in this process")
    parser.add_argument("--work", type=Path, default=Path("runs/full-size"))
    parser.add_argument("--gigabytes", type=float, default=8.0, help="limit of the process's own memory")
    args = parser.parse_args()
    if args.encode is not None:
        encode(args.folder, args.encode)
        return
    if args.out is None:
        parser.error("--out is needed")
    if not args.folder.exists():
        write(args.folder)
    args.work.mkdir(parents=True, exist_ok=True)
    limit, rows, found = int(args.gigabytes * GIGABYTE), {}, {}
    for name, prompt in (("a prompt", "a ball bounces"), ("again", "a ball bounces"), ("another", "a wooden floor")):
        log = args.work / f"text {name}.log"
        command = [sys.executable, "-m", "benchmarks.full_size_text", str(args.folder), "--encode", prompt]
        measured: dict[str, Any] = limited(command, log, limit)
        found[name], seconds = log.read_text().split()[-2:]
        rows[name] = {**measured, "seconds of encoding": float(seconds)}
    size = sum(path.stat().st_size for path in args.folder.rglob("*.safetensors"))
    write_result(
        args.out,
        "full-size-text",
        circumstances(get_backend("cpu")),
        bytes=size,
        limit_bytes=limit,
        runs=rows,
        features=found,
    )
    if found["a prompt"] != found["again"] or found["a prompt"] == found["another"]:
        raise SystemExit("the same prompt gives other features, or another one the same")


if __name__ == "__main__":
    main()
