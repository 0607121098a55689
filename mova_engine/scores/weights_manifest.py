"""The files of weights that scores read: what they are called, who may use them, and what opens them. Data alone.

`open` is "module:function": from the path to what the score's function is given. It refuses a file with other names or
shapes by a MovaError, and reads no more of it than these need where the file's format allows that.
"""

from dataclasses import dataclass

_HERE = "mova_engine.scores.networks.official_networks"


@dataclass(frozen=True)
class WeightsFile:
    """files: accepted names, the official one first; one that ends in "/" is a folder. sha256: of that official file,
    None where no hash is on record. size: its bytes, None where not known. commercial: whether its licence allows
    commercial use; None where its authors state none.
    """

    name: str
    files: tuple[str, ...]
    open: str
    about: str
    licence: str
    commercial: bool | None
    source: str
    sha256: str | None = None
    size: int | None = None


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
        ),
        WeightsFile(
            "imagebind",
            ("imagebind_huge.pth", "imagebind_huge.safetensors"),
            f"{_HERE}:open_imagebind",
            "ImageBind huge",
            "CC BY-NC-SA 4.0",
            False,
            "facebookresearch/ImageBind, dl.fbaipublicfiles.com/imagebind",
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
        ),
        WeightsFile(
            "s3fd",
            ("sfd_face.pth", "sfd_face.safetensors"),
            f"{_HERE}:open_s3fd",
            "S3FD, finds faces for SyncNet",
            "not stated for the weights (the code is MIT)",
            None,
            "joonson/syncnet_python, robots.ox.ac.uk/~vgg/software/lipsync",
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
            ("checkpoint.pt", "audiobox-aesthetics/model.safetensors", "audiobox-aesthetics/checkpoint.pt"),
            f"{_HERE}:open_audiobox",
            "Audiobox-Aesthetics, WavLM (a model.safetensors needs its config.json beside it)",
            "CC BY 4.0",
            True,
            "facebook/audiobox-aesthetics on Hugging Face",
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
        ),
        WeightsFile(
            "cnn14-32k",
            ("Cnn14_mAP=0.431.pth", "Cnn14_mAP=0.431.safetensors"),
            f"{_HERE}:open_cnn14_32k",
            "PANNs Cnn14 at 32 kHz",
            "CC BY 4.0",
            True,
            "Zenodo record 3987831",
        ),
    )
}
