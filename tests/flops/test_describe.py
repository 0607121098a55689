"""The description of a model, as its command prints it."""

import pytest

from mova_engine.commands.describe import main
from mova_engine.config.model import PRESETS, get_preset
from mova_engine.errors import MovaError
from mova_engine.model_tables import describe


def _rows(text: str) -> dict[str, list[str]]:
    """Cells after each label; labels and cells are at least two spaces apart."""
    lines = [[cell for cell in line.strip().split("  ") if cell] for line in text.splitlines() if line.strip()]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_the_released_model_prints_the_published_figures(capsys):
    assert main(["mova-360p"]) == 0
    rows = _rows(capsys.readouterr().out)
    assert rows["video_dit (and as many in video_dit_2)"] == ["14.289 B"]
    assert rows["audio_dit"] == ["1.419 B"] and rows["dual_tower_bridge"] == ["2.660 B"]
    assert rows["active: one expert, audio tower, bridge"] == ["18.37 B"]
    assert rows["blocks.*.self_attn.q.weight"][-1] == "30 x [1536, 1536]"
    assert rows["audio_to_video_conditioners.*.inner.k.weight"] == ["235,929,600", "30 x [5120, 1536]"]
    assert rows["video self-attention"] == ["1523", "55%"]
    assert rows["bridge a2v projections"][0] == "136.0" and rows["audio tower"][0] == "1.23"
    assert rows["total, PFLOP"] == ["2.766"]
    assert rows["full fine-tune"] == ["8.30", "9.08", "10.32", "11.84"]
    assert rows["LoRA r16"] == ["7.11", "7.88", "9.13", "10.66"]


def test_another_clip(capsys):
    assert main(["mova-360p", "--clip.height", "720", "--clip.width", "1280"]) == 0
    rows = _rows(capsys.readouterr().out)
    assert rows["video self-attention"] == ["25491", "83%"] and rows["total, PFLOP"] == ["30.56"]
    assert rows["LoRA r16"] == ["86.8", "99.6", "104.7", "130.2"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_described(name):
    assert describe(get_preset(name)).startswith(f"{name}: ")


def test_wrong_arguments_are_one_line():
    with pytest.raises(MovaError, match="unknown model 'mova-270p'. Did you mean"):
        main(["mova-270p"])
    with pytest.raises(MovaError, match="clip.height must be a positive multiple of 16, got 50"):
        main(["nano", "--clip.height", "50"])
