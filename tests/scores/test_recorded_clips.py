"""Recorded cases as files: what a decoded clip's function makes of a case's pictures and sound is what was recorded."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lossless_clip import write_lossless

from mova_engine.parity.case import GoldenCase
from mova_engine.parity.evaluation.audiobox_case import _sizes as audiobox_sizes
from mova_engine.parity.evaluation.described import enlarged, enlarged_last
from mova_engine.parity.evaluation.imagebind_case import _config as imagebind_config
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import clap_score, face_boxes
from mova_engine.scores.audiobox import RatingScale
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.face_boxes import Face
from mova_engine.scores.network_scores import clip_lip_sync as clip_lip_sync_module
from mova_engine.scores.network_scores.clip_clap import clip_clap
from mova_engine.scores.network_scores.clip_desync import clip_desync, desync_of_pair
from mova_engine.scores.network_scores.clip_imagebind import clip_imagebind
from mova_engine.scores.network_scores.clip_lip_sync import clip_lip_sync, lip_sync_of_pair
from mova_engine.scores.network_scores.clip_sound_ratings import clip_audiobox, clip_sound_events
from mova_engine.scores.network_scores.clip_tags import clip_tags_16k, clip_tags_32k
from mova_engine.scores.networks.audiobox_axes import AXES, AudioboxNetwork
from mova_engine.scores.networks.clap import Clap, ClapSizes
from mova_engine.scores.networks.cnn14 import CNN14_16K, CNN14_32K, Cnn14
from mova_engine.scores.networks.eat import Eat, EatSizes
from mova_engine.scores.networks.imagebind import ImageBind
from mova_engine.scores.networks.synchformer import Synchformer
from mova_engine.scores.networks.syncnet import SyncNet
from mova_engine.scores.set_scores import set_inception_score

DATA = Path(__file__).resolve().parents[1] / "data"


def stated(name):
    return StatedCase(GoldenCase(DATA / "golden_eval", name))


def lossless(path, pictures=None, sound=None, **rates):
    return DecodedClip.read(write_lossless(path, pictures, sound, **rates))


def close(made, recorded, bound=2e-4):
    assert made.shape == recorded.shape
    assert np.abs(made - recorded.numpy()).max() <= bound * recorded.abs().max()


@pytest.mark.networks
@pytest.mark.timeout(1200)
@torch.no_grad()
def test_desync(tmp_path):
    """Also of a pair, which a clip's own features make: chance levels compare features, not clips."""
    case = stated("case2_desync_end_to_end")
    with torch.device("meta"):
        network = Synchformer()
    network = case.load("synchformer", network.to_empty(device="cpu"))
    pictures = enlarged(case, "in.e2e.frames_lowres").permute(0, 2, 3, 1).contiguous().numpy()
    clip = lossless(tmp_path / "clip.mkv", pictures, case.tensors["in.e2e.wave"][0].numpy())
    found = clip_desync(clip, network, "av-benchmark")
    assert found.values["desync"] == pytest.approx(case.values["e2e"]["DeSync"], abs=1e-7)
    assert found.values["desync_offset"] == pytest.approx(1.2, abs=1e-6)
    close(found.evidence["video"][..., ::16], case.tensors["mid.e2e.video_features"][0])
    close(found.evidence["audio"][..., ::16], case.tensors["mid.e2e.audio_features"][0])
    assert desync_of_pair(found.evidence, found.evidence, network, "av-benchmark") == found.values


@pytest.mark.networks
@torch.no_grad()
def test_lip_sync(tmp_path, monkeypatch):
    """The recorded face pictures, as pictures whose crop around the box below is the whole of them."""
    case = stated("case1_syncnet")
    network = case.load("syncnet", SyncNet())
    pictures = np.ascontiguousarray(enlarged_last(case, "in.e2e_a.frames_lowres")[..., ::-1])
    assert pictures.shape[1:3] == (224, 224)
    monkeypatch.setattr(clip_lip_sync_module, "through_mp3", lambda sound, rate: sound)  # the case begins after it
    monkeypatch.setattr(face_boxes, "detect_faces", lambda net, picture, i, scale: [Face(i, (32, 0, 192, 160), 0.99)])
    clip = lossless(tmp_path / "clip.mkv", pictures, case.tensors["in.e2e_a.audio"].numpy())
    found = clip_lip_sync(clip, {"s3fd": torch.nn.Module(), "syncnet": network}, "mova")
    recorded = case.values["e2e_a"]
    assert found.values["lse_d"] == pytest.approx(recorded["LSE_D"], rel=1e-4)
    assert found.values["lse_c"] == pytest.approx(recorded["LSE_C"], rel=1e-4)
    assert found.values["lse_offset"] == recorded["offset"]
    assert (found.values["face_coverage"], found.values["face_tracks"]) == (1, 1)
    pair = lip_sync_of_pair(found.evidence, found.evidence)
    assert pair == {name: found.values[name] for name in ("lse_d", "lse_c")}


