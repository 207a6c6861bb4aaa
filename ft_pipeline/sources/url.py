"""One file at an http or https address, through requests.

Its revision changes whenever the content does:

    sha256:9f86…   the declared hash (nobody is asked), or that of the content
    etag:5d8c72    a strong ETag (RFC 9110, 8.8.3) of an answer whose end can be told

The bytes are kept unchanged. A login in the address is used but never shown; ~/.netrc, which
requests reads itself, is the better place.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.network.answers import SAMPLE, explain_answer
from ft_pipeline.base.network.secrets import hidden_in_logs, hide_secrets
from ft_pipeline.base.network.timeouts import read_timeout
from ft_pipeline.config.sources import UrlSource

BYTES_AT_ONCE = 2**20
GZIP = ("gzip", "x-gzip")
# Pauses of 0, 1, 2 and 4 seconds, or as long as Retry-After says, but for two minutes at most.
RETRY = urllib3.Retry(
    total=4,
    connect=2,
    read=1,
    other=0,
    backoff_factor=0.5,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=("GET",),
    respect_retry_after_header=True,
    retry_after_max=120,
    raise_on_status=False,
)


class InsecureRedirect(requests.RequestException):
    """A redirect from https to http."""


def resolve_revision(name: str, source: UrlSource) -> str:
    """Return the revision of the current content. Raises PipelineError with the remedy."""
    if source.sha256:
        return f"sha256:{source.sha256}"
    with _open(name, source) as response:
        etag = _strong_etag(response)
        return f"etag:{etag}" if etag else f"sha256:{_read(name, source, response, None)}"


def download(name: str, source: UrlSource, revision: str, folder: Path) -> None:
    """Download the file of one revision, unchanged, into `folder`, completely or not at all.

    Raises PipelineError with the remedy, also if the address now holds another revision.
    """
    kind, _, expected = revision.partition(":")
    with _open(name, source) as response:
        if kind == "etag" and _strong_etag(response) != expected:
            raise _moved_on(name, source)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / _file_name(source, response)
        partial = target.with_name(f".{target.name}.part")
        try:
            with partial.open("wb") as file:
                found = _read(name, source, response, file)
            if kind == "sha256" and found != expected:
                raise _moved_on(name, source, found)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where an answer redirects to. Raises InsecureRedirect."""
        target = super().get_redirect_target(resp)
        if target and resp.url.startswith("https:") and urljoin(resp.url, target)[:5] == "http:":
            raise InsecureRedirect(response=resp)
        return target


@contextmanager
def _open(name: str, source: UrlSource) -> Iterator[requests.Response]:
    """Yield the answer with its body unread. Errors quote the address, so they are not chained."""
    seconds = read_timeout()
    with hidden_in_logs(), _Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=RETRY))
        try:
            # Not compressed for the way: Content-Length and ETag then speak of the file itself.
            headers = {"Accept-Encoding": "identity"}
            with session.get(source.url, stream=True, timeout=seconds, headers=headers) as response:
                if response.status_code != 200:
                    raise _explain(name, source, None, response.status_code)
                _check_encoding(name, source, response)
                yield response
        except InsecureRedirect:
            raise _refuse_redirect(name, source) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _explain(name, source, error, None) from None


def _read(
    name: str, source: UrlSource, response: requests.Response, target: BinaryIO | None
) -> str:
    """Read the body, into `target` if there is one; return its sha256."""
    length = _length(response)
    if length is not None and length > source.max_bytes:
        raise _too_large(name, source, f"{length} bytes")
    digest, size = hashlib.sha256(), 0
    for chunk in response.raw.stream(BYTES_AT_ONCE, decode_content=False):
        size += len(chunk)
        if size > source.max_bytes:
            raise _too_large(name, source, f"more than {source.max_bytes} bytes")
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    if length not in (None, size):
        raise _explain(name, source, None, None)
    return digest.hexdigest()


def _strong_etag(response: requests.Response) -> str | None:
    """Return the ETag if equal ETags mean equal bytes and a truncated body would be noticed."""
    etag = response.headers.get("ETag", "")
    ends = _length(response) is not None or "chunked" in response.headers.get(
        "Transfer-Encoding", ""
    )
    strong = len(etag) > 2 and etag[0] == etag[-1] == '"'
    return etag[1:-1] if strong and ends else None


