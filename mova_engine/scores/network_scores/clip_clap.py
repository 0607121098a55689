"""CLAP's score of a clip's sound and its prompt, and of one clip's sound with another's prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mova_engine.scores import clap_score
from mova_engine.scores.clap_score import PUBLISHED_RATE, ClapConvention
from mova_engine.scores.decoded_clip import DecodedClip, Floats, Measured
from mova_engine.scores.network_scores.clip_tags import averaged_stereo_of
from mova_engine.scores.network_scores.clip_views import device_of
from mova_engine.scores.networks.clap import Clap


def clip_clap(clip: DecodedClip, opened: Mapping[str, Any], convention: ClapConvention, *, prompt: str) -> Measured:
    """The cosine of sound and prompt; both embeddings are the evidence. MovaError for silence.

    opened: the network as "clap", the folder of its tokenizer as "roberta-base".
    """
    network: Clap = opened["clap"]
    tokenizer: Path = opened["roberta-base"]
    device = device_of(network)
    if convention == "mova":
        heard = clap_score.heard_by_clap(averaged_stereo_of(clip), PUBLISHED_RATE, convention)
    else:
        rate = network.sizes.sound.sample_rate
        heard = clap_score.heard_by_clap(np.array(clip.sound(rate), np.float32), rate, convention)
    tokens, mask = (x.to(device) for x in clap_score.tokenise([prompt], tokenizer))
    sound = clap_score.sound_embeddings(network, [heard.to(device)])[0]
    text = clap_score.text_embeddings(network, tokens, mask)[0]
    evidence = {"sound": sound.cpu().numpy(), "text": text.cpu().numpy()}
    return Measured(clap_of_pair(evidence, evidence), evidence)


def clap_of_pair(sound: Mapping[str, Floats], pictures: Mapping[str, Floats]) -> dict[str, float]:
    """The score of one clip's sound with the prompt of another."""
    return {"clap": clap_score.cosine(torch.tensor(sound["sound"]), torch.tensor(pictures["text"]))}
