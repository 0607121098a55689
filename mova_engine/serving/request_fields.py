"""The fields of a request for a clip, declared once: for checking, for the API's document, and for what is told of an
unknown one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mova_engine.config.diffusion import SOLVERS
from mova_engine.config.model import GUIDANCE_FORMS
from mova_engine.data.text import flaw, shown
from mova_engine.errors import suggest
from mova_engine.inference.requests import MAX_SEED
from mova_engine.serving.api_errors import bad_field
from mova_engine.serving.request_body import parse_json

Kind = Literal["text", "whole", "number", "choice", "strengths", "window", "picture", "clip"]
_LONGEST_NAME = 80


@dataclass(frozen=True)
class RequestField:
    """A field. setting: of `VideoSettings`, for those that are passed on. least, most: of a number."""

    name: str
    kind: Kind
    about: str
    setting: str = ""
    choices: tuple[str, ...] = ()
    least: float = -math.inf
    most: float = math.inf


def _scale(name: str, setting: str, about: str) -> RequestField:
    return RequestField(name, "number", about, setting, least=-1000, most=1000)


def _share(name: str, about: str) -> RequestField:
    return RequestField(name, "number", about, name, least=0, most=1)


PROMPT = RequestField("prompt", "text", "What to show and sound.")
SECONDS = RequestField("seconds", "number", "Length: the most frames that fit are made.", least=0, most=3600)
# OpenAI's own, then the engine's; each may also stand in the object `x_mova`.
OPENAI_FIELDS = (
    PROMPT,
    RequestField("model", "text", "A name of /v1/models; default: the first."),
    SECONDS,
    RequestField("size", "text", "WIDTHxHEIGHT in pixels."),
    RequestField("input_reference", "picture", "The first frame: a file, or {image_url} with a data: address."),
)
OWN_FIELDS = (
    RequestField("seed", "whole", "Equal seeds and settings give equal files; default: drawn.", least=0, most=MAX_SEED),
    RequestField("width", "whole", "Pixels, a multiple of 16; goes with height.", least=1, most=1 << 14),
    RequestField("height", "whole", "Pixels, a multiple of 16; goes with width.", least=1, most=1 << 14),
    RequestField("num_frames", "whole", "Frames, 4n+1; in place of seconds.", least=1, most=1 << 20),
    RequestField("fps", "number", "Frames a second; default: the model's.", least=1, most=1000),
    RequestField("num_inference_steps", "whole", "Denoising steps.", "steps", least=1, most=10_000),
    RequestField("negative_prompt", "text", "What guidance steers away from.", "negative_prompt"),
    RequestField("guidance", "choice", "What steers the sampling.", "guidance", GUIDANCE_FORMS),
    _scale("guidance_scale", "text_scale", "Strength of guidance by text."),
    _scale("bridge_scale", "bridge_scale", "Strength of guidance by the bridge, for dual."),
    _scale("audio_guidance_scale", "audio_text_scale", "Strength of guidance by text for the sound."),
    _scale("audio_bridge_scale", "audio_bridge_scale", "Strength of guidance by the bridge for the sound."),
    _share("guide_from", "Share of the steps before which there is no guidance."),
    _share("guide_until", "Share of the steps after which there is no guidance."),
    _share("guidance_rescale", "Share of a result with the standard deviation of the unguided one."),
    RequestField("solver", "choice", "How steps are taken.", "solver", SOLVERS),
    RequestField("cache", "text", "none, a speed-up such as 1.6, or adaptive:THRESHOLD.", "cache"),
    RequestField("adapters", "strengths", "Strengths of registered adapters by name.", "adapters"),
    RequestField("last_frame", "picture", "The last frame, as input_reference."),
    RequestField("deadline_s", "number", "Seconds within which the clip is wanted.", "deadline_s", least=1, most=1e7),
    RequestField("enhance", "choice", "Who rewrites the prompt.", "enhance", ("none", "endpoint", "local")),
    RequestField(
        "enhanced_prompt", "text", "The text for the model, where prompt stays the user's.", "enhanced_prompt"
    ),
    RequestField("n", "whole", "Clips of a request: 1.", least=1, most=1),
)
CLIP = RequestField("video", "clip", "The source: a file, or {id} of a completed video.")
EDIT_FIELDS = (
    CLIP,
    RequestField("edit_of", "choice", "What is made anew.", "edit_of", ("both", "video", "audio")),
    RequestField("window", "window", "Begin and end in seconds of what is made anew; default: all.", "window"),
)
CREATE = {each.name: each for each in (*OPENAI_FIELDS, *OWN_FIELDS)}
# What fixes the shape, which edits and extensions have from their source.
_SHAPE = ("seconds", "size", "width", "height", "num_frames", "fps", "input_reference", "last_frame")
REMIX = {name: each for name, each in CREATE.items() if name not in (*_SHAPE, "model", "n")}
EDIT = {each.name: each for each in (PROMPT, CREATE["model"], *EDIT_FIELDS)} | {
    name: each for name, each in CREATE.items() if name not in _SHAPE
}
EXTEND = {each.name: each for each in (PROMPT, CREATE["model"], CLIP, SECONDS)} | {
    name: each for name, each in CREATE.items() if name not in _SHAPE
}
ENHANCE = {name: CREATE[name] for name in ("prompt", "model", "input_reference")}
# Where engine-specific fields may be gathered.
OWN = "x_mova"
# Fields of other servers, and why they are not taken.
_REFUSED = {
    "output_path": "the server's disk is not the clients': fetch /v1/videos/ID/content",
    "file_path": "the server's disk is not the clients': fetch /v1/videos/ID/content",
    "reference_url": "send input_reference",
    "image_url": "send input_reference={image_url}",
    "guidance_scale_2": "both experts are guided alike: send guidance_scale",
    "flow_shift": "the noise schedule belongs to the model",
    "audio_flow_shift": "the noise schedule belongs to the model",
    "extra_params": "send the settings themselves, or inside x_mova",
}


def flat_fields(sent: Mapping[str, Any], known: Mapping[str, RequestField]) -> dict[str, Any]:
    """The fields of a request, those inside x_mova beside the others. Raises ApiError for an unknown one, with the
    nearest name, and for one that is there twice. Nulls are left out.
    """
    own = sent.get(OWN)
    if isinstance(own, str):
        own = _parsed(OWN, own)
    if own is not None and not isinstance(own, dict):
        raise bad_field(OWN, f"{OWN} is an object of settings")
    found = {name: value for name, value in sent.items() if name != OWN}
    for name, value in (own or {}).items():
        if name in found:
            raise bad_field(name, f"'{shown(name)}' stands both in the request and in {OWN}", "duplicate_field")
        found[name] = value
    for name in found:
        if name not in known:
            raise unknown_field(name, (*known, OWN))
    return {name: value for name, value in found.items() if value is not None}


def unknown_field(name: str, known: tuple[str, ...]) -> Exception:
    """The refusal of a field that there is not."""
    short = shown(name[:_LONGEST_NAME])
    why = _REFUSED.get(name)
    words = (
        f"'{short}' is not taken: {why}" if why else f"unknown field '{short}'.{suggest(name[:_LONGEST_NAME], known)}"
    )
    return bad_field(short, words, "unknown_field")


def checked(field: RequestField, value: Any) -> Any:
    """A field's value in its own type; forms send all of them as texts. Raises ApiError for any other value."""
    name = field.name
    if field.kind in ("text", "choice"):
        if not isinstance(value, str):
            raise bad_field(name, f"{name} must be a text")
        if reason := flaw(value):
            raise bad_field(name, f"{name} {reason}")
        if "\0" in value:
            raise bad_field(name, f"{name} holds a zero character")
        if field.kind == "choice" and value not in field.choices:
            known = ", ".join(field.choices)
            near = suggest(value[:_LONGEST_NAME], field.choices)
            raise bad_field(name, f"{name} '{shown(value)}' is none of {known}.{near}")
        return value
    if field.kind in ("whole", "number"):
        return _number(field, value)
    if isinstance(value, str):
        value = _parsed(name, value)
    if field.kind == "strengths":
        return _strengths(name, value)
    if field.kind == "window":
        return _window(name, value)
    raise AssertionError(f"{name} is no field of values")


