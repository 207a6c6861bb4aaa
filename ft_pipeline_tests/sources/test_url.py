"""Sources of kind `url`: one file from a web server, through the real requests and urllib3.

Unproven here: real web servers and proxies, and addresses whose ETag differs between the machines
behind one name.
"""

import datetime
import hashlib
import ipaddress
import logging
import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import UrlSource
from ft_pipeline.sources import url
from ft_pipeline.sources.upstream import fetch, read_revision, resolve_revision
from ft_pipeline_tests.sources.conftest import CSV, read_tree
from ft_pipeline_tests.sources.hosts import SILENCE, Reply, Web, serving

SHA256 = hashlib.sha256(CSV).hexdigest()
SAMPLE_REMEDY = "set `use_samples: true` in the recipe"
Act = Callable[[UrlSource, Path], None]


@pytest.fixture
def web(clean_environment: Path) -> Iterator[Web]:
    with serving(Web({"/data/a.csv": CSV})) as host:
        assert isinstance(host, Web)
        yield host


def source_of(host: Web, path: str = "/data/a.csv", **declared: object) -> UrlSource:
    address = f"http://127.0.0.1:{host.port}{path}"
    return UrlSource.model_validate({"kind": "url", "url": address, **declared})


def resolve(source: UrlSource, folder: Path) -> None:
    url.resolve_revision("quiz", source)


def download(source: UrlSource, folder: Path) -> None:
    url.download("quiz", source, "etag:any", folder)


def get(source: UrlSource, folder: Path) -> dict[str, bytes]:
    """Resolve and download; return what came."""
    url.download("quiz", source, url.resolve_revision("quiz", source), folder)
    return read_tree(folder)


def check_error(error: PipelineError, *expected: str) -> None:
    for text in ("source quiz:", "127.0.0.1", *expected):
        assert text in str(error)


def test_file_arrives_with_equal_bytes_and_what_it_was_is_told(web: Web, tmp_path: Path) -> None:
    source, store = source_of(web, licence="MIT"), tmp_path / "store"
    assert read_revision("quiz", source, tmp_path, store, use_sample=False) is None
    revision = resolve_revision("quiz", source, tmp_path, store)
    assert revision == f"etag:{hashlib.md5(CSV).hexdigest()}"
    assert read_revision("quiz", source, tmp_path, store, use_sample=False) == revision
    fetched = fetch("quiz", source, revision, tmp_path, tmp_path / "raw", use_sample=False)
    assert read_tree(tmp_path / "raw") == {"a.csv": CSV}
    assert (fetched.revision, fetched.licence) == (revision, "MIT")
    assert datetime.datetime.fromisoformat(fetched.fetched_at).tzinfo is datetime.UTC
    entry = fetched.files["a.csv"]
    assert (entry.sha256, entry.bytes) == (SHA256, len(CSV))


