"""The API's own description (OpenAPI 3.1), from the same declarations by which requests are checked."""

from collections.abc import Iterable, Mapping
from typing import Any

from mova_engine import __version__
from mova_engine.serving.request_body import FORM, JSON
from mova_engine.serving.request_fields import CREATE, EDIT, ENHANCE, EXTEND, OWN, REMIX, RequestField
from mova_engine.serving.service import Service
from mova_engine.serving.video_job import STATUSES
from mova_engine.serving.video_object import VARIANTS

_ID = r"^video_[0-9a-f]{24}$"
_NULL = {"type": "null"}
_WHOLE, _NUMBER, _TEXT, _TRUTH = ({"type": kind} for kind in ("integer", "number", "string", "boolean"))
# What any request may be answered with: without a key, by a page of another site, when the server cannot.
_ANY = {
    401: "No key, or an unknown one.",
    403: "Not from here: another site's page, or a name of the server that is not its own.",
    500: "The server made a mistake.",
    503: "The server cannot do this now.",
}
_SENT = {
    400: "A field is wrong; `error.param` says which, `error.message` what to send instead.",
    408: "The request was not there in time.",
    413: "The request, or a file in it, is too large.",
    415: "Neither JSON nor a form.",
}
_QUEUED = {
    409: "The Idempotency-Key was used for another request.",
    429: "The queue is full, or the key has as many jobs as it may have; see Retry-After.",
    507: "The server's disk is full.",
}
_MISSING = {404: "There is no such video; it may be another key's."}
_WRONG = {**_MISSING, 400: "A parameter is wrong."}


