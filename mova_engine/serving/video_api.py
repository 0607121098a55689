"""The HTTP API of a server: OpenAI's /v1/videos with the engine's own additions, /health, /metrics, and the page.

Clients see jobs of their own key alone; another key's job is as one that there is not. What is refused says in a line
what is wrong, with the status of HTTP that fits.
"""

import errno
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from mova_engine import __version__
from mova_engine.errors import MovaError, suggest
from mova_engine.serving.access_guard import AccessGuard, Client
from mova_engine.serving.api_document import api_document
from mova_engine.serving.api_errors import ApiError, bad_field, no_video
from mova_engine.serving.api_gate import ApiGate
from mova_engine.serving.content_responses import file_response
from mova_engine.serving.input_files import InputFiles
from mova_engine.serving.job_feed import JobFeed
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.page_files import page_files
from mova_engine.serving.request_body import SentBody, read_body
from mova_engine.serving.request_fields import ENHANCE, checked, flat_fields
from mova_engine.serving.service import Service
from mova_engine.serving.service_metrics import KIND, ServiceMetrics
from mova_engine.serving.store_errors import (
    DiskFullError,
    IdempotencyConflict,
    QueueFullError,
    QuotaError,
    StillStoppingError,
    StoreRefusal,
)
from mova_engine.serving.video_job import VideoJob
from mova_engine.serving.video_object import EARLY_VARIANTS, VARIANTS, poll_after_ms, video_object
from mova_engine.serving.video_requests import NewVideo, VideoRequests

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

