"""`mova sample --enhance`: clips are made from rewritten prompts, and their metadata has both."""

import json
from dataclasses import replace

import pytest
from chat_servers import chat_server

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import save_mova
from mova_engine.inference.__main__ import main
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

OWN = "a red ball bounces on the floor"
REWRITTEN = (
    "A red ball lies on a wooden floor in front of a white wall, lit from the left. It rises, falls and bounces, each "
    "time a little lower, until it rolls to the right and stops at the edge of the picture.\n\nThe audio has dull "
    "knocks of the ball on wood, faster and softer each time, and then it is quiet."
)


@pytest.fixture
def folder(pipeline, tmp_path):
    """The tiny model with a text encoder that takes as many words as a rewritten prompt has."""
    model = Mova(replace(pipeline.mova.config, text_tokens=120), bind(get_backend("cpu")))
    model.load_state_dict(pipeline.mova.state_dict())
    codecs = {"video_codec": pipeline.codecs.video, "audio_codec": pipeline.codecs.audio}
    save_mova(model, tmp_path / "model", **codecs, boundary=0.8)
    return tmp_path / "model"


def test_clips_are_made_from_the_rewritten_prompt_and_metadata_has_both(folder, tmp_path, capsys):
    pytest.importorskip("httpx", reason="httpx not installed; `make setup-dev`")
    (tmp_path / "prompts.txt").write_text(f"{OWN}\na dog barks\n")
    common = f"--checkpoint {folder} --device cpu --steps 1"
    with chat_server() as server:
        server.say(REWRITTEN, "no", "no")
        words = f"{common} --prompts {tmp_path / 'prompts.txt'} --out {tmp_path / 'out'} --enhance endpoint"
        assert main(f"{words} --enhance.url {server.url} --enhance.model small".split()) == 0
        assert len(server.requests) == 3
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == [OWN, "a dog barks"]
    assert [row["enhanced_prompt"] for row in rows] == [REWRITTEN, None]
    assert rows[0]["enhancement"]["model"] == "small" and rows[0]["enhancement"]["used"] == "enhanced"
    assert rows[1]["enhancement"]["warning"].startswith("not rewritten")
    said = capsys.readouterr().err
    assert "1 of 2 prompts enhanced by small" in said and "warning: prompt 'a dog barks'" in said
    # The same text, given as the prompt, makes the same clip.
    (tmp_path / "one.txt").write_text(REWRITTEN.replace("\n\n", " ") + "\n")
    assert main(f"{common} --prompts {tmp_path / 'one.txt'} --out {tmp_path / 'one'}".split()) == 0
    clip = (tmp_path / "one" / "000.mp4").read_bytes()
    assert clip == (tmp_path / "out" / "000.mp4").read_bytes()
    assert main([*f"{common} --out {tmp_path / 'own'} --prompt".split(), OWN]) == 0
    assert clip != (tmp_path / "own" / "000.mp4").read_bytes()
