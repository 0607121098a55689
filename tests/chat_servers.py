"""A server of OpenAI's chat/completions in a thread, which does what a test tells it to: also everything wrong."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A prompt, and what a good model makes of it.
PROMPT = "A woman on a bridge says “Look at the river!” and points down."
GOOD = (
    "A woman in a red coat stands on an old stone bridge in the morning light, mist over the water, bare trees along "
    "the banks. She leans over the wall, her breath white in the cold air, says “Look at the river!” and points down "
    "with her left hand, the water moves slowly under the arch.\n\nThe audio has the soft rush of the river under "
    "the bridge, her bright and excited voice, and far away a single crow; there is no music."
)
# Another one says what is not in the prompt.
BAD = GOOD.replace("Look at the river!", "Regarde la rivière !")


def completion(text, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()


class ChatServer(ThreadingHTTPServer):
    """`replies`: (status, headers, body) in turn, the last one again and again; a body may be a function that writes to
    the connection itself. `answer`: in place of replies, (status, headers, body) of a path and a body, asked by several
    threads. `requests`: (path, headers, body) of what was asked.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies, self.requests, self.answer = [], [], None
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def say(self, *texts):
        """Reply with these texts, as complete completions."""
        self.replies = [(200, {}, completion(text)) for text in texts]

    def asked(self, index=-1):
        return json.loads(self.requests[index][2])

    def handle_error(self, request, client_address):
        """Clients that go away are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        replies = self.server.replies
        if self.server.answer is not None:
            status, headers, reply = self.server.answer(self.path, body)
        else:
            status, headers, reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if callable(reply):
            reply(self)
            return
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(reply)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


def silent(handler):
    """Reply with nothing until the client leaves, or for a minute."""
    handler.connection.settimeout(60)
    handler.connection.recv(1)


def trickling(headers):
    """Reply byte by byte, the headers too or the body alone, always soon enough for a limit between two bytes."""

    def write(handler):
        start = b"HTTP/1.0 200 OK\r\ncontent-length: 100000\r\n\r\n"
        if not headers:
            handler.wfile.write(start)
        for _ in range(3000):  # a minute, or until the client leaves
            handler.wfile.write(b"x" if headers else b" ")
            handler.wfile.flush()
            time.sleep(0.02)

    return write


@contextmanager
def chat_server():
    running = ChatServer()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        thread.join()
        running.server_close()
