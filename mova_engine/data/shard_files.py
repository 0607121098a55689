"""Media files inside tar shards, as entries of clips name them: ranges of bytes with a digest.

An index (`mova data index`) says where each file of a shard lies. The shard is not read from its beginning: a clip's
bytes are one range of it. Each read is checked against the digest in the index, so that a shard that was replaced, or a
server that sends something else, is noticed, whatever sizes and times say.
"""

import hashlib
from dataclasses import dataclass, field

from mova_engine.errors import MovaError
from mova_engine.files.byte_ranges import (
    ODD_TRIES,
    FileFacts,
    UnreadableError,
    is_local,
    read_facts,
    read_range,
    without_query,
)


@dataclass(frozen=True)
class Shard:
    """A tar file. address: a path, or http://, s3:// and so on. facts: what its place said when it was indexed."""

    address: str
    facts: FileFacts = field(default_factory=FileFacts)

    def __str__(self) -> str:
        return without_query(self.address)


@dataclass(frozen=True)
class FileInShard:
    """A file of a shard: bytes `offset` to `offset + size`. name: in the shard. sha256: of its content, in hex."""

    shard: Shard
    name: str
    offset: int
    size: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def read(self) -> bytes:
        """The file's content, whose digest is that of the index.

        Raises UnreadableError, naming shard and file, if it is not there or has changed, and UnreachableError.
        """
        for _ in range(ODD_TRIES):
            try:
                data = read_range(self.shard.address, self.offset, self.size)
            except UnreadableError as error:
                raise UnreadableError(f"{self}: {str(error).removeprefix(f'{self.shard}: ')}") from None
            if hashlib.sha256(data).hexdigest() == self.sha256:
                return data
        raise UnreadableError(f"{self}: {self._why_different()}")

    def check_place(self) -> None:
        """Raise MovaError if the shard is not there or has another size than the index says; reads no content."""
        try:
            found = read_facts(self.shard.address)
        except UnreadableError as error:
            raise UnreadableError(f"{self}: {str(error).removeprefix(f'{self.shard}: ')}") from None
        then = self.shard.facts.size
        if None not in (found.size, then) and found.size != then:
            raise UnreadableError(f"{self}: {_other_size(found.size, then)}")

    def _why_different(self) -> str:
        then = self.shard.facts
        try:
            now = read_facts(self.shard.address)
        except MovaError:
            now = FileFacts()
        if None not in (now.size, then.size) and now.size != then.size:
            return _other_size(now.size, then.size)
        local = is_local(self.shard.address)
        if None not in (now.etag, then.etag) and now.etag != then.etag:
            told = "its ETag is another one"
        elif local and None not in (now.modified, then.modified) and now.modified != then.modified:
            told = "it was written since"
        else:
            return "its bytes are not those that were indexed (damaged on disk or on the way?)"
        return f"its bytes are not those that were indexed: the shard was replaced ({told}): run mova data index again"


def _other_size(now: int | None, then: int | None) -> str:
    what = "is cut short or was replaced" if (now or 0) < (then or 0) else "was replaced"
    return f"the shard {what} since it was indexed ({then} bytes then, {now} now): run mova data index again"