@pytest.mark.parametrize(
    ("headers", "etags", "length", "expected"),
    [
        ({}, False, True, f"sha256:{SHA256}"),
        ({"ETag": 'W/"weak"'}, False, True, f"sha256:{SHA256}"),
        ({"Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}, False, True, f"sha256:{SHA256}"),
        # Without a length, a body that breaks off looks whole, and its ETag would not tell.
        ({}, True, False, f"sha256:{SHA256}"),
        ({"ETag": '"strong"'}, False, True, "etag:strong"),
    ],
    ids=["no ETag", "weak ETag", "only a time", "no length", "strong ETag"],
)
def test_revision_is_a_strong_etag_or_the_contents_hash(
    web: Web, headers: dict[str, str], etags: bool, length: bool, expected: str
) -> None:
    web.headers, web.etags, web.length = headers, etags, length
    assert url.resolve_revision("quiz", source_of(web)) == expected


def test_declared_hash_is_the_revision_and_asks_nobody(web: Web, tmp_path: Path) -> None:
    source = source_of(web, sha256=SHA256)
    assert read_revision("quiz", source, tmp_path, tmp_path, use_sample=False) == f"sha256:{SHA256}"
    assert resolve_revision("quiz", source, tmp_path, tmp_path) == f"sha256:{SHA256}"
    assert web.seen == []
    url.download("quiz", source, f"sha256:{SHA256}", tmp_path / "raw")
    assert read_tree(tmp_path / "raw") == {"a.csv": CSV}


def test_another_content_than_declared_is_refused(web: Web, tmp_path: Path) -> None:
    source = source_of(web, sha256="0" * 64)
    with pytest.raises(PipelineError) as caught:
        get(source, tmp_path / "raw")
    check_error(caught.value, "0" * 64, SHA256, "`quiz.sha256`")
    assert read_tree(tmp_path / "raw") == {}


@pytest.mark.parametrize("etags", [True, False], ids=["ETag", "hash"])
def test_a_file_that_changed_since_is_refused_until_a_refresh(
    web: Web, tmp_path: Path, etags: bool
) -> None:
    web.etags = etags
    source = source_of(web)
    revision = url.resolve_revision("quiz", source)
    web.files["/data/a.csv"] = CSV.replace(b"42", b"43")
    with pytest.raises(PipelineError) as caught:
        url.download("quiz", source, revision, tmp_path / "raw")
    check_error(caught.value, "has changed", "ft-pipeline refresh quiz")
    assert read_tree(tmp_path / "raw") == {}
    assert url.resolve_revision("quiz", source) != revision
    assert get(source, tmp_path / "raw") == {"a.csv": web.files["/data/a.csv"]}


@pytest.mark.parametrize(
    ("path", "disposition", "expected"),
    [
        ("/data/a.csv", None, "a.csv"),
        ("/data/a%20b%2Fc.csv", None, "c.csv"),
        ("/get/", None, "get"),
        ("/", None, "data"),
        ("/get", 'attachment; filename="named.csv"', "named.csv"),
        ("/get", "attachment; filename*=UTF-8''na%C3%AFve.csv", "naïve.csv"),
        ("/get", 'attachment; filename="../../etc/passwd.csv"', "passwd.csv"),
        ("/get", 'attachment; filename="..\\\\..\\\\up.csv"', "up.csv"),
        ("/get", 'attachment; filename="/tmp/.hidden.csv"', "hidden.csv"),
        ("/get", 'attachment; filename=".."', "get"),
        ("/get", f'attachment; filename="{"x" * 300}.csv"', "x" * 196 + ".csv"),
    ],
)
def test_file_name_is_the_servers_and_never_a_path(
    web: Web, tmp_path: Path, path: str, disposition: str | None, expected: str
) -> None:
    web.files = {path: CSV}
    web.headers = {"Content-Disposition": disposition} if disposition else {}
    get(source_of(web, path), tmp_path / "deep/raw")
    assert read_tree(tmp_path) == {f"deep/raw/{expected}": CSV}


def test_redirect_is_followed_and_names_the_file(web: Web, tmp_path: Path) -> None:
    web.redirects["/download"] = "/data/a.csv?signature=abc"
    assert get(source_of(web, "/download?id=1"), tmp_path / "raw") == {"a.csv": CSV}


@pytest.mark.parametrize(("encoding", "name"), [("gzip", "a.csv.gz"), ("br", None)])
def test_bytes_stay_as_they_came_where_a_server_compresses_unasked(
    web: Web, tmp_path: Path, encoding: str, name: str | None
) -> None:
    web.headers = {"Content-Encoding": encoding}
    if name is None:
        with pytest.raises(PipelineError) as caught:
            get(source_of(web), tmp_path / "raw")
        check_error(caught.value, "compressed as `br`")
    else:
        assert get(source_of(web), tmp_path / "raw") == {name: CSV}
    assert {seen.headers["Accept-Encoding"] for seen in web.seen} == {"identity"}


@pytest.mark.parametrize("length", [True, False], ids=["by its length", "while it streams"])
def test_a_file_over_the_limit_is_refused(web: Web, tmp_path: Path, length: bool) -> None:
    web.length = web.etags = length
    with pytest.raises(PipelineError) as caught:
        get(source_of(web, max_bytes=1000), tmp_path / "raw")
    check_error(caught.value, "1000", "`quiz.max_bytes`")
    assert read_tree(tmp_path / "raw") == {}
    assert get(source_of(web, max_bytes=len(CSV)), tmp_path / "raw") == {"a.csv": CSV}


@pytest.mark.parametrize("act", [resolve, download])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, ["HTTP 401", "~/.netrc"]),
        (403, ["HTTP 403", "in a browser", "may have expired"]),
        (404, ["HTTP 404", "Check `quiz.url`"]),
        (418, ["HTTP 418", "run again"]),
    ],
)
def test_a_refusal_says_what_happened_and_what_to_do(
    web: Web, tmp_path: Path, act: Act, status: int, expected: list[str]
) -> None:
    web.failures["/data"] = [Reply(status)]
    with pytest.raises(PipelineError) as caught:
        act(source_of(web), tmp_path / "raw")
    check_error(caught.value, SAMPLE_REMEDY, *expected)
    assert len(web.seen) == 1  # asking again would not help
    assert read_tree(tmp_path / "raw") == {}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(web: Web, tmp_path: Path, status: int) -> None:
    web.failures["/data"] = [Reply(status)]
    assert get(source_of(web), tmp_path / "raw") == {"a.csv": CSV}
    assert len(web.seen) == 3