def _parsed(name: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise bad_field(name, f"{name} is no JSON: {error}") from None


def _number(field: RequestField, value: Any) -> int | float:
    name, whole = field.name, field.kind == "whole"
    found: int | float | None = None
    if isinstance(value, str) and value.strip().isascii() and len(value) <= 40 and "_" not in value:
        try:
            found = int(value) if whole else float(value)
        except ValueError:
            found = None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = int(value) if whole and value == value and abs(value) < 1e30 and value == int(value) else value
    kind = "a whole number" if whole else "a number"
    if found is None or (whole and not isinstance(found, int)):
        raise bad_field(name, f"{name} must be {kind}, got '{shown(str(value)[:_LONGEST_NAME])}'")
    # Compared before it becomes a float, which the largest whole numbers do not fit.
    if not field.least <= found <= field.most:  # which holds for no NaN
        told = shown(str(value)[:_LONGEST_NAME])
        raise bad_field(name, f"{name} must be {kind} from {field.least} to {field.most}, got {told}")
    return found if whole else float(found)


def _strengths(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise bad_field(name, f"{name} is an object of names and strengths")
    strength = RequestField(name, "number", "", least=-100, most=100)
    return {str(adapter): float(_number(strength, number)) for adapter, number in value.items()}


def _window(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise bad_field(name, f"{name} is a pair of seconds, begin and end")
    second = RequestField(name, "number", "", least=0, most=3600)
    begin, end = (float(_number(second, each)) for each in value)
    if begin >= end:
        raise bad_field(name, f"{name} must begin before it ends, got {begin:g} and {end:g}")
    return begin, end
