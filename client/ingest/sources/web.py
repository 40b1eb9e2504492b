"""HTTP GET with bounds, and multipart/related answers; called by dicomweb.

No redirects: a secret goes to the address that the site's file names and nowhere else. No compression: an answer is as
long as it was sent. Errors name their kind only, because the URLs of queries hold patient ids.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import urllib3

from client.ingest.sources.retry import LostError
from shared_model.errors import SourceError

_CHUNK = 1 << 20
_BOUNDARY = re.compile(r'boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_SLOWEST = 64 << 10  # bytes a second; an answer may take `timeout` and as long as it takes at this speed


class TooLargeError(Exception):
    """The answer is longer than its bound; the rest was not read."""


@dataclass(frozen=True)
class Answer:
    """Status, content type and body of an answer."""

    status: int
    content_type: str
    body: bytes = field(repr=False)


class Web:
    """A connection to one server; a context manager.

    Args:
        name: of the server, for messages. headers: sent with each request; may hold a secret.
    """

    def __init__(
        self, name: str, *, context: ssl.SSLContext | None, headers: Mapping[str, str], timeout_seconds: float
    ) -> None:
        self._name, self._timeout = name, timeout_seconds
        self._headers = {"Accept-Encoding": "identity"} | dict(headers)
        limits = urllib3.Timeout(connect=min(timeout_seconds, 30.0), read=timeout_seconds)
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, timeout=limits, retries=False, ssl_context=context)

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()

    def get(self, url: str, *, accept: str, max_bytes: int) -> Answer:
        """One GET.

        Raises:
            LostError: no connection, broken off, too slow. TooLargeError. SourceError: the certificate is not trusted.
        """
        headers = self._headers | {"Accept": accept}
        try:
            response = self._pool.request(
                "GET", url, headers=headers, redirect=False, preload_content=False, decode_content=False
            )
        except urllib3.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise LostError("the TLS connection failed") from None
            raise SourceError(
                f"{self._name} shows a certificate that is not trusted", expected="one signed by `ca`",
                remedy="set ca to the authority's PEM file, and check the host in url",
            ) from None  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise LostError(f"no answer ({type(error).__name__})") from None
        try:
            body = self._body(response, max_bytes)
        except urllib3.exceptions.HTTPError as error:
            response.close()
            raise LostError(f"the answer broke off ({type(error).__name__})") from None
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return Answer(response.status, response.headers.get("Content-Type", ""), body)

    def _body(self, response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise LostError("an answer in an encoding that was not asked for")
        parts: list[bytes] = []
        size, began = 0, time.monotonic()
        while chunk := response.read(_CHUNK):
            parts.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                raise TooLargeError
            if time.monotonic() - began > self._timeout + size / _SLOWEST:
                raise LostError("the answer comes too slowly")
        return b"".join(parts)


def only_part(answer: Answer) -> bytes:
    """The first part of a multipart/related answer (RFC 2387, RFC 2046 5.1.1), or the body of another.

    Raises:
        ValueError: damaged; without text of it.
    """
    if not answer.content_type.lower().startswith("multipart/"):
        return answer.body
    found = _BOUNDARY.search(answer.content_type)
    if found is None:
        raise ValueError("no boundary")
    mark = b"--" + (found[1] or found[2]).encode("latin-1")
    start = answer.body.find(mark)
    head = answer.body.find(b"\r\n\r\n", start)
    end = answer.body.find(b"\r\n" + mark, head + 2)
    if start < 0 or head < 0 or end < 0:
        raise ValueError("no whole part")
    return answer.body[head + 4 : end]
