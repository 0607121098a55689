"""Every command, given a file, folder or number that it cannot use: one line that begins with `error:`, status 2.

Nothing is written.
"""

import json
import sys

import pytest

from mova_engine import cli

# By command; in the folder where they run lie `text.txt`, an empty `folder`, and `clips` whose only file is no clip;
# the same lie among a run's samples.
WRONG = {
    "train": [
        "--data nowhere",
        "--data clips --validation.data nowhere",
        "--data text.txt",
        "--data folder",
        "--data clips text.txt",
        "--data clips clips",
        "--data clips/metadata.csv",
        "--data clips --out clips",
        "--data clips --out clips/cache/run",
        "--data clips --validation.data clips --out clips/.",
        "--data run/samples/clips --out run",
        "--data clips --out clips/media",
        "--data clips --out text.txt",
        "--data clips --out text.txt/run",
        "--data clips --mix clips:2",
        "--mix clips:0 folder",
        "--mix clips:-1",
        "--mix clips nowhere:2",
        "--mix clips:2 clips:3",
        "--data clips --loader.cut-every 0",
        "--model.audio-from nowhere",
        "--recipe audio-nano --model.audio-from folder",
        "--recipe nowhere.yaml",
        "--recipe text.txt",
        "--steps -1",
        "--steps abc",
        "--steps 1e400",
        "--optim.lr nan",
        "--loader.batch 0",
        "--device abacus",
        "--resume nowhere",
        "--model.checkpoint nowhere",
        "--model.checkpoint /dev/null",
        "--from-musubi nowhere.sh",
        "--from-musubi text.txt",
        "--from-musubi folder",
        "--from-aitk /dev/null",
        "--from-aitk text.txt",
        "--recipe lora --lora.words x --validation.prompts nowhere.txt",
    ],
    "sample": [
        "--checkpoint nowhere --prompt ball",
        "--checkpoint text.txt --prompt ball",
        "--checkpoint /dev/null --prompt ball",
        "--checkpoint folder --prompt ball",
        "--checkpoint folder --prompts nowhere",
        "--checkpoint folder",
        "--checkpoint folder --prompt ball --steps 0",
        "--checkpoint folder --prompt ball --steps abc",
        "--manifest nowhere.json",
        "--manifest text.txt",
        "--manifest folder",
        "--checkpoint folder --prompt ball --provenance.key text.txt",
        "--checkpoint folder --prompt ball --start 2",
    ],
    "verify": ["nowhere.mp4", "text.txt", "folder", "/dev/null", "", "talking.mp4 --trust text.txt"],
    "lora merge": [
        "--checkpoint nowhere --lora nowhere --out merged",
        "--checkpoint /dev/null --lora text.txt --out merged",
        "--checkpoint folder --lora /dev/null --out merged",
    ],
    "lora inspect": ["nowhere", "nowhere.safetensors", "text.txt", "folder", "/dev/null"],
    "lora convert": [
        "nowhere --to comfy --out new",
        "text.txt --to comfy --out new",
        "folder --to comfy --out new",
        "text.txt --to nonsense --out new",
    ],
    "lora extract": [
        "--base nowhere --tuned folder --out new.safetensors",
        "--base folder --tuned folder --out new.safetensors",
        "--base folder --tuned folder --rank 0 --out new.safetensors",
    ],
    "lora combine": [
        "nowhere:0.5 --out new.safetensors",
        "text.txt --out new.safetensors",
        "x:inf --out new.safetensors",
    ],
    "quantise": [
        "nowhere --weights nf4 --out new",
        "folder --weights nf4 --out new",
        "text.txt --weights int4 --out new",
        "folder --weights int8 --out text.txt",
        "folder --weights int8 --out new --components tower",
    ],
    "calibrate": [
        "--checkpoint nowhere --prompt rain --out new.json",
        "--checkpoint folder --prompts text.txt --out new.json",
        "--checkpoint text.txt --prompt rain --out text.txt",
        "--checkpoint folder --prompt rain --out new.json --longest 0",
        "--checkpoint folder --prompt rain --out new.json --cache 2",
        "--checkpoint folder --prompt rain --out new.json --solver heun",
    ],
    "encode": [
        "--data nowhere --model nano",
        "--data text.txt --model nano",
        "--data folder --model nano",
        "--data clips --checkpoint nowhere",
        "--data clips --checkpoint /dev/null",
        "--data clips --model giant",
        "--data clips --model nano --shard 9/3",
        "--data clips --model nano --workers 0",
        "--data clips --model nano --workers 2 --shard 1/2",
        "--data clips --model nano --ray --shard 1/2",
        "--data clips --model nano --cut-every -1",
        "--data clips --model nano --device abacus",
    ],
    "data check": [
        "--data nowhere --model nano",
        "--data clips --model nano --cut-every 0",
        "--data text.txt --model nano",
        "--data clips",
        "--data clips --model giant",
        "--data clips --checkpoint nowhere",
        "--data clips --model nano --workers 0",
        "--data clips --model nano --out text.txt",
        "--data clips --model nano --out folder",
    ],
    "data index": [
        "nowhere.tar --out new.parquet",
        "text.txt --out new.parquet",
        "folder --out new.parquet",
        "clips --out new.txt",
        "--out new.parquet",
        "nowhere.tar --out new.parquet --threads 0",
    ],
    "data preview": [
        "--data nowhere --model nano",
        "--data text.txt --model nano",
        "--data folder --model nano",
        "--data clips --model nano",
        "--data clips --model giant",
        "--data clips --checkpoint nowhere",
        "--data clips --model nano --count 0",
        "--data clips --model nano --out text.txt",
    ],
    "nano clips": ["text.txt --clips 1", "clips --clips 1", "new --clips 0", "new --clips -1", "new --clips abc"],
    "nano sounds": ["text.txt --clips 6", "clips --clips 6", "new --clips 2", "new --clips abc", "new --split test"],
    "nano films": ["text.txt --films 1", "clips --films 1", "new --films 0", "new --films abc", "new --seed -1"],
    "nano notes": ["nowhere", "text.txt", "folder", "clips", "clips --seed abc", "clips --json text.txt"],
    "nano sync": ["nowhere", "text.txt", "folder", "clips", "clips --seed abc", "clips --seed -1"],
    "eval": [
        "nowhere --out new",
        "text.txt --out new",
        "folder --out new",
        "clips --out text.txt",
        "clips --out new --score beauty",
        "clips --out new --workers 0",
        "clips --out new --bench verse",
        "clips --out new --bench vers",
        "clips --out new --bench verse --bench-data text.txt",
        "clips --out new --bench audio --bench-data folder",
        "clips --out new --bench-data folder",
        "clips --out new --weights nowhere",
        "clips --out new --weights text.txt",
        "clips --out new --score desync",
        "clips --out new --score desync --weights folder",
        "clips --out new --convention mine",
        "clips --out new --device abacus",
        "clips --out new --reference nowhere",
        "clips --out new --reference folder",
        "clips --out new --transcripts nowhere",
        "clips --out new --transcripts text.txt",
        "clips --out new --score cpcer",
    ],
    "enhance": [
        "",
        "prompt",
        "prompt --prompts text.txt --backend endpoint --url http://localhost:9/v1 --model small",
        "prompt --backend endpoint --url localhost --model small",
        "prompt --backend endpoint --url http://localhost:9/v1",
        "prompt --backend endpoint --url http://localhost:9/v1 --model small --key-variable NOT_SET",
        "prompt --backend endpoint --url http://localhost:9/v1 --model small --timeout 0",
        "prompt --backend endpoint --url http://localhost:9/v1 --model small --image text.txt",
        "prompt --backend endpoint --url http://localhost:9/v1 --model small --checkpoint nowhere",
        "prompt --backend endpoint --url http://localhost:9/v1 --model small --device cpu",
        "--prompts nowhere --backend endpoint --url http://localhost:9/v1 --model small",
        "prompt --backend local",
        "prompt --backend local --model nowhere",
        "prompt --backend local --model folder",
        "prompt --backend local --model text.txt",
        "prompt --backend local --model nowhere --url http://localhost:9/v1",
    ],
    "eval transcribe": [
        "clips --out new",
        "nowhere --out new --endpoint http://localhost:9/v1",
        "clips --out text.txt --endpoint http://localhost:9/v1",
        "clips --out new --endpoint localhost",
        "clips --out new --endpoint http://localhost:9/v1 --key-variable NOT_SET",
        "clips --out new --endpoint http://localhost:9/v1 --whisper folder",
        "clips --out new --endpoint http://localhost:9/v1 --timeout 0",
        "clips --out new --whisper folder",
        "clips --out new --whisper nowhere --workers 0",
    ],
    "serve": [
        "",
        "--checkpoint nowhere",
        "--checkpoint text.txt",
        "--checkpoint nowhere --port 70000",
        "--checkpoint nowhere --worker-only",
        "--checkpoint nowhere --lora style",
        "--checkpoint nowhere --workers -1",
        "--checkpoint nowhere --provenance.certificate text.txt",
    ],
    "eval weights": ["nowhere", "text.txt", "/dev/null"],
    "eval compare": ["nowhere nowhere", "text.txt folder", "folder folder", "clips clips"],
    "eval scores": [
        "nowhere.mp4",
        "text.txt",
        "folder",
        "/dev/null",
        "talking.mp4 --score beauty",
        "talking.mp4 --score desync",
        "clips/media/0.mp4 --score speech-lag",
    ],
    "eval selftest": ["--weights nowhere", "--media text.txt", "--weights folder --nonsense 1"],
    "eval lag": [
        "nowhere.mp4",
        "text.txt",
        "folder",
        "clips/media/0.mp4",
        "/dev/null",
        "talking.mp4 --fps 0",
        "talking.mp4 --fps -24",
        "talking.mp4 --fps nan",
        "talking.mp4 --fps inf",
        "talking.mp4 --fps abc",
        "talking.mp4 --max-lag -1",
        "talking.mp4 --max-lag 100000",
    ],
    "eval vote serve": [
        "nowhere --store new.sqlite",
        "text.txt --store new.sqlite",
        "folder --store new.sqlite",
        "clips --store new.sqlite",
        "--store new.sqlite",
        "--system a=clips b=nowhere --store new.sqlite",
        "--system a=clips/media b=clips/media --store new.sqlite",
        "clips --store text.txt",
        "clips --store text.txt/new.sqlite",
        "clips --store new.sqlite --question beauty",
        "clips --store new.sqlite --checks 2",
        "clips --store new.sqlite --port 100000",
        "clips --store new.sqlite --raters nowhere",
    ],
    "eval vote fit": [
        "--store nowhere",
        "--store text.txt",
        "--store folder",
        "--store /dev/null",
        "--store text.txt --out clips/media/0.mp4",
        "--store text.txt --anchor mine",
        "--store text.txt --prior 0",
    ],
    "parity": ["nowhere", "text.txt", "folder", "folder --device abacus", "folder --dtype int8"],
    # A folder that cannot be written to is a finding of the doctor's, status 1.
    "doctor": ["--device abacus", "--golden nowhere"],
    "describe": ["nowhere", "text.txt", "folder", "/dev/null", "nano --clip.frames 0", "nano --clip.frames abc"],
    "plan": ["nowhere", "nano --devices 0", "nano --hardware text.txt", "nano --devices abc", "nano --clip.fps nan"],
    "bench": [
        "nowhere",
        "step --dtype int8",
        "step --device abacus",
        "step --threads 0",
        "step --json text.txt/result.json",
        "chain --rows 0",
        "chain --rows abc",
        "report nowhere.json",
        "report text.txt",
        "report folder",
    ],
    "bench traffic": ["--count 0", "--count 1000", "--count abc", "--model giant"],
    "ops": ["--device abacus"],
    "completion": ["csh", "bash zsh"],
}


def test_every_command_is_here():
    assert WRONG.keys() == cli.COMMANDS.keys()


@pytest.mark.parametrize("command, arguments", [(name, each) for name, cases in WRONG.items() for each in cases])
def test_what_cannot_be_used_is_one_line_and_status_2(command, arguments, tmp_path, monkeypatch, capsys, repo_root):
    (tmp_path / "text.txt").write_text("no clip, no model, no recipe\n")
    (tmp_path / "folder").mkdir()
    for clips in (tmp_path / "clips", tmp_path / "run" / "samples" / "clips"):
        (clips / "media").mkdir(parents=True)
        (clips / "media" / "0.mp4").write_bytes(b"no clip")
        listed = {"video_path": "media/0.mp4", "caption": "a ball"}
        (clips / "metadata.jsonl").write_text(json.dumps(listed) + "\n")
    (tmp_path / "talking.mp4").symlink_to(repo_root / "tests" / "data" / "talking.mp4")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mova", *command.split(), *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        cli.run()
    printed = capsys.readouterr()
    assert stopped.value.code == 2, printed
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and len(line) > len("error: ") + 10
    assert sorted(tmp_path.rglob("*")) == before
