"""Where a worker's log records go: to its launcher, or, when started by hand, to the terminal."""

import logging
import os
import sys

from ft_pipeline.base.console import PROJECT, show_project
from ft_pipeline.process.output import MARKED, MarkedHandler

# Their warnings are about kernels that a CPU does not have, and would hide what matters.
NOISY_LOGGERS = ("httpx", "torchao", "torch.utils._pytree", "bitsandbytes")


def set_up_log() -> None:
    """Send this project's records to their destination; those of libraries are printed."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.pop(MARKED, None) is None:
        show_project(sys.stderr)
        return
    # A descriptor of its own: whatever a library does to standard error.
    PROJECT.addHandler(MarkedHandler(os.dup(sys.stderr.fileno())))
    PROJECT.propagate = False
