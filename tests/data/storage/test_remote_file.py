"""A remote file arrives whole or with a reason, through every fault of a real server."""

from __future__ import annotations

import base64
import io
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from s3fs.errors import translate_boto_error
from servers import FaultyServer, serve

from mmscale import prf
from mmscale.data.storage import remote_file
from mmscale.data.storage.remote_file import (
    NoRanges,
    RemoteFault,
    RemoteFile,
    check_remote,
    list_shards,
    open_remote,
)
from mmscale.data.storage.retryable import HttpError, diagnose
from mmscale.errors import UserError

SIZE = 4_000_000
DATA = (prf.uniform(3, SIZE) * 256).astype("u1").tobytes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "a b.tar").write_bytes(DATA)
    with serve(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are recorded, not slept."""
    slept: list[float] = []
    monkeypatch.setattr(remote_file.time, "sleep", slept.append)
    return slept


def fetch(server: FaultyServer, retries: int = 2) -> bytes:
    with RemoteFile(f"{server.url}/a%20b.tar", retries) as file:
        assert file.size == SIZE
        return file.readall()


def test_whole_file_in_one_request(server: FaultyServer, pauses: list[float]) -> None:
    assert fetch(server) == DATA
    assert server.requests == [("a b.tar", "")] and pauses == []


def test_exact_reads_through_a_buffer(server: FaultyServer) -> None:
    with RemoteFile(f"{server.url}/a%20b.tar", 0) as raw, io.BufferedReader(raw, 1 << 16) as file:
        assert [file.read(size) for size in (0, 7, 100_000, SIZE)] == [
            b"",
            DATA[:7],
            DATA[7:100_007],
            DATA[100_007:],
        ]


@pytest.mark.parametrize("fault", ["drop", "cut"])
def test_goes_on_at_the_byte_reached(server: FaultyServer, fault: str) -> None:
    server.faults.extend([(".tar", fault, 1_500_000), (".tar", fault, 1_000_000)])
    assert fetch(server) == DATA
    starts = [int(asked.removeprefix("bytes=").rstrip("-") or 0) for _, asked in server.requests]
    # What the client had received but not read when the connection broke is lost; of a reset, all
    # of it may be.
    assert len(starts) == 3 and 0 == starts[0] <= starts[1] <= starts[2] <= 2_500_000
    assert fault == "drop" or 0 < starts[1] < starts[2]


def test_silence_is_a_fault(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_SILENCE_S", 2.0)
    server.faults.append((".tar", "stall", 1000))
    assert fetch(server) == DATA
    assert server.requests[1:] == [("a b.tar", "bytes=1000-")]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_status(server: FaultyServer, status: int, pauses: list[float]) -> None:
    server.faults.extend([(".tar", "status", status)] * 2)
    assert fetch(server) == DATA
    assert pauses == [0.0, 0.0]  # Retry-After: 0


def test_closed_without_an_answer(server: FaultyServer, pauses: list[float]) -> None:
    server.faults.extend([(".tar", "refuse", None)] * 4)
    assert fetch(server, retries=4) == DATA
    # aiohttp repeats some.
    assert len(server.requests) == 5 and 0.1 <= pauses[0] <= 0.2 <= pauses[1] <= 0.4


def test_progress_forgives_earlier_failures(server: FaultyServer) -> None:
    server.faults.extend([(".tar", "cut", 1_000_000)] * 3)
    assert fetch(server, retries=1) == DATA
    assert len(server.requests) == 4


def test_gives_up_after_failures_in_a_row(server: FaultyServer, pauses: list[float]) -> None:
    server.always["a b.tar"] = ("status", 503)
    with pytest.raises(RemoteFault, match=r"^HTTP 503 Service Unavailable, 3 times in a row$"):
        fetch(server)
    assert len(server.requests) == 3 and len(pauses) == 2
    server.always["a b.tar"] = ("cut", 0)
    with pytest.raises(RemoteFault, match=r"^\w+, 3 times in a row$"):
        fetch(server)


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar"
    with pytest.raises(RemoteFault, match=r"Connection refused, 2 times in a row"):
        RemoteFile(url, 1)


def test_no_such_host(pauses: list[float]) -> None:
    with pytest.raises(RemoteFault, match=r"^there is no such host$|cannot be resolved"):
        RemoteFile("http://shards.invalid/x.tar", 0)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (("status", 404), "HTTP 404 Not Found"),
        (("status", 403), "HTTP 403 Forbidden"),
        (("status", 410), "HTTP 410 Gone"),
        (("encode", None), "the server compresses it; switch that off for .tar files"),
        (("chunked", None), "the server does not report its size"),
    ],
)
def test_lasting_faults_are_not_tried_again(
    server: FaultyServer, fault: tuple[str, int], reason: str, pauses: list[float]
) -> None:
    server.always["a b.tar"] = fault
    with pytest.raises(RemoteFault) as caught:
        fetch(server)
    assert str(caught.value) == reason and len(server.requests) == 1 and pauses == []


def test_a_server_without_ranges_starts_over(server: FaultyServer) -> None:
    server.ranges = False
    server.faults.extend([(".tar", "cut", 100_000), (".tar", "cut", 200_000)])
    assert fetch(server) == DATA
    # It never gets beyond the first half: no progress, so an end.
    server.always["a b.tar"] = ("cut", 150_000)
    with pytest.raises(RemoteFault, match="3 times in a row"):
        fetch(server)


# -- a range of a file
# ---------------------------------------------------------------------------------------------

PART = (1_000_000, 3_000_001)


def fetch_part(server: FaultyServer, part: tuple[int, int] = PART, retries: int = 2) -> bytes:
    with RemoteFile(f"{server.url}/a%20b.tar", retries, part) as file:
        assert file.size == SIZE
        return file.readall()


def ranges(server: FaultyServer) -> list[str]:
    return [asked.removeprefix("bytes=") for _, asked in server.requests]


def test_a_range_is_one_request(server: FaultyServer) -> None:
    for part in (PART, (0, 1), (SIZE - 1, SIZE), (0, SIZE)):
        assert fetch_part(server, part) == DATA[slice(*part)]
    assert ranges(server) == ["1000000-3000000", "0-0", f"{SIZE - 1}-{SIZE - 1}", f"0-{SIZE - 1}"]


def test_a_range_goes_on_at_the_byte_reached(server: FaultyServer) -> None:
    server.faults.extend([(".tar", "cut", 500_000), (".tar", "less", 300_000)])
    assert fetch_part(server) == DATA[slice(*PART)]
    starts = [int(asked.partition("-")[0]) for asked in ranges(server)]
    assert all(asked.endswith("-3000000") for asked in ranges(server))
    # What had arrived and was not read when the connection broke is lost. Less than was asked for
    # is allowed, and no failure: nothing of it is.
    assert starts[0] == 1_000_000 <= starts[1] <= 1_500_000
    assert starts[2:] == [starts[1] + 300_000]


def test_another_range_than_asked_for_is_not_taken(
    server: FaultyServer, pauses: list[float]
) -> None:
    for shift in (1, -1):
        server.faults.append((".tar", "shifted", shift))
        with pytest.raises(RemoteFault, match=r"^the server answers with another range than"):
            fetch_part(server)
    assert len(server.requests) == 2 and pauses == []


def test_a_range_beyond_the_end(server: FaultyServer) -> None:
    with pytest.raises(RemoteFault, match=r"^HTTP 416 Requested Range Not Satisfiable$"):
        fetch_part(server, (SIZE, SIZE + 1))
    assert fetch_part(server, (SIZE - 5, SIZE + 5)) == DATA[-5:]


def test_a_server_without_ranges_is_told_apart(server: FaultyServer) -> None:
    server.ranges = False
    server.faults.append((".tar", "status", 503))
    with pytest.raises(NoRanges):
        fetch_part(server)
    assert len(server.requests) == 2


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("new", [bytes(SIZE), DATA[:-1], b"short"])
def test_a_file_replaced_in_between_is_noticed(
    server: FaultyServer, ranges: bool, new: bytes
) -> None:
    server.ranges = ranges
    server.faults.extend([(".tar", "cut", 1000), (".tar", "swap", new)])
    with pytest.raises(RemoteFault, match="it was replaced while it was read"):
        fetch(server)


def test_pauses_double_are_spread_and_end(pauses: list[float]) -> None:
    once = [remote_file._pause("http://h/x.tar", n, None) for n in range(1, 20)]
    assert once == [remote_file._pause("http://h/x.tar", n, None) for n in range(1, 20)]
    assert once != [remote_file._pause("http://h/y.tar", n, None) for n in range(1, 20)]
    for n, pause in enumerate(once):
        full = min(0.2 * 2**n, 5.0)
        assert full / 2 <= pause < full
    assert remote_file._pause("u", 1, 3.0) == 3.0 and remote_file._pause("u", 1, 1e9) == 60.0
    assert HttpError(503, "17").wait_s == 17 and HttpError(503, "Fri, 31 Dec 1999").wait_s is None


def test_user_error_names_url_and_remedy(server: FaultyServer) -> None:
    with pytest.raises(UserError) as caught, open_remote(f"{server.url}/gone.tar", 3):
        pass
    assert str(caught.value) == (
        f"{server.url}/gone.tar: cannot be fetched (HTTP 404 Not Found); "
        "check the URL, the network and the credentials (docs/remote.md)"
    )


def test_a_web_folder_is_not_listed(server: FaultyServer) -> None:
    with pytest.raises(UserError, match="no reliable list of its files; name the shards, as in"):
        list_shards(server.url, 0)


def test_what_libraries_say_is_never_repeated() -> None:
    secret = "X-Amz-Signature=abc"
    for error in (
        OSError(5, secret),
        PermissionError(secret),
        ValueError(secret),
        FileNotFoundError(secret),
    ):
        assert secret not in diagnose(error).reason


def boto_error(status: int, code: str) -> ClientError:
    answer = {
        "Error": {"Code": code, "Message": "secret"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(answer, "GetObject")


class GoogleError(Exception):
    """As gcsfs's HttpError, which has the status as ``code``."""

    code = 503


@pytest.mark.parametrize(
    ("error", "reason", "passing"),
    [
        (translate_boto_error(boto_error(503, "SlowDown")), "HTTP 503 Service Unavailable", True),
        (
            translate_boto_error(boto_error(500, "InternalError")),
            "HTTP 500 Internal Server Error",
            True,
        ),
        (translate_boto_error(boto_error(400, "RequestTimeout")), "timed out", True),
        (
            translate_boto_error(boto_error(403, "SignatureDoesNotMatch")),
            "HTTP 403 Forbidden",
            False,
        ),
        (translate_boto_error(boto_error(404, "NoSuchKey")), "HTTP 404 Not Found", False),
        (NoCredentialsError(), "no usable credentials; the environment gives none", False),
        (EndpointConnectionError(endpoint_url="secret"), "EndpointConnectionError", True),
        (GoogleError("secret"), "HTTP 503 Service Unavailable", True),
        (ConnectionResetError(104, "secret"), "Connection reset by peer", True),
        (socket.gaierror(socket.EAI_NONAME, "secret"), "there is no such host", False),
        (socket.gaierror(socket.EAI_AGAIN, "secret"), "the host's name cannot be resolved", True),
        (
            ssl.SSLCertVerificationError(1, "secret"),
            "the server's certificate is not trusted",
            False,
        ),
        (ZeroDivisionError("secret"), "ZeroDivisionError", False),
    ],
)
def test_diagnosis(error: Exception, reason: str, passing: bool) -> None:
    fault = diagnose(error)
    assert (fault.reason, fault.passing) == (reason, passing)


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str, **_: object) -> None:
        raise ImportError("please install gcsfs", name="gcsfs")

    monkeypatch.setattr(remote_file.fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r"^gs:// needs the Python package gcsfs; run `pip install"):
        check_remote("gs://bucket/x.tar")


def test_credentials_come_from_the_environment(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "Basic " + base64.b64encode(b"me:word").decode()
    with pytest.raises(RemoteFault, match=r"^HTTP 401 Unauthorized$"):
        fetch(server)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert fetch(server) == DATA
    server.token = "Bearer word"
    # What FSSPEC_HTTP or a file in ~/.config/fsspec says.
    monkeypatch.setitem(
        remote_file.fsspec.config.conf,
        "http",
        {"client_kwargs": {"headers": {"Authorization": "Bearer word"}}},
    )
    monkeypatch.delenv("NETRC")
    assert fetch(server) == DATA


@pytest.mark.parametrize(
    ("url", "library"), [("hf://datasets/me/x/a.tar", "huggingface_hub"), ("gs://b/a.tar", "gcsfs")]
)
def test_other_schemes_go_to_their_library(url: str, library: str) -> None:
    pytest.importorskip(library)
    assert type(remote_file.file_system(url)).__module__.partition(".")[0] == library


def test_real_pauses_are_slept(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert remote_file.time.sleep is time.sleep
    server.faults.append((".tar", "cut", 10))
    assert fetch(server) == DATA
