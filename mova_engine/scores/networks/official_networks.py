"""Opens each official file of `weights_manifest`: the network with its weights on the CPU, or a refusal of one line."""

from pathlib import Path
from typing import TYPE_CHECKING

from mova_engine.errors import MovaError, require_package
from mova_engine.scores.networks.official_files import load_official, network_of_weights, read_weights

if TYPE_CHECKING:
    from torch import nn


def open_synchformer(path: Path) -> "nn.Module":
    """Synchformer's published state dict."""
    from mova_engine.scores.networks.synchformer import Synchformer

    return load_official(Synchformer, path)


def open_imagebind(path: Path) -> "nn.Module":
    """ImageBind's towers of pictures and of sound."""
    from mova_engine.scores.networks.imagebind import ImageBind, towers_of

    return network_of_weights(ImageBind, towers_of(read_weights(path)), path)


def open_clap(path: Path) -> "nn.Module":
    """LAION's CLAP with fusion."""
    from mova_engine.scores.networks.clap import DROPPED, Clap, ClapSizes

    return load_official(lambda: Clap(ClapSizes()), path, under="state_dict", prefix="module.", dropped=DROPPED)


def open_tokenizer(path: Path) -> Path:
    """RoBERTa's tokenizer's folder, after a try. MovaError where a file is missing or another one, and without the
    package that reads it.
    """
    from mova_engine.scores.clap_score import check_tokenizer

    require_package("transformers", "CLAP's tokenizer")
    for name in ("vocab.json", "merges.txt", "config.json"):
        if not (path / name).is_file():
            raise MovaError(f"{path} has no {name} of roberta-base's tokenizer")
    check_tokenizer(path)
    return path


def open_syncnet(path: Path) -> "nn.Module":
    """SyncNet v2."""
    from mova_engine.scores.networks.syncnet import SyncNet

    return load_official(SyncNet, path)


def open_s3fd(path: Path) -> "nn.Module":
    """The face detector of SyncNet's pipeline."""
    from mova_engine.scores.networks.s3fd import S3FD

    return load_official(S3FD, path)


def open_dover(path: Path) -> "nn.Module":
    """DOVER's two branches."""
    from mova_engine.scores.networks.dover import Dover

    return load_official(Dover, path, under="state_dict")


def open_audiobox(path: Path) -> object:
    """Audiobox-Aesthetics: the network and the scales of its ratings."""
    from mova_engine.scores.audiobox import load_audiobox

    return load_audiobox(path)


def open_eat(path: Path) -> "nn.Module":
    """EAT base, fine-tuned: as its authors released it for fairseq, or on Hugging Face."""
    from mova_engine.scores.networks.eat import EAT_BASE, Eat, named_by_fairseq

    weights = read_weights(path)
    held = weights.get("model", weights)
    return network_of_weights(lambda: Eat(EAT_BASE), named_by_fairseq(held), path)


def open_cnn14_16k(path: Path) -> "nn.Module":
    """PANNs' Cnn14 at 16 kHz."""
    from mova_engine.scores.networks.cnn14 import CNN14_16K, Cnn14

    return load_official(lambda: Cnn14(CNN14_16K), path, under="model")


def open_passt(path: Path) -> "nn.Module":
    """PaSST-S with patches 10 apart."""
    from mova_engine.scores.networks.passt import Passt

    return load_official(Passt, path, under="state_dict")


def open_vggish(path: Path) -> "nn.Module":
    """VGGish as torchvggish holds it."""
    from mova_engine.scores.networks.vggish import Vggish

    return load_official(Vggish, path)


def open_cnn14_32k(path: Path) -> "nn.Module":
    """PANNs' Cnn14 at 32 kHz."""
    from mova_engine.scores.networks.cnn14 import CNN14_32K, Cnn14

    return load_official(lambda: Cnn14(CNN14_32K), path, under="model")
