"""A broken link, as `verify` reports it."""

from dataclasses import dataclass

from ft_pipeline.lineage.receipt import Link
from ft_pipeline.store.artifacts import InputEntry


@dataclass(frozen=True)
class Broken:
    """One broken link: `link` is asset and fingerprint, `what` a file or a field."""

    link: str
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.link}: {self.what}: expected {self.expected}, found {self.found}"


def name_link(link: Link | InputEntry) -> str:
    """Return asset and fingerprint in readable form."""
    return f"{link.asset} {link.fingerprint}"