def test_retry_after_is_honoured(web: Web) -> None:
    web.failures["/data"] = [Reply(429, headers={"Retry-After": "1"})]
    before = datetime.datetime.now()
    url.resolve_revision("quiz", source_of(web))
    assert (datetime.datetime.now() - before).total_seconds() >= 1


def test_a_server_that_stays_busy_is_named_after_five_times(web: Web) -> None:
    web.failures["/data"] = [Reply(429)] * 9
    with pytest.raises(PipelineError) as caught:
        url.resolve_revision("quiz", source_of(web))
    check_error(caught.value, "HTTP 429", "Wait a few minutes", SAMPLE_REMEDY)
    assert len(web.seen) == 5


@pytest.mark.parametrize("act", [resolve, download])
def test_an_unreachable_server_is_named_as_such(
    web: Web, closed_port: int, tmp_path: Path, act: Act
) -> None:
    source = source_of(web)
    source = source.model_copy(update={"url": f"http://127.0.0.1:{closed_port}/a.csv"})
    with pytest.raises(PipelineError) as caught:
        act(source, tmp_path / "raw")
    check_error(caught.value, "could not be reached", "ConnectionError", "Check the network")


@pytest.mark.parametrize("etags", [True, False], ids=["ETag", "hash"])
def test_a_transfer_that_breaks_off_leaves_nothing(web: Web, tmp_path: Path, etags: bool) -> None:
    web.etags = etags
    source = source_of(web)
    revision = url.resolve_revision("quiz", source)
    tag = {"ETag": f'"{hashlib.md5(CSV).hexdigest()}"'} if etags else {}
    web.failures["/data"] = [Reply(body=CSV, headers=tag, sent=1000)]
    with pytest.raises(PipelineError) as caught:
        url.download("quiz", source, revision, tmp_path / "raw")
    check_error(caught.value, "was interrupted", "run again")
    assert read_tree(tmp_path / "raw") == {}
    url.download("quiz", source, revision, tmp_path / "raw")
    assert read_tree(tmp_path / "raw") == {"a.csv": CSV}