@pytest.mark.networks
@torch.no_grad()
def test_clap_of_the_talking_clip(monkeypatch):
    case = stated("case5_clap")
    network = case.load("clap", Clap(ClapSizes()))
    prompt = case.values["scores"]["real_8s"]["prompt"]
    place = case.values["prompts"].index(prompt)

    def tokens(texts, folder):
        assert texts == [prompt]
        return tuple(case.tensors[f"in.text.{name}"][place : place + 1] for name in ("input_ids", "attention_mask"))

    monkeypatch.setattr(clap_score, "tokenise", tokens)
    opened = {"clap": network, "roberta-base": Path()}
    clip = DecodedClip.read(DATA / "media" / "talking_real_speech.mp4")
    found = clip_clap(clip, opened, "mova", prompt=prompt)
    assert found.values["clap"] == pytest.approx(case.values["scores"]["real_8s"]["CLAP"], abs=1e-4)
    corrected = clip_clap(clip, opened, "corrected", prompt=prompt)
    assert np.abs(corrected.evidence["sound"] - found.evidence["sound"]).max() > 1e-3


@pytest.mark.networks
@torch.no_grad()
def test_panns(tmp_path):
    """Of two equal channels the mean is either: MOVA's scripts average what ffmpeg gives them."""
    case = stated("case4_panns")
    network = case.load("cnn14_16k", Cnn14(CNN14_16K))
    for i, wave in enumerate(case.tensors["in.16k.wave"].numpy()):
        found = clip_tags_16k(lossless(tmp_path / f"{i}.mkv", sound=wave), network, "mova").evidence
        close(found["embedding"], case.tensors["out.16k.embedding_2048"][i])
        close(found["logits"], case.tensors["out.16k.logits"][i])
    network = case.load("cnn14_32k", Cnn14(CNN14_32K))
    evidence = []
    for name in case.values["order"]:
        sound = case.tensors[f"in.32k.{name}"].numpy()
        clip = lossless(tmp_path / f"{name}.mkv", sound=np.stack([sound, sound], 1), rate=32000)
        evidence.append(clip_tags_32k(clip, network, "mova").evidence)
    close(evidence[0]["embedding"], case.tensors["out.32k.embedding"][0])
    assert set_inception_score(evidence, "mova") == pytest.approx(case.values["IS"], rel=1e-4)


@torch.no_grad()
def test_imagebind_s_sound(tmp_path):
    case = stated("case3_imagebind")
    network = case.load("imagebind_tiny", ImageBind(imagebind_config(case)))
    recorded = case.tensors["out.audio.embedding"]
    names = ("mono_16k_8s", "stereo_48k_2.6s")
    assert all(name in case.case.meta["tensors"]["out.audio.embedding"]["what"] for name in names)
    pictures = np.zeros((200, 8, 8, 3), np.uint8)
    for row, name, rate in zip(recorded, names, (16000, 48000), strict=True):
        sound = case.tensors[f"in.{name}.wave"].numpy().T
        clip = lossless(tmp_path / f"{name}.mkv", pictures, np.ascontiguousarray(sound), rate=rate)
        close(clip_imagebind(clip, network, "mova").evidence["audio"], row, 1e-4)


@torch.no_grad()
def test_audiobox(tmp_path):
    case = stated("case10_audiobox")
    network = case.load("audiobox_tiny", AudioboxNetwork(audiobox_sizes(case)))
    stats = case.values["target_transform_of_this_case"]
    scales = {axis: RatingScale(stats[axis]["mean"], stats[axis]["std"]) for axis in AXES}
    names = [name for name in case.case.meta["tensors"] if name.endswith(".samples")]
    for name, recorded in zip(names, case.values["scores"], strict=True):
        clip = lossless(tmp_path / f"{name}.mkv", sound=case.tensors[name].numpy())
        found = clip_audiobox(clip, (network, scales), "mova").values
        assert found == {f"audiobox_{axis.lower()}": pytest.approx(recorded[axis], abs=1e-3) for axis in AXES}


@torch.no_grad()
def test_sound_events(tmp_path):
    """The recorded network knows 20 classes; those that are asked for beyond them get a probability of 1/2."""
    case = stated("case10_eat")
    given = case.parameter("config")
    sizes = partial(
        EatSizes, given["embed_dim"], given["depth"], given["heads"], frames=given["target_length"],
        longest=given["max_length"], mlp_ratio=given["mlp_ratio"], eps=given["norm_eps"],
    )  # fmt: skip
    small = case.load("eat_tiny", Eat(sizes(classes=given["classes"])))
    network = Eat(sizes(classes=527)).eval()
    wide = network.state_dict()
    for name, x in small.state_dict().items():
        wide[name] = x if x.shape == wide[name].shape else torch.zeros_like(wide[name])
        wide[name][: len(x)] = x
    network.load_state_dict(wide)
    for i, name in enumerate(("long", "short")):
        clip = lossless(tmp_path / f"{name}.mkv", sound=case.tensors[f"in.{name}.samples"].numpy())
        found = clip_sound_events(clip, network, "mova").values
        assert found["event_speech"] == pytest.approx(float(case.tensors["out.probabilities"][i, :6].max()), rel=1e-4)
        assert [found[f"event_{kind}"] for kind in ("singing", "music", "silence")] == [0.5] * 3
