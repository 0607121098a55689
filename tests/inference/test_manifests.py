"""Manifests of clips: what a clip was made of, the same clip made again from it, and in words what differs."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("c2pa", reason="signing needs the extra `serve`")

from mova_engine.commands.verify_clips import main as verify
from mova_engine.data.media.clip_manifest import read_manifest
from mova_engine.data.media.mp4_boxes import boxes, is_c2pa, without_c2pa
from mova_engine.data.media.verified_file import verify_file
from mova_engine.data.media.wav_chunks import without_c2pa_chunk
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main


@pytest.fixture
def sample(run_folder, tmp_path):
    def run(*words, out, status=0):
        common = ("--device", "cpu", "--steps", "2", "--checkpoint", run_folder) if "--manifest" not in words else ()
        assert main([str(word) for word in (*words, *common, "--out", tmp_path / out)]) == status
        return tmp_path / out

    return run


def changed(path: Path, **entries) -> Path:
    """A copy of a manifest with other entries."""
    copy = path.with_name(f"changed-{path.name}")
    copy.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return copy


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def stated(line: str, said) -> bool:
    return any(line in each for each in " ".join(said.err.split()).split("warning: "))


def test_a_clip_of_a_batch_is_made_again_to_the_byte_and_what_differs_is_said(sample, run_folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("rain on a roof\na red ball\nwind\n")
    made = sample("--prompts", tmp_path / "prompts.txt", "--seed", 5, out="made")
    assert sorted(path.name for path in made.glob("*.json")) == ["000.json", "001.json", "002.json"]
    manifest = read_manifest(made / "001.json")
    assert (manifest.prompt, manifest.seed, manifest.batch) == ("a red ball", 6, {"size": 3, "position": 1})
    assert manifest.weights.keys() >= {"model_index.json", "audio_dit/config.json"}
    # What a signature states of it names no file's place, and no prompt.
    found = verify_file(made / "001.mp4")
    assert (found.state, found.trusted, found.facts["seed"]) == ("valid", True, 6)
    assert str(tmp_path) not in str(found.facts)
    assert "red ball" not in (made / "001.mp4").read_bytes().decode("latin-1")
    kinds = [box.kind for box in boxes((made / "001.mp4").read_bytes())]
    assert kinds.index(b"moov") < kinds.index(b"mdat")

    capsys.readouterr()
    again = sample("--manifest", made / "001.json", out="again")
    said = capsys.readouterr()
    assert "the same file, byte for byte" in said.out
    assert "in the manifest" not in said.err
    assert (again / "000.mp4").read_bytes() == (made / "001.mp4").read_bytes()

    other = {**manifest.weights, "audio_dit/config.json": "0" * 64}
    newer = changed(made / "001.json", weights=other, machine={**manifest.machine, "torch": "9.9"})
    sample("--manifest", newer, "--seed", 7, out="other", status=1)
    said = capsys.readouterr()
    assert stated("weights audio_dit/config.json: sha256 0000000000000000 in the manifest, sha256 ", said)
    assert stated("machine torch: '9.9' in the manifest, ", said)
    assert stated("seed: 6 in the manifest, 7 now", said)
    assert f"not the same clip as {newer} states: pictures or sound and header differ" in said.out.replace("\n", " ")


def test_verify_tells_a_clip_from_its_flipped_twin(sample, tmp_path, capsys):
    made = sample("--prompt", "rain", "--provenance.prompt", out="made")
    clip = made / "000.mp4"
    capsys.readouterr()
    assert verify([str(clip)]) == 0
    said = capsys.readouterr().out
    assert f"{clip}: valid: as it was signed by mova_engine signer" in said
    assert "made by a model" in said
    assert "prompt: rain" in said
    assert "000.json: agrees" in said

    data = clip.read_bytes()
    media = next(box for box in boxes(data) if box.kind == b"mdat")
    last = media.end - 1
    store = next(box for box in boxes(data) if is_c2pa(data, box))
    twins = {
        "its pictures or sound (mdat) were changed": flipped(data, last),
        "the signature was removed": without_c2pa(data),
        "is cut short": data[: store.end + 100],
    }
    for words, twin in twins.items():
        clip.write_bytes(twin)
        assert verify([str(clip)]) == 1
        assert words in capsys.readouterr().out
    clip.write_bytes(data)
    changed(made / "000.json", seed=9).replace(made / "000.json")
    assert verify([str(clip), "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["file"]["state"], row["disagreements"]) == ("valid", ["states another seed than the signature"])
    assert verify([str(clip), str(tmp_path / "nowhere.mp4")]) == 2
    (tmp_path / "authority.pem").write_bytes(Path(__file__).read_bytes())
    with pytest.raises(MovaError, match="holds no certificate"):
        verify([str(clip), "--trust", str(tmp_path / "authority.pem")])


def test_sound_alone_is_signed_and_its_flipped_twin_is_found(sample, capsys):
    sound = sample("--prompt", "rain", "--audio-alone", out="made") / "000.wav"
    capsys.readouterr()
    assert verify([str(sound)]) == 0
    said = capsys.readouterr().out
    assert f"{sound}: valid: as it was signed by mova_engine signer" in said and "000.json: agrees" in said
    data = sound.read_bytes()
    twins = {
        ("its sound (data) was changed", "000.json: is of another file: sound differ"): flipped(data, 100),
        ("unsigned", "the signature was removed"): without_c2pa_chunk(data),
    }
    for words, twin in twins.items():
        sound.write_bytes(twin)
        assert verify([str(sound)]) == 1
        said = capsys.readouterr().out
        assert all(each in said for each in words), said


MANIFEST = {
    "mova_manifest": 1, "prompt": "rain", "seed": 1, "checkpoint": "nano", "weights": {"model_index.json": "ab"},
    "adapters": [], "inputs": {}, "settings": {"prompt": "rain", "seed": 1, "checkpoint": "nowhere/nano"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "words", "reason"),
    [
        ({}, "", r"its weights, nano, are not at nowhere/nano: --checkpoint DIR says where they are; the SHA-256 of 1"),
        ({"mova_manifest": 2}, "", "a manifest of another version"),
        ({"seed": "one"}, "", "its entry 'seed' is no int"),
        ({"sd": 1}, "", "unknown entries: sd"),
        ({"settings": {"prompt": "x", "checkpoint": ".", "sed": 1}}, "", "unknown option --sed"),
        ({}, "--checkpoint . --count 2", "makes one clip: leave --prompts and --count out"),
        (
            {"adapters": [{"name": "rain", "path": "gone.safetensors", "sha256": "ab"}]},
            "--checkpoint . --lora gone.safetensors",
            r"its adapter rain \(sha256 ab\) is not at gone.safetensors: --lora FILE names it",
        ),
        ({"inputs": {"image": {"path": "gone.png"}}}, "--checkpoint . --image gone.png", "gone.png, of --image, is"),
        ({"inputs": {"image": {"pixels": "ab"}}}, "--checkpoint .", "its first frame was no file of its own: give it"),
    ],
)  # fmt: skip
def test_what_a_clip_cannot_be_made_of_is_named(entries, words, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clip.json").write_text(json.dumps(MANIFEST | entries))
    with pytest.raises(MovaError, match=reason):
        main(["--manifest", "clip.json", *words.split()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json"]


def test_without_the_packages_clips_are_not_signed_and_that_is_said(sample, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "c2pa" else find(name))
    folder = sample("--prompt", "rain", out="made")
    assert "clips are not signed: pip install c2pa-python cryptography signs them" in capsys.readouterr().err
    assert read_manifest(folder / "000.json").file["signed_by"] is None
    with pytest.raises(MovaError, match="signing clips needs the package c2pa-python, .* pip install c2pa-python"):
        sample("--prompt", "rain", "--provenance.prompt", out="asked")


@pytest.mark.long
def test_clips_of_every_kind_of_input_are_made_again(sample, tmp_path, capsys):
    Image.fromarray(np.full((64, 96, 3), (230, 120, 20), np.uint8)).save(tmp_path / "first.png")
    first = sample("--prompt", "a ball", "--image", tmp_path / "first.png", out="first")
    clip = first / "000.mp4"
    listed = tmp_path / "listed"
    listed.mkdir()
    shutil.copy(clip, listed / "a.mp4")
    (listed / "metadata.jsonl").write_text(json.dumps({"video_path": "a.mp4", "caption": "one"}) + "\n")
    runs = {
        "image": ("--prompt", "a ball", "--image", clip, "--start", 0.1),
        "lines": ("--prompts", tmp_path / "lines.txt"),
        "sound for it": ("--prompt", "rain", "--video", clip),
        "pictures for it": ("--prompt", "rain", "--audio", clip),
        "of a folder": ("--prompts", listed, "--given", "audio"),
        "pictures of a folder": ("--prompts", listed, "--given", "video"),
        "long": ("--prompt", "rain", "--seconds", 0.6),
        "extended": ("--prompt", "rain", "--extend", clip, "--seconds", 0.6),
        "alone": ("--prompt", "rain", "--audio-alone"),
        "memory": ("--prompt", "rain", "--memory", "auto"),
        "adaptive": ("--prompt", "rain", "--cache", "adaptive"),
        "not signed": ("--prompt", "rain", "--no-provenance"),
    }
    (tmp_path / "lines.txt").write_text("rain --i first.png --d 4\n")
    for name, words in runs.items():
        made = sample(*words, out=f"{name} made")
        file = next(path for path in made.iterdir() if path.stem == "000" and path.suffix != ".json")
        capsys.readouterr()
        more = ("--no-provenance",) if name == "not signed" else ()
        again = sample("--manifest", made / "000.json", *more, out=f"{name} again")
        said = capsys.readouterr()
        assert "the same file, byte for byte" in said.out, name
        assert "in the manifest" not in said.err, name
        assert (again / file.name).read_bytes() == file.read_bytes(), name
        if name != "not signed":
            assert verify_file(file).state == "valid", name
        if name in ("sound for it", "extended"):
            (parent,) = verify_file(file).ingredients
            assert parent == {"title": clip.name, "relationship": "parentOf", "state": "valid"}
