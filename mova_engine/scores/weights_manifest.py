"""The files of weights that scores read: what they are called, who may use them, and what opens them. Data alone.

`open` is "module:function": from the path to what the score's function is given. It refuses a file with other names or
shapes by a MovaError, and reads no more of it than these need where the file's format allows that.
"""

from dataclasses import dataclass

_HERE = "mova_engine.scores.networks.official_networks"


@dataclass(frozen=True)
class WeightsFile:
    """files: accepted names, the official one first; one that ends in "/" is a folder. sha256: of official files, none
    where no hash is on record. size: bytes of the first, None where not known. commercial: whether the licence allows
    commercial use; None where its authors state none. beside: a file beside a .safetensors of it that the numbers
    depend on too.
    """

    name: str
    files: tuple[str, ...]
    open: str
    about: str
    licence: str
    commercial: bool | None
    source: str
    sha256: tuple[str, ...] = ()
    size: int | None = None
    beside: str = ""

    def published(self, digest: str) -> bool | None:
        """Whether a digest of `WeightsFolder` is the published file's; None where no hash is on record."""
        return digest.partition("+")[0] in self.sha256 if self.sha256 else None


WEIGHTS = {
    each.name: each
    for each in (
        WeightsFile(
            "synchformer",
            ("synchformer_state_dict.pth", "synchformer_state_dict.safetensors"),
            f"{_HERE}:open_synchformer",
            "Synchformer, AudioSet",
            "MIT",
            True,
            "hkchengrex/MMAudio, release v0.1 on GitHub",
            sha256=("8aff082f2df5c3bc52759db0c865c7ee772ae6400b860d1b7e90413f2defb67c",),
            size=950058171,
        ),
        WeightsFile(
            "imagebind",
            ("imagebind_huge.pth", "imagebind_huge.safetensors"),
            f"{_HERE}:open_imagebind",
            "ImageBind huge",
            "CC BY-NC-SA 4.0",
            False,
            "facebookresearch/ImageBind, dl.fbaipublicfiles.com/imagebind",
            sha256=("d6f6c22bedcc90708448d5d2fbb7b2db9c73f505dc89bd0b2e09b23af1b62157",),
            size=4803584173,
        ),
        WeightsFile(
            "clap",
            ("630k-audioset-fusion-best.pt", "630k-audioset-fusion-best.safetensors"),
            f"{_HERE}:open_clap",
            "LAION CLAP, HTS-AT with fusion and RoBERTa",
            "CC0 1.0",
            True,
            "lukewys/laion_clap on Hugging Face",
        ),
        WeightsFile(
            "roberta-base",
            ("roberta-base/",),
            f"{_HERE}:open_tokenizer",
            "RoBERTa's tokenizer for CLAP: vocab.json, merges.txt, config.json",
            "MIT",
            True,
            "FacebookAI/roberta-base on Hugging Face",
        ),
        WeightsFile(
            "syncnet",
            ("syncnet_v2.model", "syncnet_v2.safetensors"),
            f"{_HERE}:open_syncnet",
            "SyncNet v2",
            "not stated for the weights (the code is MIT)",
            None,
            "joonson/syncnet_python, robots.ox.ac.uk/~vgg/software/lipsync",
            sha256=("961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",),
            size=54573114,
        ),
        WeightsFile(
            "s3fd",
            ("sfd_face.pth", "sfd_face.safetensors"),
            f"{_HERE}:open_s3fd",
            "S3FD, finds faces for SyncNet",
            "not stated for the weights (the code is MIT)",
            None,
            "joonson/syncnet_python, robots.ox.ac.uk/~vgg/software/lipsync",
            sha256=("d54a87c2b7543b64729c9a25eafd188da15fd3f6e02f0ecec76ae1b30d86c491",),
            size=89844381,
        ),
        WeightsFile(
            "dover",
            ("DOVER.pth", "DOVER.safetensors"),
            f"{_HERE}:open_dover",
            "DOVER",
            "S-Lab License 1.0 (not commercial)",
            False,
            "VQAssessment/DOVER, release v0.1.0 on GitHub",
        ),
        WeightsFile(
            "audiobox",
            ("audiobox-aesthetics/model.safetensors", "audiobox-aesthetics/checkpoint.pt", "checkpoint.pt"),
            f"{_HERE}:open_audiobox",
            "Audiobox-Aesthetics, WavLM (a model.safetensors needs its config.json beside it)",
            "CC BY 4.0",
            True,
            "facebook/audiobox-aesthetics on Hugging Face",
            sha256=("a5a3c2412649cc2384ec525ffd5180ce6c4778f43bed6108e0a1303de04d014e",),
            size=415472992,
            beside="config.json",
        ),
        WeightsFile(
            "eat",
            (
                "EAT-base_epoch30_finetune_AS2M/model.safetensors",
                "EAT-base_epoch30_finetune_AS2M.safetensors",
                "EAT-base_epoch30_finetune_AS2M.pt",
            ),
            f"{_HERE}:open_eat",
            "EAT base, fine-tuned on AudioSet",
            "MIT",
            True,
            "worstchan/EAT-base_epoch30_finetune_AS2M on Hugging Face",
        ),
        WeightsFile(
            "cnn14-16k",
            ("Cnn14_16k_mAP=0.438.pth", "Cnn14_16k_mAP=0.438.safetensors"),
            f"{_HERE}:open_cnn14_16k",
            "PANNs Cnn14 at 16 kHz",
            "CC BY 4.0",
            True,
            "Zenodo record 3987831",
            sha256=("e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6",),
        ),
        WeightsFile(
            "cnn14-32k",
            ("Cnn14_mAP=0.431.pth", "Cnn14_mAP=0.431.safetensors"),
            f"{_HERE}:open_cnn14_32k",
            "PANNs Cnn14 at 32 kHz",
            "CC BY 4.0",
            True,
            "Zenodo record 3987831",
            sha256=("0dc499e40e9761ef5ea061ffc77697697f277f6a960894903df3ada000e34b31",),
            size=327428481,
        ),
        WeightsFile(
            "passt",
            ("passt-s-f128-p16-s10-ap.476-swa.pt", "passt-s-f128-p16-s10-ap.476-swa.safetensors"),
            f"{_HERE}:open_passt",
            "PaSST-S, AudioSet",
            "Apache 2.0",
            True,
            "kkoutini/PaSST, release v0.0.1-audioset on GitHub",
        ),
        WeightsFile(
            "vggish",
            ("vggish-10086976.pth", "vggish-10086976.safetensors"),
            f"{_HERE}:open_vggish",
            "VGGish",
            "Apache 2.0",
            True,
            "harritaylor/torchvggish, release v0.1 on GitHub",
        ),
    )
}
