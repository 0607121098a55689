"""The API against what its own description allows and forbids: schemathesis sends both to a running server."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from api_servers import listening, open_store, service, worker

pytestmark = pytest.mark.serving
pytest.importorskip("schemathesis", reason="the fuzzer is not installed: pip install schemathesis")
# What the descriptions of fields cannot say is left out: which settings go together (`positive_data_acceptance`).
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_no_request_breaks_the_server(tmp_path):
    store = open_store(tmp_path, queue=100_000)
    with worker(store, 0.001), listening(store, service()) as url:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--no-color"]
        # Characters answer 501 on purpose.
        options = [
            "--exclude-path-regex",
            "characters",
            "--checks",
            CHECKS,
            "-n",
            "15",
            "--max-time",
            "40",
            "--request-timeout",
            "120",
            "--seed",
            "7",
        ]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stdout[-4000:]
        figures = httpx.get(f"{url}/metrics").text
        answered = re.findall(r'mova_http_requests_total\{.*route="/v1/videos".*status="(\d+)"\}', figures)
        assert {"200", "400"} <= set(answered), "nothing was accepted, or nothing refused"
        assert 'status="5' not in figures