def _length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _file_name(source: UrlSource, response: requests.Response) -> str:
    """Return the file name from the server, otherwise from the address; never a path.

    An address such as `/download` says less than the one it redirects to.
    """
    header = Message()
    header["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    asked, answered = (unquote(urlsplit(url).path) for url in (source.url, response.url))
    names = [_safe_name(name) for name in (header.get_filename() or "", asked, answered)]
    with_suffix = [name for name in names if "." in name]
    name = next(iter([*with_suffix, *filter(None, names)]), "data")
    # The bytes stay as they came, so the name says what a server does that compresses unasked.
    packed = _encoding(response) in GZIP and not name.endswith((".gz", ".tgz"))
    return f"{name}.gz" if packed else name


def _encoding(response: requests.Response) -> str:
    return response.headers.get("Content-Encoding", "identity").strip().lower()


def _check_encoding(name: str, source: UrlSource, response: requests.Response) -> None:
    encoding = _encoding(response)
    if encoding not in ("identity", *GZIP):
        raise PipelineError(
            f"source {name}: {hide_secrets(source.url)} came compressed as `{encoding}`, which "
            f"was not requested. Expected the file itself, or gzip. Change `{name}.url` in "
            "sources.yaml."
        )


def _safe_name(written: str) -> str:
    """Return the last part of a path, without characters unfit for file names, or ""."""
    last = written.replace("\\", "/").rstrip("/").split("/")[-1]
    printable = "".join(c for c in last if c.isprintable()).strip().lstrip(".")
    return printable.encode()[-200:].decode(errors="ignore").lstrip(".")


def _too_large(name: str, source: UrlSource, found: str) -> PipelineError:
    return PipelineError(
        f"source {name}: {hide_secrets(source.url)} holds {found}; the limit is "
        f"{source.max_bytes}. If this is the right file, raise `{name}.max_bytes` in sources.yaml."
    )


def _moved_on(name: str, source: UrlSource, found: str = "") -> PipelineError:
    where = hide_secrets(source.url)
    if source.sha256:
        return PipelineError(
            f"source {name}: {where} has different content than declared: expected sha256 "
            f"{source.sha256}, found {found}. If the new content is right, change `{name}.sha256` "
            "in sources.yaml."
        )
    return PipelineError(
        f"source {name}: {where} has changed since its revision was recorded, and the old content "
        f"is gone. To build from the new content: ft-pipeline refresh {name}"
    )


def _refuse_redirect(name: str, source: UrlSource) -> PipelineError:
    return PipelineError(
        f"source {name}: {hide_secrets(source.url)} redirects from https to http, where anyone in "
        f"between could change the file. Set `{name}.url` in sources.yaml to an address that "
        "stays on https, or to http:// if you accept the risk."
    )


def _explain(
    name: str, source: UrlSource, error: Exception | None, status: int | None
) -> PipelineError:
    host = urlsplit(source.url).hostname
    login = f"put a login for {host} in ~/.netrc (machine, login, password)"
    if status == 401:
        problem, remedy = (
            "requires a login (HTTP 401)",
            f"{login.capitalize()}, or fix the one there",
        )
    elif status == 403:
        problem = "refused access (HTTP 403)"
        remedy = (
            f"Check in a browser that you may download the file; a signed address in `{name}.url` "
            f"may have expired; if the host has accounts, {login}"
        )
    elif status in (404, 410):
        problem = f"has no such file (HTTP {status})"
        remedy = f"Check `{name}.url` in sources.yaml"
    elif known := explain_answer(error, status):
        problem, remedy = known
    else:
        kind = f" ({type(error).__name__})" if error else ""
        problem = f"could not be reached, or the transfer was interrupted{kind}"
        remedy = f"Check the network and `{name}.url`, then run again"
    where = hide_secrets(source.url)
    return PipelineError(f"source {name}: {host} {problem} for {where}. {remedy}. {SAMPLE}")
