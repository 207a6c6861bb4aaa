"""Runs a source's real code in a process of its own, as clients read their settings at import.

    python child.py '[{"do": "fetch", "source": {"kind": "huggingface", "id": "owner/quiz-set"},
                       "revision": "0123…", "folder": "/tmp/raw"}]'

prints an answer for each call: {"result": …} or {"error": its message, "type": its class,
"shown": the message with its causes, as a traceback shows them}.
"""

import json
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import KINDS
from ft_pipeline.sources.upstream import fetch, resolve_revision


def run(asked: dict[str, Any]) -> dict[str, Any]:
    source = KINDS[asked["source"]["kind"]].model_validate(asked["source"])
    folder = Path(asked["folder"])
    if "largest_file" in asked:  # a disk that is full after so many bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"],) * 2)
    try:
        if asked["do"] == "resolve":
            return {"result": resolve_revision("quiz", source, folder, folder)}
        fetch("quiz", source, asked["revision"], folder, folder, use_sample=False)
    except (PipelineError, OSError) as error:
        shown = "".join(traceback.format_exception(error))
        return {"error": str(error), "type": type(error).__name__, "shown": shown}
    return {"result": None}


if __name__ == "__main__":
    json.dump([run(asked) for asked in json.loads(sys.argv[1])], sys.stdout)
