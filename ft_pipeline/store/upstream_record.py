"""The record of the last resolved revision of a source, here and in the remote.

    <store>/upstream/cot.json
    {"source": "cot", "asked": {"kind": "huggingface", "id": "…"}, "revision": "9f1c…",
     "unpushed": "replace"}

`unpushed` exists only in this store: the record is not pushed yet. `new`: push only if the remote
has none of the same declaration; `replace`: also over another machine's.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

Unpushed = Literal["new", "replace"]


class UpstreamRecord(BaseModel):
    """What upstream was asked, and the revision it answered."""

    model_config = ConfigDict(frozen=True)

    source: str
    asked: dict[str, Any]
    revision: str
    unpushed: Unpushed | None = None

    def pushed(self) -> "UpstreamRecord":
        """Return the record as the remote stores it."""
        return self.model_copy(update={"unpushed": None})

    def to_json(self) -> str:
        """Return the record as JSON text."""
        left_out = None if self.unpushed else {"unpushed"}
        return json.dumps(self.model_dump(mode="json", exclude=left_out), indent=1) + "\n"


SHAPE = TypeAdapter(UpstreamRecord)
