"""How clips are signed, as typed and validated settings."""

from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.limits import check


@dataclass(frozen=True)
class ProvenanceSettings:
    """What a signature states, and whose it is."""

    prompt: bool = False
    """State the prompts in the signature too, for all who have the clip."""
    certificate: Path | None = None
    """Certificate to sign with, a chain in PEM, the signer's own first; default: one of the engine's own, made at the
    first start, which a server keeps in its store."""
    key: Path | None = None
    """Its private key, in PEM."""

    def __post_init__(self) -> None:
        together = "--provenance.certificate CHAIN and --provenance.key KEY go together"
        check((self.certificate is None) == (self.key is None), together)

    def check_with(self, no_provenance: bool) -> None:
        """MovaError for settings of signatures where nothing is signed."""
        check(not (no_provenance and self.asked), "--no-provenance signs no clip: leave --provenance out")

    @property
    def asked(self) -> bool:
        """Whether something is set that only signed clips have."""
        return self.prompt or self.certificate is not None
