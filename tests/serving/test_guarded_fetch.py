"""Addresses that clients send lead to the public internet, for which a server with a certificate stands, or nowhere."""

import http.server
import ipaddress
import socket
import ssl
import threading
import time

import pytest

from mova_engine.serving import guarded_fetch
from mova_engine.serving.guarded_fetch import RefusedFetchError, fetch_public, is_public

pytest.importorskip("cryptography", reason="the extra serve is not installed")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        "2001:0:0:0:0:0:80ff:fffe",
        "2001:db8::1",
    ],
)
def test_addresses_of_other_networks_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


def test_public_addresses_are():
    for address in ("1.1.1.1", "2606:4700:4700::1111"):
        assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "gopher://localhost",
        "https://",
        "https://user:pass@example.org/",
        "https://example.org:99999/",
        "https://exa mple.org/",
        "https://example.org/\r\nHost: x",
        "https://[::1",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://[::ffff:127.0.0.1]/",
        "https://localhost/",
        "https://169.254.169.254/latest/meta-data",
        "//example.org",
        "a.png",
        "https://example.org\\@127.0.0.1/",
    ],
)
def test_what_is_no_public_https_address_is_refused(url):
    with pytest.raises(RefusedFetchError):
        fetch_public(url, 1000, 5)


def _certificate(folder):
    """A certificate for `pictures.example`, signed by itself; the file of it and of its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pictures.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path, private = folder / "cert.pem", folder / "key.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return path, private


class _Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path == "/stated":
            self.send_header("Content-Length", "999999999")
        self.end_headers()
        try:
            if self.path == "/drip":
                for _ in range(600):  # a minute, or until the client leaves
                    self.wfile.write(b"x")
                    time.sleep(0.1)
            else:
                self.wfile.write(b"p" * (200_000 if self.path == "/large" else 500))
        except OSError:
            pass  # whoever asked has enough

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(port, context that trusts the server) of a server on this machine."""
    certificate, key = _certificate(tmp_path_factory.mktemp("certificate"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], ssl.create_default_context(cafile=str(certificate))
    server.shutdown()


@pytest.fixture
def resolved(monkeypatch):
    """Names stand for the addresses that the list says, one call after the other."""
    answers = []

    def getaddrinfo(host, port, *_, **__):
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in address.split()]

    monkeypatch.setattr(guarded_fetch.socket, "getaddrinfo", getaddrinfo)
    return answers


def fetch(pictures, path, most=1000, seconds=30.0):
    port, trust = pictures
    return fetch_public(f"https://pictures.example:{port}{path}", most, seconds, allowed=lambda _: True, trust=trust)


def test_a_file_is_fetched_from_the_address_that_was_looked_at(pictures, resolved):
    # A name that is another machine's at the second look: there is none.
    resolved += ["127.0.0.1", "192.0.2.1"]
    assert fetch(pictures, "/a.png") == b"p" * 500


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/redirect", "a redirect, which is not followed"),
        ("/missing", "status 404"),
        ("/large", "larger than 1000 bytes"),
        ("/stated", "larger than 1000 bytes"),
    ],
)
def test_answers_that_are_no_file(pictures, resolved, path, words):
    resolved.append("127.0.0.1")
    with pytest.raises(RefusedFetchError, match=words):
        fetch(pictures, path)


def test_a_slow_answer_ends_in_time(pictures, resolved):
    resolved.append("127.0.0.1")
    begun = time.monotonic()
    with pytest.raises(RefusedFetchError, match=r"within 0\.5 s"):
        fetch(pictures, "/drip", seconds=0.5)
    assert time.monotonic() - begun < 20


def test_a_certificate_of_another_name_is_not_believed(pictures, resolved):
    resolved.append("127.0.0.1")
    port, trust = pictures
    with pytest.raises(RefusedFetchError, match="no trusted certificate"):
        fetch_public(f"https://other.example:{port}/a", 1000, 5, allowed=lambda _: True, trust=trust)


def test_one_private_address_of_several_is_enough(pictures, resolved):
    resolved.append("1.1.1.1 127.0.0.1")
    with pytest.raises(RefusedFetchError, match="public internet"):
        fetch_public("https://pictures.example/a", 1000, 5)
