"""Explain failures of fsspec storages, in words that hold for every driver.

The drivers' own messages may quote a login, so none of their text is passed on.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ft_pipeline.base.errors import PipelineError, is_disk_error, suggest
from ft_pipeline.base.network.answers import explain_answer

PERMISSION = (
    "Set the driver's usual credentials (S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
    "~/.aws; Google: GOOGLE_APPLICATION_CREDENTIALS) with permission to list and {needed}"
)


@contextmanager
def explained(
    explain: Callable[[Exception], PipelineError], to_disk: bool = True
) -> Iterator[None]:
    """Raise `explain(error)` in place of a driver's error, whose text may quote a login.

    `to_disk`: files are copied to this machine; an OSError of its disk is raised unchanged.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        known = isinstance(error, FileNotFoundError | PermissionError)
        if to_disk and is_disk_error(error) and not known:
            raise
        raise explain(error) from None


def explain_storage(address: str, error: Exception, needed: str = "read") -> tuple[str, str]:
    """Return problem and remedy for a driver's error, without a full stop.

    `needed`: the permission needed besides listing.
    """
    kind = type(error).__name__
    protocol = address.partition("://")[0]
    if isinstance(error, ImportError):
        return f"needs a driver that is not installed ({kind})", _install(protocol)
    if isinstance(error, ValueError) and "://" in address and protocol not in _protocols():
        return (
            f"uses a protocol that fsspec does not know ({protocol})",
            f"Use one of s3, gs, abfs, sftp, file, …{suggest(protocol, _protocols())}",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "has no space left", "Free some space there"
    if isinstance(error, OSError) and error.errno and protocol in ("file", address):
        return (
            f"cannot be used ({os.strerror(error.errno)})",
            f"Use a folder that this user may {needed}",
        )
    if isinstance(error, PermissionError) or "Credential" in kind:
        return f"refused access, or needs a login ({kind})", PERMISSION.format(needed=needed)
    if isinstance(error, FileNotFoundError):
        return "does not exist", "Check the bucket and the path"
    if isinstance(error, NotImplementedError):
        return f"is read-only for its driver ({kind})", "Use a storage that can be written"
    if silent := explain_answer(error, None):
        return silent
    return (
        f"could not be reached, or the transfer was interrupted ({kind})",
        "Check the network and the storage's address (S3: AWS_ENDPOINT_URL), then run again",
    )


def _protocols() -> list[str]:
    from fsspec import available_protocols

    return list(available_protocols())


def _install(protocol: str) -> str:
    """Say how to install a driver: `s3` is `s3fs.S3FileSystem`; the first part is the package."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(protocol, {})
    package = str(known.get("class", "")).partition(".")[0]
    if package in ("fsspec", ""):  # fsspec's own, which needs a package that its message names
        return str(known.get("err", f"Install the fsspec driver for {protocol}://"))
    return f"Install it: pip install {package}"
