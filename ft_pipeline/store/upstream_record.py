"""The record of what was last resolved of a source, here and in the remote.

    <store>/upstream/cot.json
    {"source": "cot", "asked": {"kind": "huggingface", "id": "…"}, "revision": "9f1c…",
     "unpushed": "replace"}

`unpushed` is this store's alone: the record was not pushed yet. `new`: only where the remote has
none of the same declaration; `replace`: also over another machine's.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

Unpushed = Literal["new", "replace"]


class UpstreamRecord(BaseModel):
    """What was asked of upstream, and the revision that it answered."""

    model_config = ConfigDict(frozen=True)

    source: str
    asked: dict[str, Any]
    revision: str
    unpushed: Unpushed | None = None

    def pushed(self) -> "UpstreamRecord":
        """Return it as the remote has it."""
        return self.model_copy(update={"unpushed": None})

    def to_json(self) -> str:
        """Return its text."""
        left_out = None if self.unpushed else {"unpushed"}
        return json.dumps(self.model_dump(mode="json", exclude=left_out), indent=1) + "\n"


SHAPE = TypeAdapter(UpstreamRecord)
