"""Streams of events over sockets: how many a client may have open, and that others still get theirs."""

import time
from contextlib import ExitStack

import pytest
from api_servers import limits, listening, open_store, service

from mova_engine.serving.api_keys import ApiKeys

pytestmark = pytest.mark.serving
httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")


def test_one_clients_streams_leave_room_for_anothers(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann ann-has-this-secret\nbob bob-has-another-secret\n")
    store = open_store(tmp_path)
    served = service(keys=ApiKeys.read(keys), limits=limits(streams=3, streams_each=2))
    ann, bob = ({"Authorization": f"Bearer {name}"} for name in ("ann-has-this-secret", "bob-has-another-secret"))
    with listening(store, served) as url, httpx.Client(base_url=url, timeout=60) as client:
        videos = {}
        for name, key in (("ann", ann), ("bob", bob)):
            videos[name] = client.post("/v1/videos", json={"prompt": "a"}, headers=key).json()["id"]

        def stream(name, key):
            return client.stream("GET", f"/v1/videos/{videos[name]}/events", headers=key)

        with ExitStack() as opened:
            lines = []  # a reader of lines that goes closes its stream
            for _ in range(2):
                answer = opened.enter_context(stream("ann", ann))
                lines.append(answer.iter_lines())
                assert answer.status_code == 200 and next(lines[-1]) == "retry: 2000"
            refused = opened.enter_context(stream("ann", ann))
            assert refused.status_code == 429 and refused.headers["retry-after"]
            assert opened.enter_context(stream("bob", bob)).status_code == 200
        # A stream that was closed makes room.
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with stream("ann", ann) as answer:
                if answer.status_code == 200:
                    break
            time.sleep(0.1)
        assert answer.status_code == 200
        for name, key in (("ann", ann), ("bob", bob)):
            client.post(f"/v1/videos/{videos[name]}/cancel", headers=key)