@pytest.mark.parametrize("act", [resolve, download])
@pytest.mark.parametrize(
    "stalled", [SILENCE, Reply(body=CSV, sent=100, stalls=True)], ids=["no answer", "midway"]
)
def test_a_silent_server_is_not_waited_for_for_ever(
    web: Web, tmp_path: Path, act: Act, stalled: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", "0.3")
    web.failures["/data"] = [stalled] * 9
    source = source_of(web)
    with pytest.raises(PipelineError) as caught:
        if act is download and not stalled.silent:
            url.download("quiz", source, "sha256:any", tmp_path / "raw")
        else:
            act(source, tmp_path / "raw")
    check_error(caught.value, "silent for 0.3 seconds", "FT_SOURCE_TIMEOUT", SAMPLE_REMEDY)
    assert read_tree(tmp_path / "raw") == {}


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused(
    web: Web, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", given)
    with pytest.raises(
        PipelineError, match="FT_SOURCE_TIMEOUT: expected a number of seconds"
    ) as caught:
        url.resolve_revision("quiz", source_of(web))
    assert given in str(caught.value)


@pytest.mark.parametrize("failure", ["missing", "unreachable", "changed"])
def test_login_in_an_address_is_used_and_shown_nowhere(
    web: Web,
    closed_port: int,
    tmp_path: Path,
    failure: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    port = closed_port if failure == "unreachable" else web.port
    address = f"http://me:pw-S3CRET@127.0.0.1:{port}/data/a.csv?token=tok-S3CRET"
    source = UrlSource(kind="url", url=address)
    if failure == "missing":
        web.failures["/data"] = [Reply(404)]
    with pytest.raises(PipelineError) as caught:
        revision = resolve_revision("quiz", source, tmp_path, tmp_path / "store")
        assert web.seen[-1].headers["Authorization"] == "Basic bWU6cHctUzNDUkVU"
        assert web.seen[-1].query == "token=tok-S3CRET"
        web.files["/data/a.csv"] = b"other"
        fetch("quiz", source, revision, tmp_path, tmp_path / "raw", use_sample=False)
    check_error(caught.value, f"://…@127.0.0.1:{port}/data/a.csv?…")
    assert "/data/a.csv?…" in caplog.text  # urllib3's own words, without the token
    written = b"".join(read_tree(tmp_path).values()).decode()
    for shown in ("".join(traceback.format_exception(caught.value)), caplog.text, written):
        assert "S3CRET" not in shown


def test_another_query_is_another_declaration_and_another_login_is_not(
    web: Web, tmp_path: Path
) -> None:
    def read(login: str, query: str) -> str | None:
        address = f"http://{login}127.0.0.1:{web.port}/data/a.csv{query}"
        source = UrlSource(kind="url", url=address)
        return read_revision("quiz", source, tmp_path, tmp_path, use_sample=False)

    address = f"http://me:old@127.0.0.1:{web.port}/data/a.csv?id=1"
    revision = resolve_revision("quiz", UrlSource(kind="url", url=address), tmp_path, tmp_path)
    assert read("me:old@", "?id=1") == revision
    assert read("me:new@", "?id=1") == revision
    assert read("me:old@", "?id=2") is None
    assert read("me:old@", "") is None


def test_login_of_netrc_is_sent(web: Web, clean_environment: Path) -> None:
    netrc = clean_environment / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password pw\n", encoding="utf-8")
    netrc.chmod(0o600)
    url.resolve_revision("quiz", source_of(web))
    assert web.seen[-1].headers["Authorization"] == "Basic bWU6cHc="


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that requests trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "certificate.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_redirect_from_https_to_http_is_refused(
    web: Web, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    with serving(Web({"/data/a.csv": CSV}), tls) as secure:
        assert isinstance(secure, Web)
        secure.redirects["/there"] = "/data/a.csv"
        secure.redirects["/down"] = f"http://127.0.0.1:{web.port}/data/a.csv"
        base = f"https://127.0.0.1:{secure.port}"
        assert get(UrlSource(kind="url", url=f"{base}/there"), tmp_path / "raw") == {"a.csv": CSV}
        with pytest.raises(PipelineError) as caught:
            url.resolve_revision("quiz", UrlSource(kind="url", url=f"{base}/down"))
    check_error(caught.value, "redirects from https to http", "`quiz.url`")
    assert web.seen == []


def test_an_untrusted_certificate_is_refused(
    clean_environment: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with serving(Web({"/a.csv": CSV}), tls) as secure:
        address = f"https://127.0.0.1:{secure.port}/a.csv"
        with pytest.raises(PipelineError) as caught:
            url.resolve_revision("quiz", UrlSource(kind="url", url=address))
    check_error(caught.value, "could not be reached", "SSLError")
