"""The API without a socket: what is refused, in which words, and what is nobody else's."""

import base64
import io
import json
import struct
import zlib

import pytest
from api_servers import finish, limits, open_store, service
from PIL import Image

from mova_engine.errors import MovaError
from mova_engine.serving.api_keys import ApiKeys, check_reach
from mova_engine.serving.service import frames_of_seconds

pytestmark = pytest.mark.serving
TestClient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed").TestClient


def app_client(store, keys=None, **more):
    """A client of an application on a store, as a program of this machine."""
    from mova_engine.serving.video_api import video_app

    return TestClient(video_app(store, service(keys=keys, **more)), base_url="http://localhost")


@pytest.fixture
def store(tmp_path):
    found = open_store(tmp_path)
    yield found
    found.close()


@pytest.fixture
def client(store):
    return app_client(store)


@pytest.fixture
def two_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# clients\nann ann-has-this-secret metrics\nbob bob-has-another-secret\n")
    return ApiKeys.read(path)


def bearer(name):
    secret = {"ann": "ann-has-this-secret", "bob": "bob-has-another-secret"}[name]
    return {"Authorization": f"Bearer {secret}"}


def png(width=64, height=48):
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


def claimed_png(width, height):
    """A PNG of some bytes that claims to be huge: a bomb of pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("sent", "param", "words"),
    [
        ({}, "prompt", "a prompt is wanted"),
        ({"prompt": " \n"}, "prompt", "a prompt is wanted"),
        ({"prompt": "a", "promt": "b"}, "promt", "Did you mean 'prompt'"),
        (
            {"prompt": "a", "x_mova": {"num_inference_step": 3}},
            "num_inference_step",
            "Did you mean 'num_inference_steps'",
        ),
        ({"prompt": "a", "seed": 1, "x_mova": {"seed": 1}}, "seed", "both in the request and in x_mova"),
        ({"prompt": "a", "size": "60x48"}, "size", "the nearest sizes are 64x48"),
        ({"prompt": "a", "size": "wide"}, "size", "form WIDTHxHEIGHT"),
        ({"prompt": "a", "width": 64}, "height", "go together"),
        ({"prompt": "a", "num_frames": 32}, "num_frames", "nearest number is 29"),
        ({"prompt": "a", "num_frames": 999}, "num_frames", "nearest number is 33"),
        ({"prompt": "a", "seconds": "8"}, "seconds", "193 frames, and this server makes 33"),
        ({"prompt": "word " * 40}, "prompt", "41 tokens, and small reads 40"),
        ({"prompt": "a", "negative_prompt": "word " * 40}, "negative_prompt", "41 tokens"),
        ({"prompt": "a\0b"}, "prompt", "zero character"),
        ({"prompt": 5}, "prompt", "must be a text"),
        ({"prompt": "a", "seed": -1}, "seed", "from 0 to 9223372036854775807"),
        ({"prompt": "a", "seed": True}, "seed", "must be a whole number"),
        ({"prompt": "a", "fps": "nan"}, "fps", "must be a number"),
        ({"prompt": "a", "fps": 500}, "fps", "at most 120"),
        ({"prompt": "a", "n": 2}, "n", "from 1 to 1"),
        ({"prompt": "a", "num_inference_steps": 500}, "num_inference_steps", "at most 200 steps"),
        ({"prompt": "a", "guidance": "none", "guidance_scale": 3}, None, "guidance_scale has no effect"),
        ({"prompt": "a", "guide_from": 0.9, "guide_until": 0.5}, "guide_until", "must end after it begins"),
        ({"prompt": "a", "cache": "1.6"}, "cache", "not calibrated"),
        ({"prompt": "a", "cache": "fast"}, None, "cache is a speed-up"),
        ({"prompt": "a", "solver": "eular"}, "solver", "Did you mean 'euler'"),
        ({"prompt": "a", "adapters": {"styl": 1}}, "adapters", "Did you mean 'style'"),
        ({"prompt": "a", "adapters": {"style": "x"}}, "adapters", "must be a number"),
        ({"prompt": "a", "enhance": "endpoint"}, "enhance", "this server enhances prompts by: none"),
        ({"prompt": "a", "output_path": "/tmp/x"}, "output_path", "not the clients'"),
        ({"prompt": "a", "input_reference": "/etc/passwd"}, "input_reference", "takes no paths"),
        ({"prompt": "a", "input_reference": {"image_url": "file:///etc/passwd"}}, "input_reference", "takes no paths"),
        ({"prompt": "a", "input_reference": {"image_url": "https://x.example/a"}}, "input_reference", "fetches no"),
        ({"prompt": "a", "input_reference": {"file_id": "file-1"}}, "input_reference", "file_id"),
        ({"prompt": "a", "input_reference": {"image_url": "data:image/png;base64,@@"}}, "input_reference", "no base64"),
        (
            {"prompt": "a", "input_reference": {"image_url": "data:image/png,abc"}},
            "input_reference",
            "has the form data",
        ),
    ],
)
def test_a_refusal_names_the_field_and_the_way_out(client, store, sent, param, words):
    answer = client.post("/v1/videos", json=sent)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and words in error["message"]
    assert sum(store.counts().values()) == 0 and not list(store.files.videos.iterdir())


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "application/json", 400, "invalid_json"),
        (b'{"prompt": NaN}', "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b'{"prompt": [' + b"[]," * 200_000 + b"[]]}", "application/json", 400, "invalid_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_json"),
        (b"\xff\xfe{}", "application/json", 400, "invalid_json"),
        (b'"prompt"', "application/json", 400, "invalid_json"),
        (b"<prompt/>", "application/xml", 415, "unsupported_content_type"),
        (b"--x\r\nno form", "multipart/form-data; boundary=x", 400, "invalid_form"),
        (b"", "multipart/form-data", 400, "invalid_form"),
        (b"prompt=a&prompt=b", "application/x-www-form-urlencoded", 400, "duplicate_field"),
        (b"x[a][b][c][d][e][f]=1", "application/x-www-form-urlencoded", 400, "unknown_field"),
    ],
)
def test_bodies_that_cannot_be_read(client, body, kind, status, code):
    answer = client.post("/v1/videos", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("call", ["edits", "extensions"])
def test_a_source_that_is_too_large_for_the_model_is_refused(client, store, call):
    source = client.post("/v1/videos", json={"prompt": "a", "model": "large"}).json()["id"]
    assert finish(store, store.claim("w", ["large"]), "w")
    sent = {"prompt": "b", "video": {"id": source}, "model": "small"}
    more = {"seconds": 4} if call == "extensions" else {}
    answer = client.post(f"/v1/videos/{call}", json={**sent, **more})
    assert answer.status_code == 400 and "of 640x352 small makes 0 frames" in answer.json()["error"]["message"]


def test_a_mistake_of_the_server_is_counted_and_tells_nothing(store):
    def broken(model, settings):
        raise RuntimeError("/secret/place")

    client = app_client(store, predict=broken)
    answer = client.post("/v1/videos", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text and answer.headers["x-content-type-options"] == "nosniff"
    assert 'route="/v1/videos",status="500"} 1.0' in client.get("/metrics").text
    assert not list(store.files.videos.iterdir())


def test_a_body_is_not_read_beyond_the_limit(store):
    read = 0

    def endless():
        nonlocal read
        while read < 100 << 20:
            read += 1 << 16
            yield bytes(1 << 16)

    client = app_client(store, limits=limits(image_bytes=1 << 18))
    kind = {"Content-Type": "application/json"}
    answer = client.post("/v1/videos", content=endless(), headers=kind)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    stated = client.post("/v1/videos", content=b"{}", headers={**kind, "Content-Length": "99999999999"})
    assert stated.status_code == 413


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"not a picture at all" * 9, "not a readable picture"),
        (png()[:60], "cannot be read"),
        (claimed_png(60_000, 60_000), "pixels"),
        (claimed_png(9_000, 9_000), "more than 64000000"),
        (b"PK\x03\x04" + bytes(400), "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "cannot be read"),
    ],
)
def test_bad_pictures_are_the_senders_mistake(client, store, data, words):
    answer = client.post("/v1/videos", data={"prompt": "a"}, files={"input_reference": ("x.png", data)})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and words in message and "/tmp" not in message
    assert not list(store.files.videos.iterdir())


def test_lines_of_forms_end_as_they_were_typed(client, store):
    """Browsers send CR LF, JSON what was typed: the same words are the same clip."""
    typed = {"prompt": "a ball\n\nand rain", "negative_prompt": "noise\nblur", "enhanced_prompt": "a red ball\n\nrain"}
    sent = {name: text.replace("\n", "\r\n") for name, text in typed.items()}
    answers = [client.post("/v1/videos", **{kind: sent if kind != "json" else typed}) for kind in ("json", "data")]
    answers.append(client.post("/v1/videos", data=sent, files={"input_reference": ("a.png", png())}))
    assert [answer.status_code for answer in answers] == [200] * 3
    for answer in answers:
        settings = store.get(answer.json()["id"]).settings
        assert {name: getattr(settings, name) for name in typed} == typed


def test_a_picture_is_stored_as_the_engine_reads_it(client, store):
    address = "data:image/png;base64," + base64.b64encode(png(200, 90)).decode()
    sent = {"prompt": "a", "input_reference": {"image_url": address}, "last_frame": {"image_url": address}}
    made = client.post("/v1/videos", json=sent).json()
    for name in ("first.png", "last.png"):
        with Image.open(store.file(made["id"], name)) as image:
            assert image.size == (64, 48) and image.getpixel((5, 5)) == (200, 30, 30)


def test_another_keys_jobs_are_not_there(store, two_keys):
    client = app_client(store, two_keys)
    mine = client.post("/v1/videos", json={"prompt": "secret words"}, headers=bearer("ann")).json()["id"]
    finish(store, store.claim("w", ["small"]), "w")
    for method, place in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/content"),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("POST", "/remix"),
    ):
        other = client.request(method, f"/v1/videos/{mine}{place}", headers=bearer("bob"))
        none = client.request(method, f"/v1/videos/video_{'0' * 24}{place}", headers=bearer("bob"))
        assert other.status_code == none.status_code == 404 and other.json() == none.json()
    source = {"prompt": "a", "video": {"id": mine}}
    assert client.post("/v1/videos/edits", json=source, headers=bearer("bob")).status_code == 404
    assert client.get("/v1/videos", headers=bearer("bob")).json()["data"] == []
    assert client.get("/v1/videos", params={"after": mine}, headers=bearer("bob")).status_code == 404
    assert client.get("/metrics", headers=bearer("bob")).status_code == 403
    figures = client.get("/metrics", headers=bearer("ann")).text
    assert 'mova_jobs{status="completed"} 1.0' in figures
    assert not any(word in figures for word in (mine, "secret", "ann", "bob"))
    assert client.get(f"/v1/videos/{mine}", headers=bearer("ann")).json()["status"] == "completed"


def test_idempotency_keys_are_each_owners_own(store, two_keys):
    client = app_client(store, two_keys)
    sent = {"prompt": "a", "seed": 1}

    def post(name, body=sent):
        return client.post("/v1/videos", json=body, headers={**bearer(name), "Idempotency-Key": "k"})

    first, again, other = post("ann").json()["id"], post("ann").json()["id"], post("bob").json()["id"]
    assert first == again != other
    assert len(list(store.files.videos.iterdir())) == 2
    conflict = post("ann", {"prompt": "b"})
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert conflict.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("sent", [{}, {"Authorization": "Bearer wrong-wrong-wrong"}, {"Authorization": "Basic YQ=="}])
def test_without_a_key_nothing_but_the_page_is_answered(store, two_keys, sent):
    client = app_client(store, two_keys)
    for place in ("/v1/videos", "/v1/models", "/metrics", "/v1/videos/x/content"):
        answer = client.get(place, headers=sent)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    for place in ("/", "/health", "/openapi.json"):
        assert client.get(place, headers=sent).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "localhost.example"},
        {"Origin": "https://other.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_are_kept_away(client, headers):
    for method, place in (("POST", "/v1/videos"), ("GET", "/v1/videos"), ("DELETE", "/v1/videos/x")):
        answer = client.request(method, place, headers=headers)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    assert client.get("/v1/videos", headers={"Origin": "http://localhost"}).status_code == 200


def test_ids_lead_nowhere_else(client, store):
    assert (store.files.folder / "jobs.sqlite").exists()  # there is something to reach
    for name in (
        "..",
        "../jobs.sqlite",
        "%2e%2e",
        "..%2f..%2fjobs.sqlite",
        "video_" + "0" * 23 + "/",
        "video_%00",
        "ä" * 24,
    ):
        for place in ("", "/content", "/events"):
            answer = client.get(f"/v1/videos/{name}{place}")
            assert answer.status_code in (404, 405), answer.text
    assert client.get("/page/../service.py").status_code == 404
    assert client.get("/page/%2e%2e/service.py").status_code == 404


def test_parts_of_a_clip_make_the_whole(client, store):
    video = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    early = client.get(f"/v1/videos/{video}/content")
    assert early.status_code == 409 and early.headers["x-should-retry"] == "false"
    finish(store, store.claim("w", ["small"]), "w")
    place = f"/v1/videos/{video}/content"
    whole = client.get(place)
    tag, data = whole.headers["etag"], whole.content
    assert whole.headers["content-type"] == "video/mp4" and data[4:8] == b"ftyp"
    parts = [client.get(place, headers={"Range": f"bytes={n}-{n + 999}"}) for n in range(0, len(data), 1000)]
    assert b"".join(part.content for part in parts) == data and {part.status_code for part in parts} == {206}
    assert client.get(place, headers={"Range": f"bytes={len(data)}-"}).status_code == 416
    assert client.get(place, headers={"If-None-Match": tag}).status_code == 304
    old = client.get(place, headers={"Range": "bytes=0-9", "If-Range": '"old"'})
    assert old.status_code == 200 and old.content == data
    head = client.head(place)
    assert head.content == b"" and head.headers["content-length"] == str(len(data))
    unknown = client.get(place, params={"variant": "thumb"})
    assert unknown.status_code == 400 and "thumbnail" in unknown.json()["error"]["message"]


def test_events_end_with_the_job(client, store):
    video = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    finish(store, store.claim("w", ["small"]), "w")
    text = client.get(f"/v1/videos/{video}/events").text
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    assert json.loads(fields["data"])["status"] == "completed"
    assert client.get(f"/v1/videos/{video}/events", headers={"Last-Event-ID": fields["id"]}).status_code == 204


def test_the_document_has_every_address(client):
    document = client.get("/openapi.json").json()
    served = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in client.app.routes
        for method in getattr(route, "methods", ())
        if route.path.startswith(("/v1", "/health", "/metrics")) and method != "HEAD"
    }
    told = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert served == told


def test_a_server_for_others_wants_keys():
    check_reach("127.0.0.1", None, False)
    check_reach("::1", None, False)
    check_reach("0.0.0.0", None, True)
    for host in ("0.0.0.0", "::", "192.168.0.4", "example.org"):
        with pytest.raises(MovaError, match="--keys FILE"):
            check_reach(host, None, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no keys"),
        ("ann short", "shorter than 16"),
        ("ann", "a name and a secret"),
        ("../ann long-enough-secret", "is no name"),
        ("local long-enough-secret", "has the jobs that were made without keys"),
        ("ann long-enough-secret\nann another-long-secret", "is there already"),
        ("ann sha256:abc", "64 hexadecimal"),
    ],
)
def test_files_of_keys_that_will_not_do(tmp_path, text, words):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(MovaError, match=words):
        ApiKeys.read(path)


def test_seconds_become_whole_latents():
    assert [frames_of_seconds(s, 24) for s in (8, 4, 1, 0.1, 0)] == [193, 97, 25, 1, 1]