_Make = Callable[[SentBody, str], NewVideo]
_ID = re.compile(r"video_[0-9a-f]{24}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_DEFAULT_LIMIT, _MOST_LIMIT = 20, 100
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FIELD_BYTES = 1 << 20
# Requests that wait for a job to stop, and prompts that are rewritten, at a time.
_STOPPING, _ENHANCING = 8, 4


def video_app(store: JobStore, service: Service) -> "FastAPI":
    """The application on a store. It holds no state but what is in the store and its own counts."""
    import anyio
    from anyio.to_thread import run_sync
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse

    limits = service.limits
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, version=__version__)
    metrics, feed = ServiceMetrics(store), JobFeed(store)
    files = InputFiles(limits, service.allow_fetch)
    requests = VideoRequests(service, store, files)
    readers, stopping = anyio.CapacityLimiter(limits.readers), anyio.CapacityLimiter(_STOPPING)
    enhancing = anyio.CapacityLimiter(_ENHANCING)
    document = api_document(service)
    app.add_middleware(ApiGate, guard=AccessGuard(service.keys, service.local), metrics=metrics)
    _add_refusals(app)

    def seen(job: VideoJob) -> dict[str, Any]:
        return video_object(job, store)

    async def told(job: VideoJob) -> Response:
        found = await run_sync(seen, job)
        return JSONResponse(found, headers={"openai-poll-after-ms": str(poll_after_ms(job))})

    async def job_of(video: str, request: Request) -> VideoJob:
        owner = _client(request).owner
        job = await run_sync(store.get, video, owner) if _ID.fullmatch(video) else None
        if job is None:
            raise no_video()
        return job

    async def submit(request: Request, most_bytes: int, make: _Make, kind: str) -> Response:
        key = request.headers.get("idempotency-key")
        if key is not None and _KEY.fullmatch(key) is None:
            raise ApiError(400, "Idempotency-Key has 1 to 255 printable ASCII characters", code="invalid_header")
        _no_query(request)
        body = await read_body(request, most_bytes, max(_FIELD_BYTES, 2 * limits.image_bytes), limits.upload_s)
        owner = _client(request).owner
        try:
            new = await run_sync(make, body, owner, limiter=readers)
            digest = body.digest(kind)
        finally:
            body.close()
        return await told(await run_sync(_stored, store, new, key, digest))

    create_bytes = 3 * limits.image_bytes

    @app.post("/v1/videos")
    async def create(request: Request) -> Response:
        return await submit(request, create_bytes, requests.create, "create")

    @app.post("/v1/videos/edits")
    async def edit(request: Request) -> Response:
        return await submit(request, limits.video_bytes + _FIELD_BYTES, requests.edit, "edit")

    @app.post("/v1/videos/extensions")
    async def extend(request: Request) -> Response:
        return await submit(request, limits.video_bytes + _FIELD_BYTES, requests.extend, "extend")

    @app.post("/v1/videos/characters")
    @app.get("/v1/videos/characters/{character_id}")
    async def characters() -> Response:
        words = "characters are not implemented: a model of MOVA takes a first frame, input_reference, and a prompt"
        raise ApiError(501, words, code="not_implemented", headers={"x-should-retry": "false"})

    @app.post("/v1/videos/{video_id}/remix")
    async def remix(video_id: str, request: Request) -> Response:
        source = await job_of(video_id, request)
        return await submit(request, create_bytes, lambda body, _: requests.remix(body, source), f"remix {source.id}")

    @app.get("/v1/videos")
    async def listed(request: Request) -> Response:
        after, limit, order = _page_of(request)
        owner = _client(request).owner
        try:
            jobs, more = await run_sync(lambda: store.list(owner, after, limit, order))
        except LookupError:
            raise ApiError(404, "there is no such video to go on after", param="after", code="not_found") from None
        data = await run_sync(lambda: [seen(job) for job in jobs])
        ends = {"first_id": jobs[0].id if jobs else None, "last_id": jobs[-1].id if jobs else None}
        return JSONResponse({"object": "list", "data": data, **ends, "has_more": more})

    @app.get("/v1/videos/{video_id}")
    async def retrieve(video_id: str, request: Request) -> Response:
        return await told(await job_of(video_id, request))

    @app.delete("/v1/videos/{video_id}")
    async def delete(video_id: str, request: Request) -> Response:
        job = await job_of(video_id, request)
        if not await run_sync(store.delete, job.id, job.owner, limiter=stopping):
            raise no_video()
        return JSONResponse({"id": job.id, "deleted": True, "object": "video.deleted"})

    @app.post("/v1/videos/{video_id}/cancel")
    async def cancel(video_id: str, request: Request) -> Response:
        job = await job_of(video_id, request)
        found = await run_sync(store.request_cancel, job.id, job.owner)
        if found is None:
            raise no_video()
        return await told(found)

    @app.api_route("/v1/videos/{video_id}/content", methods=["GET", "HEAD"])
    async def content(video_id: str, request: Request) -> Response:
        variant = _one_of(request, "variant", VARIANTS, "video")
        job = await job_of(video_id, request)
        name, kind = VARIANTS[variant]
        if job.status != "completed" and variant not in EARLY_VARIANTS:
            _refuse_early(job)
        try:
            path = store.file(job.id, name)
            return await run_sync(file_response, path, kind, f"{job.id}-{name}", request)
        except FileNotFoundError:
            raise ApiError(404, f"this video has no {variant}", param="variant", code="not_found") from None

    @app.get("/v1/videos/{video_id}/events")
    async def events(video_id: str, request: Request) -> Response:
        job = await job_of(video_id, request)
        sent = request.headers.get("last-event-id", "")
        last = int(sent) if sent.isascii() and sent.isdecimal() and len(sent) < 19 else None
        if job.ended and last == job.version:
            return Response(status_code=204)  # which ends a browser's asking
        # One client's streams leave room for others'.
        if feed.watchers >= limits.streams or feed.watchers_of(job.owner) >= limits.streams_each:
            raise ApiError(429, "too many streams are open", code="too_many_streams", headers={"Retry-After": "5"})
        return StreamingResponse(feed.events(job, last, seen), media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [service.model_object(model) for model in service.offered()]})

    @app.get("/v1/models/{model_id:path}")
    async def model(model_id: str) -> Response:
        try:
            return JSONResponse(service.model_object(service.model(model_id)))
        except ApiError as error:
            raise ApiError(404, error.message, param="model", code="model_not_found") from None

    @app.post("/v1/prompts/enhance")
    async def enhance(request: Request) -> Response:
        enhancer = service.enhancer
        if enhancer is None:
            raise ApiError(400, "this server rewrites no prompts: see mova serve --help", code="enhancement_off")
        body = await read_body(request, create_bytes, max(_FIELD_BYTES, 2 * limits.image_bytes), limits.upload_s)

        def prepared() -> tuple[str, Any]:
            given = flat_fields(body.fields, ENHANCE)
            text = checked(ENHANCE["prompt"], given.get("prompt", ""))
            if not text.strip() or len(text) > limits.prompt_characters:
                most = limits.prompt_characters
                raise bad_field("prompt", f"a prompt is wanted, of at most {most} characters", "missing_field")
            clip = service.model(given.get("model")).clip
            return text, files.picture("input_reference", body, given.get("input_reference"), clip)

        try:
            text, frame = await run_sync(prepared, limiter=readers)
        finally:
            body.close()
        found = await run_sync(enhancer, text, frame, limiter=enhancing)
        return JSONResponse(found.as_json())

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        reason = await run_sync(service.ready)
        return JSONResponse({"status": "ok", "live": True, "ready": reason is None, "reason": reason})

    @app.api_route("/health/ready", methods=["GET", "HEAD"])
    async def ready() -> Response:
        reason = await run_sync(service.ready)
        if reason is not None:
            raise ApiError(503, reason, code="not_ready", headers={"Retry-After": "5"})
        return JSONResponse({"status": "ok", "ready": True})

    @app.get("/metrics")
    async def figures(request: Request) -> Response:
        if not _client(request).metrics:
            raise ApiError(403, "this key may not read the figures of the server", code="metrics_not_allowed")
        return Response(await run_sync(metrics.text), headers={"Content-Type": KIND})

    @app.get("/openapi.json")
    async def described() -> Response:
        return JSONResponse(document)

    def add_page(address: str, data: bytes, headers: dict[str, str]) -> None:
        @app.get(address)
        async def page() -> Response:
            return Response(data, headers=headers)

    for address, data, headers in page_files():
        add_page(address, data, headers)
    return app


