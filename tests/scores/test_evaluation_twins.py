"""Recorded cases with fewer elements kept, other names and other numbers: nothing of a recorded case is built in."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mova_engine.ops import bind
from mova_engine.parity.case import CaseDevice, GoldenCase
from mova_engine.parity.runner import run_case

GOLDEN_EVAL = Path(__file__).resolve().parents[1] / "data" / "golden_eval"
_KID = "kernel_inception_distance_mean"


class Twin:
    """A copy of a recorded case that a test changes."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.meta = json.loads((GOLDEN_EVAL / f"{name}.json").read_text())
        self.tensors = load_file(GOLDEN_EVAL / f"{name}.safetensors")
        for weights in self.meta.get("weights", {}).values():
            shutil.copy(GOLDEN_EVAL / weights, folder / weights)

    def rename(self, name, other):
        self.tensors[other] = self.tensors.pop(name)
        about = self.meta["tensors"]
        self.meta["tensors"] = {other if key == name else key: value for key, value in about.items()}

    def thin(self, name, said, now, *steps):
        """Keep fewer elements; the description says so."""
        words = self.meta["tensors"][name]
        assert said in words["what"]
        words["what"] = words["what"].replace(said, now)
        self.tensors[name] = self.tensors[name][tuple(slice(None, None, step) for step in steps)].contiguous()

    def run(self, backend):
        """{name: note} of what missed."""
        save_file({key: x.contiguous() for key, x in self.tensors.items()}, self.folder / f"{self.name}.safetensors")
        (self.folder / f"{self.name}.json").write_text(json.dumps(self.meta))
        rows = run_case(GoldenCase(self.folder, self.name), CaseDevice(bind(backend), backend.device()))
        assert rows
        return {row.tensor: (row.difference, row.note) for row in rows if not row.passed}


def test_audiobox_keeps_what_the_descriptions_say(backend, tmp_path):
    twin = Twin(tmp_path, "case10_audiobox")
    twin.thin("mid.layer1", "frames ::25, ::4", "frames ::50, ::12", 1, 2, 3)
    twin.thin("mid.features", "channels ::4, frames ::25", "channels ::8, frames ::75", 1, 2, 3)
    assert not twin.run(backend)


def test_sounds_and_frames_of_another_decoding_case(backend, tmp_path):
    twin = Twin(tmp_path, "case11_decoding")
    for sound, other in (("mono", "one"), ("stereo", "two.b")):
        twin.rename(f"in.sound.{sound}_48k", f"in.sound.{other}_48k")
        for made in ("16k_mono", "32k_via_stereo", "44k_mono"):
            twin.rename(f"out.sound.{sound}.{made}", f"out.sound.{other}.{made}")
    twin.thin("out.sound.one.44k_mono", "every 2nd", "every 6th", 3)
    twin.thin("out.talking_real_speech.imagebind", "rows ::60, columns ::80", "rows ::120, columns ::240", 1, 1, 2, 3)
    twin.thin("out.talking_real_speech.synchformer", "frames 0, 10, 100, 196", "frames 0, 100", 2)
    assert not twin.run(backend)


def test_loudness_takes_the_start_from_the_description(backend, tmp_path):
    """What the case records is not what the run reads: with another start both lengths differ."""
    twin = Twin(tmp_path, "case9_loudness")
    twin.thin("out.extract.mono_48000", "every 4th", "every 8th", 2)
    assert not twin.run(backend)
    twin.thin("in.extract.stereo_44100", "0.0213 s", "0.0113 s")
    assert {"values.extract.zeros_in_front", "values.extract.length", "out.extract.mono_48000"} <= twin.run(
        backend
    ).keys()


def test_the_kernel_without_a_width_takes_that_of_its_dimensions(backend, tmp_path):
    twin = Twin(tmp_path, "case4_set_metrics")
    kernels = twin.meta["values"]["KID"]
    width = 1 / twin.tensors["in.features_real"].shape[1]
    for said in ("None", f"{width}"):
        kernels[f"degree_2_gamma_{said}_coef0_0.5"] = kernels["degree_2_gamma_0.1_coef0_0.5"]
    missed = twin.run(backend)  # the recorded numbers are another width's
    ours = {missed.get(f"values.KID.degree_2_gamma_{said}_coef0_0.5.{_KID}", (None,))[0] for said in ("None", width)}
    assert len(ours) == 1 and ours != {None}


@pytest.mark.networks
def test_panns_with_one_clip(backend, tmp_path):
    twin = Twin(tmp_path, "case4_panns")
    order = twin.meta["values"]["order"]
    for name in order[1:]:
        del twin.tensors[f"in.32k.{name}"]
    del order[1:]
    for name in ("out.32k.clipwise_output", "out.32k.probabilities"):
        twin.tensors[name] = twin.tensors[name][:1]
    twin.thin("mid.16k.block1", "channels ::8, frames ::10", "channels ::16, frames ::20", 1, 2, 2)
    # The inception score of one clip is 1.
    assert twin.run(backend).keys() == {"values.IS"}


@pytest.mark.networks
def test_networks_keep_what_the_descriptions_say(backend, tmp_path):
    twin = Twin(tmp_path, "case6_dnsmos")
    twin.thin("mid.real_speech.mel_window0", "every third", "every sixth", 2)
    assert not twin.run(backend)


@pytest.mark.networks
def test_av_align_reads_frames_and_hops_from_names(backend, tmp_path):
    twin = Twin(tmp_path, "case7_av_align")
    twin.thin("mid.first_clip.flow_10_11", "rows and columns ::3", "rows and columns ::6", 2, 2)
    clip = twin.meta["values"]["clips"]["bursts"]
    clip["audio_onsets_s_with_hop_512"] = clip["audio_onsets_s"]
    del clip["audio_onsets_s_with_hop_1411"], twin.meta["values"]["whole_files"]
    for name in [name for name in twin.tensors if ".file." in name]:
        del twin.tensors[name]
    assert not twin.run(backend)
