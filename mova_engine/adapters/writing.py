"""Writes adapters: from the neutral form to a file or folder of a dialect. They appear whole or not at all."""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mova_engine.adapters.dialect import Content, Dialect
from mova_engine.adapters.dialects import get_dialect
from mova_engine.adapters.form import Adapter, LowRank
from mova_engine.adapters.reading import read_adapter
from mova_engine.errors import MovaError, counted
from mova_engine.files.atomic import write_atomic
from mova_engine.files.folders import check_replaceable, replaced_folder, write_error
from mova_engine.files.tensors import write_new_file, write_tensors

_JSON = ".json"


class WrittenAdapter(NamedTuple):
    """What was written. layers: number of layers and parameters in the file or folder. notes: what the dialect cannot
    hold or holds in another way, a line each.
    """

    layers: int
    notes: list[str]


def write_adapter(adapter: Adapter, out: str | Path, dialect: str) -> WrittenAdapter:
    """Write what `dialect` can hold of an adapter.

    out: a file where the dialect has one, else a folder; not there yet, or an empty folder. Raises MovaError where it
    is, where nothing of the adapter can be held, and when writing fails; then nothing is written.
    """
    known, out = get_dialect(dialect), Path(out)
    held, notes = held_by(adapter, known)
    contents, written = known.write(held), WrittenAdapter(len(held.names), notes)
    if out.suffix:
        if len(contents) > 1:
            names = ", ".join(contents)
            raise MovaError(f"{dialect} has {len(contents)} files, {names}: give a folder's name, --out {out.stem}")
        _write_file(out, next(iter(contents.values())))
        return written
    if "" in contents:
        raise MovaError(f"{dialect} has one file: give its name, --out {out}{_suffix(contents[''])}")
    check_replaceable(out)
    with replaced_folder(out) as fresh:
        for name, content in contents.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            if content.values is None:
                write_tensors(fresh / name, content.tensors, content.metadata)
            else:
                (fresh / name).write_bytes(_bytes(name, content))
    return written


def export_adapter(source: str | Path, folder: Path, dialect: str) -> tuple[Path, WrittenAdapter]:
    """Write adapters of any dialect into `folder`, as a file or folder with the dialect's name, and return where.

    Raises MovaError as `read_adapter` and `write_adapter` do, also where something of that name is there already.
    """
    adapter, known = read_adapter(source), get_dialect(dialect)
    contents = known.write(held_by(adapter, known)[0])
    out = folder / (f"{dialect}{_suffix(contents[''])}" if "" in contents else dialect)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    return out, write_adapter(adapter, out, dialect)


def held_by(adapter: Adapter, dialect: Dialect) -> tuple[Adapter, list[str]]:
    """The part of an adapter that a dialect can hold, and notes on what it cannot hold, or only in a changed form."""
    reasons = {name: dialect.holds_part(name, adapter) for name in adapter.names}
    lost = Counter(reason for reason in reasons.values() if reason is not None)
    notes = [f"not held by {dialect.name}: {reason}, {counted(count, 'layer')}" for reason, count in lost.items()]
    layers = {name: pair for name, pair in adapter.layers.items() if reasons[name] is None}
    deltas = {name: delta for name, delta in adapter.deltas.items() if reasons[name] is None}
    if not layers and not deltas:
        raise MovaError(f"nothing of the adapter can be written: {'; '.join(notes) or 'it is empty'}")
    if dialect.one_scale:
        layers, changed = one_scale(layers)
        notes += [f"{dialect.name} has one rank and alpha for all layers: {changed}"] * bool(changed)
    changed = [name for name, pair in layers.items() if pair.alpha != pair.rank]
    if changed and not dialect.has_alpha:
        layers = {name: _padded(pair, pair.rank) if name in changed else pair for name, pair in layers.items()}
        notes.append(f"{dialect.name} has no alpha: B holds alpha / rank of {counted(len(changed), 'layer')}")
    return replace(adapter, layers=layers, deltas=deltas), notes


def one_scale(layers: dict[str, LowRank]) -> tuple[dict[str, LowRank], str]:
    """The same updates with one rank and alpha, and a note on what was changed for it. Ranks are padded with zeros; B
    is multiplied by alpha / rank, and becomes float32 where its dtype would round that.
    """
    if len({(pair.rank, pair.alpha) for pair in layers.values()}) <= 1:
        return layers, ""
    rank = max(pair.rank for pair in layers.values())
    return {name: _padded(pair, rank) for name, pair in layers.items()}, (
        f"ranks are filled up to {rank} with zeros, alpha is {rank}, and B holds the rest"
    )


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """factor * tensor, in the tensor's dtype if that is exact, else in float32."""
    product = tensor.double() * factor
    narrow = product.to(tensor.dtype)
    return narrow if torch.equal(narrow.double(), product) else product.float()


def _padded(pair: LowRank, rank: int) -> LowRank:
    a = pair.a.new_zeros(rank, *pair.a.shape[1:])
    a[: pair.rank] = pair.a
    b = scaled(pair.b, pair.scale)
    wide = b.new_zeros(b.shape[0], rank, *b.shape[2:])
    wide[:, : pair.rank] = b
    return LowRank(a, wide, float(rank), pair.magnitude)


def _write_file(path: Path, content: Content) -> None:
    wanted = _suffix(content)
    if path.suffix != wanted:
        raise MovaError(f"{path}: this dialect's files end in {wanted}")
    if content.values is None:
        write_new_file(path, content.tensors, content.metadata)
        return
    if path.exists():
        raise MovaError(f"{path} exists and is not replaced: give another name, or remove it")
    write_atomic(path, _bytes(path.name, content))


def _suffix(content: Content) -> str:
    return ".safetensors" if content.values is None else ".pt"


def _bytes(name: str, content: Content) -> bytes:
    if name.endswith(_JSON):
        return (json.dumps(content.values, indent=2, sort_keys=True) + "\n").encode()
    file = io.BytesIO()
    torch.save(content.values, file)
    return file.getvalue()