def _stored(store: JobStore, new: NewVideo, key: str | None, digest: str) -> VideoJob:
    """The job in the store, its files written before; an earlier one for a key that was used for the same request."""
    video = new.job.id
    kept = False
    try:
        for name, data in new.inputs.items():
            store.put(video, name, data)
        job = store.add(new.job, key, digest)
        kept = job.id == video
        return job
    finally:
        if not kept:
            store.files.remove(video)


def _client(request: "Request") -> Client:
    """Who sent it. Only what is open to all can be asked by nobody, and that asks for no client."""
    client: Client | None = request.state.client
    if client is None:
        raise ApiError(401, "this server wants a key", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    return client


def _query(request: "Request", *known: str) -> dict[str, str]:
    """The parameters of the address. Raises ApiError for an unknown one, and for one that is there twice."""
    found = dict[str, str]()
    for name, value in request.query_params.multi_items():
        if name not in known:
            words = f"unknown parameter '{name[:80]}'.{suggest(name[:80], known)}"
            raise bad_field(name[:80], words, "unknown_parameter")
        if name in found:
            raise bad_field(name, f"{name} is there twice", "duplicate_parameter")
        found[name] = value
    return found


def _no_query(request: "Request") -> None:
    _query(request)


def _one_of(request: "Request", name: str, known: Any, default: str) -> str:
    # `version` only makes the addresses of files that change different ones.
    value = _query(request, name, "version").get(name, default)
    if value not in known:
        words = f"{name} '{value[:80]}' is none of {', '.join(known)}.{suggest(value[:80], known)}"
        raise bad_field(name, words)
    return value


def _page_of(request: "Request") -> tuple[str | None, int, Literal["asc", "desc"]]:
    """What a list is asked for: after, limit, order."""
    given = _query(request, "after", "limit", "order")
    order, text = given.get("order", "desc"), given.get("limit", str(_DEFAULT_LIMIT))
    if order not in ("asc", "desc"):
        raise bad_field("order", f"order is asc or desc, got '{order[:80]}'")
    limit = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    if not 1 <= limit <= _MOST_LIMIT:
        raise bad_field("limit", f"limit must lie between 1 and {_MOST_LIMIT}, got '{text[:80]}'")
    after = given.get("after")
    if after is not None and _ID.fullmatch(after) is None:
        raise ApiError(404, "there is no such video to go on after", param="after", code="not_found")
    return after, limit, "asc" if order == "asc" else "desc"


def _refuse_early(job: VideoJob) -> None:
    """Say why a job has no clip."""
    if job.status == "failed":
        words = f"the video was not made: {job.error_message or job.error_code}"
        raise ApiError(409, words, code=job.error_code or "failed", headers={"x-should-retry": "false"})
    wait = "1" if job.eta_s is None else str(max(1, min(3600, round(job.eta_s))))
    headers = {"x-should-retry": "false", "Retry-After": wait}
    raise ApiError(409, f"the video is not ready: it is {job.status}", code="video_not_ready", headers=headers)


def _add_refusals(app: "FastAPI") -> None:
    """How errors are answered: all in OpenAI's form, and none with the server's own affairs."""
    from fastapi import Request
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException

    def answer(error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        words = {404: "there is nothing at this address", 405: "this method is not allowed here"}
        text = words.get(error.status_code, "the request cannot be answered")
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        return answer(ApiError(error.status_code, text, code=code, headers=error.headers))

    @app.exception_handler(MovaError)
    async def failed(request: Request, error: MovaError) -> Response:
        return answer(_refusal_of(error))


def _refusal_of(error: MovaError) -> ApiError:
    """What a client is told of an error of the store."""
    if isinstance(error, IdempotencyConflict):
        return ApiError(409, str(error), code="idempotency_conflict", headers={"x-should-retry": "false"})
    if isinstance(error, StoreRefusal):
        headers = {"Retry-After": str(max(1, round(error.retry_after_s)))}
        if isinstance(error, QueueFullError | QuotaError):
            code = "queue_full" if isinstance(error, QueueFullError) else "quota_exceeded"
            return ApiError(429, str(error), code=code, headers=headers)
        if isinstance(error, StillStoppingError):
            return ApiError(409, str(error), code="still_stopping", headers=headers)
        if isinstance(error, DiskFullError):
            return ApiError(507, "the server's disk is full: nothing was queued", code="disk_full", headers=headers)
        return ApiError(503, "the server is busy: try again", code="busy", headers=headers)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return ApiError(507, "the server's disk is full: nothing was queued", code="disk_full")
    # Its message may name files of the server.
    return ApiError(503, "the server cannot do this now", code="unavailable", headers={"Retry-After": "5"})
