"""`mova eval transcribe CLIPS --out FILE`: what a recogniser hears in clips, for `mova eval --transcripts FILE`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.config.limits import check, check_least
from mova_engine.errors import run_cli, say

ABOUT = """Transcribe a folder of clips.

By a server that speaks OpenAI's protocol (--endpoint, to which the clips' SOUND IS SENT), or by a model of
faster-whisper in a folder (--whisper). A line of JSON for each clip; what is there already is not heard again. Status 2
when a clip could not be transcribed, after the others.
"""


@dataclass(frozen=True, kw_only=True)
class EvalTranscribeConfig:
    """Which clips are transcribed, by what."""

    clips: Path = field(kw_only=False)
    """Folder of media files; those in folders within it count too."""
    out: Path
    """File of JSON lines, new or of an earlier run."""
    endpoint: str | None = None
    """Address of a server, up to and with /v1; the clips' sound is sent there."""
    model: str = "whisper-1"
    """Name of the server's model."""
    prompt: str = ""
    """Text that the server's model is given, such as how speakers are to be tagged."""
    key_variable: str = ""
    """Environment variable that holds the server's key."""
    timeout: float = 180.0
    """Seconds that a request may take; it is tried 5 times."""
    whisper: Path | None = None
    """Folder of a model of faster-whisper: transcribes on this machine, without speakers."""
    language: str = ""
    """Language of the speech for --whisper, such as en; default: it is found out."""
    workers: int = 2
    """Clips transcribed at the same time."""

    def __post_init__(self) -> None:
        check_least(self, "", workers=1)
        check((self.endpoint is None) != (self.whisper is None), "give one of --endpoint URL and --whisper FOLDER")
        check(0 < self.timeout <= 86400, f"--timeout must be above 0 and at most a day, got {self.timeout}")


TRANSCRIBE = Command("mova eval transcribe", EvalTranscribeConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the transcripts. Status 2 when a clip has none, after the others."""
    config = TRANSCRIBE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.evaluation.transcription import transcribe_folder
    from mova_engine.scores.recognisers import Endpoint, EndpointOptions, LocalWhisper

    if config.endpoint is not None:
        options = EndpointOptions(config.endpoint, config.model, config.prompt, config.key_variable, config.timeout)
        recogniser = Endpoint(options)
        say(f"the sound of the clips is sent to {config.endpoint}")
    else:
        recogniser = LocalWhisper(config.whisper or Path(), config.language)
    failed = transcribe_folder(config.clips, config.out, recogniser, config.workers, say)
    for line in failed:
        sys.stderr.write(f"error: {line}\n")
    return 2 if failed else 0


if __name__ == "__main__":
    run_cli(main)