def api_document(service: Service) -> dict[str, Any]:
    """The document of a server, with its models and limits."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "mova_engine",
            "version": __version__,
            "description": "Clips of video and sound from prompts and first frames, by OpenAI's /v1/videos.",
        },
        "paths": _paths(service),
        "components": {"schemas": _schemas(service)},
    }
    if service.keys is not None:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(schema), _NULL]}


def _object(fields: Mapping[str, Any], closed: bool = False, required: Iterable[str] | None = None) -> dict[str, Any]:
    wanted = list(fields) if required is None else list(required)
    found: dict[str, Any] = {"type": "object", "properties": dict(fields)}
    if wanted:
        found["required"] = wanted
    return {**found, "additionalProperties": False} if closed else found


def _schemas(service: Service) -> dict[str, Any]:
    error = {"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)}
    own = {
        "stage": _TEXT,
        "step": _WHOLE,
        "steps": _WHOLE,
        "eta_s": _or_null(_NUMBER),
        "queue_position": _or_null(_WHOLE),
        "started_at": _or_null(_WHOLE),
        **dict.fromkeys(("seed", "width", "height", "frames"), _WHOLE),
        "fps": _NUMBER,
        "mode": {"enum": ["generate", "edit", "extension"]},
        "enhanced_prompt": _or_null(_TEXT),
        "preview": _TRUTH,
        "cancelling": _TRUTH,
        "settings": {"type": "object"},
        "facts": {"type": "object"},
    }
    video = {
        "id": {"type": "string", "pattern": _ID},
        "object": {"const": "video"},
        "created_at": _WHOLE,
        "completed_at": _or_null(_WHOLE),
        "expires_at": _or_null(_WHOLE),
        "status": {"enum": list(STATUSES)},
        "progress": {"type": "integer", "minimum": 0, "maximum": 100},
        "model": _TEXT,
        "prompt": _TEXT,
        "seconds": _TEXT,
        "size": _TEXT,
        "error": _or_null(_object({"code": _TEXT, "message": _TEXT})),
        "remixed_from_video_id": _or_null(_TEXT),
        "x_mova": _object(own),
    }
    model = {"id": _TEXT, "object": {"const": "model"}, "created": _WHOLE, "owned_by": _TEXT, OWN: {"type": "object"}}
    ends = {"first_id": _or_null(_TEXT), "last_id": _or_null(_TEXT), "has_more": _TRUTH}
    enhanced = {
        **dict.fromkeys(("prompt", "original", "backend", "model"), _TEXT),
        "used": {"enum": ["enhanced", "own"]},
        "warning": _or_null(_TEXT),
        "attempts": _WHOLE,
    }
    state = {"status": _TEXT, "live": _TRUTH, "ready": _TRUTH, "reason": _or_null(_TEXT)}
    return {
        "Error": _object({"error": _object(error)}),
        "Video": _object(video),
        "VideoList": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Video")}, **ends}),
        "DeletedVideo": _object({"id": _TEXT, "deleted": _TRUTH, "object": {"const": "video.deleted"}}),
        "Model": _object(model),
        "ModelList": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}),
        "EnhancedPrompt": _object(enhanced),
        "Health": _object(state, required=("status", "ready")),
        "PictureReference": {
            "description": "A picture in base64, or an https address where the server fetches such.",
            **_object({"image_url": {"type": "string", "pattern": "^(data:image/|https://)"}}, closed=True),
        },
        "VideoReference": _object({"id": {"type": "string", "pattern": _ID}}, closed=True),
        **{
            f"{name}Request": _request_schema(fields, service, required)
            for name, (fields, required) in _REQUESTS.items()
        },
    }


_REQUESTS: Mapping[str, tuple[Mapping[str, RequestField], tuple[str, ...]]] = {
    "Create": (CREATE, ("prompt",)),
    "Remix": (REMIX, ("prompt",)),
    "Edit": (EDIT, ("prompt", "video")),
    "Extend": (EXTEND, ("prompt", "video", "seconds")),
    "Enhance": (ENHANCE, ("prompt",)),
}


def _request_schema(
    fields: Mapping[str, RequestField], service: Service, required: tuple[str, ...], files: bool = False
) -> dict[str, Any]:
    """What a request may send; in a form, numbers are texts and pictures files."""
    known = {name: _field_schema(field, service, files) for name, field in fields.items()}
    inner = {name: known[name] for name in known if fields[name].kind not in ("picture", "clip")}
    known[OWN] = {"description": "The same fields, gathered.", **_object(inner, closed=True, required=())}
    return _object(known, closed=True, required=required)


def _field_schema(field: RequestField, service: Service, files: bool) -> dict[str, Any]:
    about = {"description": field.about}
    if field.name == "model":
        return {**about, "type": "string", "enum": [model.name for model in service.models]}
    if field.name == "size":
        return {**about, "type": "string", "pattern": r"^\d{1,5}[xX]\d{1,5}$"}
    if field.kind == "text":
        least = {"minLength": 1} if field.name in ("prompt", "enhanced_prompt") else {}
        return {**about, "type": "string", **least, "maxLength": service.limits.prompt_characters}
    if field.kind == "choice":
        return {**about, "enum": list(field.choices)}
    if field.kind in ("whole", "number"):
        most = min(field.most, service.limits.steps) if field.name == "num_inference_steps" else field.most
        kind = "integer" if field.kind == "whole" else "number"
        numeric = {"type": kind, "minimum": field.least, "maximum": most}
        digits = r"^\d{1,19}$" if kind == "integer" else r"^-?\d{1,6}(\.\d{1,6})?$"
        return {**about, "anyOf": [numeric, {"type": "string", "pattern": digits}]}
    if field.kind == "strengths":
        return {**about, "type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}
    if field.kind == "window":
        second = {"type": "number", "minimum": 0, "maximum": 3600}
        return {**about, "type": "array", "items": second, "minItems": 2, "maxItems": 2}
    if files:
        return {**about, "type": "string", "format": "binary"}
    return {**about, **_ref("PictureReference" if field.kind == "picture" else "VideoReference")}


def _body(name: str, service: Service) -> dict[str, Any]:
    fields, required = _REQUESTS[name]
    form = _request_schema(fields, service, required, files=True)
    return {"required": True, "content": {JSON: {"schema": _ref(f"{name}Request")}, FORM: {"schema": form}}}


def _answers(schema: str | None, refused: Mapping[int, str], **more: Any) -> dict[str, Any]:
    """Answers of an operation: the good one, and refusals by status."""
    good: dict[str, Any] = {"description": "Done."}
    if schema is not None:
        good["content"] = {JSON: {"schema": _ref(schema)}}
    error = {JSON: {"schema": _ref("Error")}}
    bad = {str(status): {"description": words, "content": error} for status, words in {**refused, **_ANY}.items()}
    return {"200": {**good, **more}, **bad}


def _parameter(name: str, place: str, schema: Mapping[str, Any], about: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": dict(schema), "description": about}


def _paths(service: Service) -> dict[str, Any]:
    video = _parameter("video_id", "path", {"type": "string", "pattern": _ID}, "The video's id.")
    key = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
    again = _parameter("Idempotency-Key", "header", key, "The same key and request again give the same job.")
    polled = {"headers": {"openai-poll-after-ms": {"schema": _WHOLE, "description": "When to ask again."}}}
    of_list = [
        _parameter("after", "query", {"type": "string", "pattern": _ID}, "The last id of the page before."),
        _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 100}, "Videos of a page."),
        _parameter("order", "query", {"enum": ["asc", "desc"]}, "By age."),
    ]
    variant = _parameter("variant", "query", {"enum": list(VARIANTS)}, "Which file.")
    part = _parameter("Range", "header", {"type": "string"}, "A part, bytes=BEGIN-END.")
    as_bytes = {"type": "string", "format": "binary"}
    kinds = {kind: {"schema": {"type": "object"} if kind == JSON else as_bytes} for _, kind in VARIANTS.values()}
    files = _answers(None, {**_MISSING, 400: "Unknown variant.", 409: "The clip is not made.", 416: "No such part."})
    files["200"]["content"] = kinds
    files |= {"206": {"description": "A part.", "content": kinds}, "304": {"description": "The client has it."}}
    stream = _answers(None, {**_MISSING, 429: "Too many streams."}, content={"text/event-stream": {}})
    stream["204"] = {"description": "Nothing will follow what the client has seen."}
    not_made = {"501": {"description": "Not implemented.", "content": {JSON: {"schema": _ref("Error")}}}}

    def made(name: str, about: str, parameters: list[Any], refused: Mapping[int, str]) -> dict[str, Any]:
        answers = _answers("Video", {**_SENT, **_QUEUED, **refused}, **polled)
        return _operation(about, answers, [*parameters, again], _body(name, service))

    return {
        "/v1/videos": {
            "post": made("Create", "Queue a clip.", [], {}),
            "get": _operation("Your videos, page by page.", _answers("VideoList", _WRONG), of_list),
        },
        "/v1/videos/{video_id}": {
            "get": _operation("A video's state.", _answers("Video", _MISSING, **polled), [video]),
            "delete": _operation(
                "Stop a video and remove it; answered when all of it is gone.",
                _answers("DeletedVideo", {**_MISSING, 409: "It has not stopped yet; ask again."}),
                [video],
            ),
        },
        "/v1/videos/{video_id}/content": {"get": _operation("A file of a video.", files, [video, variant, part])},
        "/v1/videos/{video_id}/remix": {
            "post": made("Remix", "A clip as this one, with another prompt.", [video], _MISSING)
        },
        "/v1/videos/{video_id}/cancel": {
            "post": _operation("Stop a video within a step.", _answers("Video", _MISSING, **polled), [video])
        },
        "/v1/videos/{video_id}/events": {"get": _operation("A video's changes as they come.", stream, [video])},
        "/v1/videos/edits": {"post": made("Edit", "A clip, or a window of it, made anew.", [], _MISSING)},
        "/v1/videos/extensions": {"post": made("Extend", "A clip that goes on from another.", [], _MISSING)},
        "/v1/videos/characters": {"post": _operation("Not implemented.", not_made)},
        "/v1/videos/characters/{character_id}": {
            "get": _operation("Not implemented.", not_made, [_parameter("character_id", "path", _TEXT, "Any.")])
        },
        "/v1/models": {"get": _operation("What is served, and what fits.", _answers("ModelList", {}))},
        "/v1/models/{model_id}": {
            "get": _operation(
                "One of them.",
                _answers("Model", {404: "There is no such model."}),
                [_parameter("model_id", "path", {"type": "string", "minLength": 1}, "Its name.")],
            )
        },
        "/v1/prompts/enhance": {
            "post": _operation("Rewrite a prompt.", _answers("EnhancedPrompt", _SENT), None, _body("Enhance", service))
        },
        "/health": {"get": _operation("Whether the server lives.", _answers("Health", {}))},
        "/health/ready": {"get": _operation("Whether it can make clips.", _answers("Health", {}))},
        "/metrics": {
            "get": _operation("Figures for Prometheus.", _answers(None, {}, content={"text/plain": {"schema": _TEXT}}))
        },
    }


def _operation(
    about: str, answers: Mapping[str, Any], parameters: list[Any] | None = None, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": about, "responses": dict(answers)}
    if parameters:
        found["parameters"] = parameters
    return {**found, "requestBody": dict(body)} if body else found
