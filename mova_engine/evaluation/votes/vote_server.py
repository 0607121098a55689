"""The server of a study: one page, a few addresses under /api, and clips by tokens. No system's name leaves it.

    GET  /                       the page (vote.html, vote.css, vote.js)
    POST /api/join               {"name"} -> {"rater": secret}
    GET  /api/state              the open pair, or a new one
    POST /api/votes              {"id", "pair", "answers", "seconds"}; the same id again is the same vote
    POST /api/undo               {"vote"}
    GET  /clips/TOKEN            a clip, by ranges

A rater's secret travels in the header X-Rater, which other sites' pages cannot send, and without which nothing is
taken. Answers are JSON; a refusal is {"error"} with a status of HTTP.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mova_engine.errors import MovaError
from mova_engine.evaluation.votes.clip_responses import filled_bytes
from mova_engine.evaluation.votes.study_copies import Key, StudyCopies
from mova_engine.evaluation.votes.vote_session import RefusedError, VoteSession
from mova_engine.web.page_headers import page_headers
from mova_engine.web.range_header import parse_range

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("vote.html", "text/html; charset=utf-8"),
    "/vote.css": ("vote.css", "text/css; charset=utf-8"),
    "/vote.js": ("vote.js", "text/javascript; charset=utf-8"),
}
# What a request may send, in bytes; answers to all questions are some hundred.
_MOST_BYTES = 1 << 14
_LONGEST = 200
_HEADERS = page_headers()
Result = TypeVar("Result")


def vote_app(
    session: VoteSession, copies: StudyCopies, keys: Mapping[int, Key], settings: Mapping[str, Any]
) -> "FastAPI":
    """The application. keys: {number in the store: (system, prompt)}. settings: told to the page."""
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse, Response, StreamingResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    files = {address: ((_PAGE / name).read_bytes(), kind) for address, (name, kind) in _FILES.items()}

    async def answer(work: Callable[[], Result], told: Callable[[Result], Any]) -> Response:
        try:
            return JSONResponse(told(await run_in_threadpool(work)), headers=_HEADERS)
        except RefusedError as error:
            return JSONResponse({"error": str(error)}, error.status, headers=_HEADERS)
        except MovaError:
            # Its message may name a file, and with it a system.
            return JSONResponse({"error": "the server cannot do this now"}, 503, headers=_HEADERS)

    @app.post("/api/join")
    async def join(request: Request) -> Response:
        sent = await _sent(request, name=str)
        if sent is None:
            return JSONResponse({"error": "a name is wanted"}, 422, headers=_HEADERS)
        return await answer(lambda: session.join(sent["name"]), lambda token: {"rater": token})

    @app.get("/api/state")
    async def state(request: Request) -> Response:
        beyond = request.query_params.get("more") == "1"

        def told(found: Any) -> dict[str, Any]:
            pair = found.pair and {"id": found.pair.pair, "left": found.pair.left, "right": found.pair.right}
            if pair and settings["show_prompts"]:
                pair["prompt"] = found.pair.prompt
            about = {"answered": found.answered, "last": found.last_vote, "exhausted": found.exhausted}
            return {
                **about,
                "pair": pair,
                "goal": session.rules.goal,
                "questions": list(session.rules.questions.items()),
            }

        return await answer(lambda: session.state(_rater(request), beyond), told)

    @app.post("/api/votes")
    async def votes(request: Request) -> Response:
        sent = await _sent(request, id=str, pair=str, answers=dict)
        if sent is None or not all(isinstance(value, str) for value in sent["answers"].values()):
            return JSONResponse({"error": "a vote has id, pair and answers"}, 422, headers=_HEADERS)
        seconds = sent.get("seconds")
        seconds = float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e7 else None
        values = (_rater(request), sent["id"], sent["pair"], sent["answers"], seconds)
        return await answer(lambda: session.vote(*values), lambda _: {"stored": sent["id"]})

    @app.post("/api/undo")
    async def undo(request: Request) -> Response:
        sent = await _sent(request, vote=str)
        if sent is None:
            return JSONResponse({"error": "the vote to take back is wanted"}, 422, headers=_HEADERS)
        return await answer(lambda: session.undo(_rater(request), sent["vote"]), lambda _: {"withdrawn": sent["vote"]})

    @app.api_route("/clips/{token}", methods=["GET", "HEAD"])
    async def clip(token: str, request: Request) -> Response:
        def find() -> tuple[Path, int] | None:
            found = session.clip(token) if len(token) <= _LONGEST else None
            return None if found is None or found[0] not in keys else copies.copy(*keys[found[0]], damaged=found[1])

        try:
            found = await run_in_threadpool(find)
        except MovaError:
            return JSONResponse({"error": "this clip cannot be shown"}, 503, headers=_HEADERS)
        if found is None:
            return JSONResponse({"error": "no such clip"}, 404, headers=_HEADERS)
        path, size = found
        headers = {**_HEADERS, "Accept-Ranges": "bytes"}
        try:
            part = parse_range(request.headers.get("range"), size)
        except ValueError:
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
        begin, end = part or (0, size)
        headers["Content-Length"] = str(end - begin)
        if part is not None:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        status = 200 if part is None else 206
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type="video/mp4")
        sent = filled_bytes(path, size, token, begin, end)
        return StreamingResponse(sent, status, headers, media_type="video/mp4")

    def add_page(address: str, data: bytes, kind: str) -> None:
        @app.get(address)
        async def page() -> Response:
            return Response(data, headers=_HEADERS, media_type=kind)

    for address, (data, kind) in files.items():
        add_page(address, data, kind)
    return app


def _rater(request: "Request") -> str:
    return request.headers.get("x-rater", "")[:_LONGEST]


async def _sent(request: "Request", **wanted: type) -> dict[str, Any] | None:
    """The JSON object of a request with the wanted fields; None for anything else, and for what is too large."""
    if "x-rater" not in request.headers:
        return None
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _MOST_BYTES:
            return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    fits = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in wanted.items())
    short = fits and all(len(found[name]) <= _LONGEST for name, kind in wanted.items() if kind is str)
    return found if short else None
