"""Rows of clips of a real film, and a server that sees, hears and writes as a test wants."""

import json
import threading
from contextlib import contextmanager
from pathlib import Path

from chat_servers import chat_server, completion

# Four seconds of a drawn face that speaks, 160 x 96 pixels.
TALKING = Path(__file__).parents[1] / "data" / "talking.mp4"
SAID = "she had been forced into prudence"
PICTURE = (
    "A drawn face fills the middle of a plain grey picture, seen from the front in even light. It looks into the "
    "camera and opens and closes its mouth as it speaks, while nothing else moves."
)
VOICES = "One calm woman speaks slowly and clearly, near the microphone."
SOUNDS = "A faint hiss lies under the voice, and there is no music."
MERGED = (
    "A drawn face fills the middle of a plain grey picture, seen from the front in even light. It looks into the "
    f"camera, opens and closes its mouth and says “{SAID}” while nothing else moves.\n\n"
    "The audio is one calm woman who speaks slowly and clearly near the microphone, with a faint hiss and no music."
)
ROLES = {
    "You see pictures": "picture",
    "somebody speaks": "speech",
    "everything that is heard": "sound",
    "You write the caption": "merge",
}


def row(number=0, **changes):
    """A clip of a second, as `clips.parquet` has it."""
    found = {
        "clip_id": f"{number:024x}", "video_path": str(TALKING), "start": 0.5 + number / 24, "frames": 25, "fps": 24.0,
        "width": 160, "height": 96, "kind": "speech-shot",
    }  # fmt: skip
    return {**found, **changes}


def role_of(path, body):
    """Which role a request is of."""
    if path.endswith("/audio/transcriptions"):
        return "transcript"
    told = json.loads(body)["messages"][0]["content"]
    return next(role for words, role in ROLES.items() if words in told)


class Teller:
    """Answers by role: `texts` {role: text, or a list of texts in turn, or a status}. asked: (role, path, body). most:
    how many requests were there at once.
    """

    def __init__(self, **texts):
        self.texts = {
            "picture": PICTURE, "transcript": SAID, "speech": VOICES, "sound": SOUNDS, "merge": MERGED, **texts
        }  # fmt: skip
        self.asked, self.most, self._now, self._lock = [], 0, 0, threading.Lock()
        self.gate = None

    def __call__(self, path, body):
        role = role_of(path, body)
        with self._lock:
            self.asked.append((role, path, body))
            self._now += 1
            self.most = max(self.most, self._now)
            text = self.texts[role]
            if isinstance(text, list):
                text = text.pop(0) if len(text) > 1 else text[0]
        if self.gate is not None:
            self.gate.wait(timeout=20)
        with self._lock:
            self._now -= 1
        if isinstance(text, int):
            return text, {}, b"{}"
        return 200, {}, json.dumps({"text": text}).encode() if role == "transcript" else completion(text)

    def roles(self):
        return sorted(role for role, *_ in self.asked)

    def messages(self, role, index=0):
        bodies = [json.loads(body) for asked, _, body in self.asked if asked == role]
        return bodies[index]["messages"]


@contextmanager
def telling(**texts):
    with chat_server() as server:
        teller = server.answer = Teller(**texts)
        teller.url = server.url
        yield teller
