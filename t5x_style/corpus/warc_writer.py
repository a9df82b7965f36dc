"""Writing WARC 1.0 records (ISO 28500) whose bytes depend on what they hold alone.

Record ids are name-based UUIDs and dates are given, so that the same crawl gives the same file.
Each record becomes one gzip member, as Common Crawl has it; members may simply be joined.
"""

import base64
import hashlib
import uuid
import zlib
from collections.abc import Mapping, Sequence

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:t5x-style:warc")
_GZIP_WBITS = 31


def warcinfo_record(filename: str, date: str, fields: Mapping[str, str]) -> bytes:
    """Returns the gzip member of a warcinfo record, the first of a file.

    Args:
      filename: name of the file it opens.
      date: WARC-Date, such as "2024-01-01T00:00:00Z".
      fields: its content; `isPartOf` names the dump.
    """
    block = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
    headers = {
        "WARC-Type": "warcinfo",
        "WARC-Record-ID": _record_id("warcinfo", filename, date, block),
        "WARC-Date": date,
        "WARC-Filename": filename,
        "Content-Type": "application/warc-fields",
        "WARC-Block-Digest": _digest(block),
    }
    return _member(headers, block)


def response_record(
    url: str,
    date: str,
    body: bytes,
    status: str = "200 OK",
    http_headers: Sequence[tuple[str, str]] = (("Content-Type", "text/html; charset=utf-8"),),
) -> bytes:
    """Returns the gzip member of a response record.

    Args:
      url: WARC-Target-URI.
      date: WARC-Date of the capture.
      body: the HTTP body as it went over the wire.
      status: code and phrase of the status line.
      http_headers: headers of the response; Content-Length is added.
    """
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in http_headers)]
    lines.append(f"Content-Length: {len(body)}")
    block = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
    headers = {
        "WARC-Type": "response",
        "WARC-Record-ID": _record_id("response", url, date, block),
        "WARC-Date": date,
        "WARC-Target-URI": url,
        "Content-Type": "application/http; msgtype=response",
        "WARC-Payload-Digest": _digest(body),
        "WARC-Block-Digest": _digest(block),
    }
    return _member(headers, block)


def _record_id(kind: str, name: str, date: str, block: bytes) -> str:
    content = hashlib.sha256(block).hexdigest()
    return f"<urn:uuid:{uuid.uuid5(_NAMESPACE, f'{kind} {name} {date} {content}')}>"


def _digest(data: bytes) -> str:
    digest = hashlib.sha1(data, usedforsecurity=False).digest()
    return f"sha1:{base64.b32encode(digest).decode()}"


def _member(headers: Mapping[str, str], block: bytes) -> bytes:
    lines = ["WARC/1.0", *(f"{name}: {value}" for name, value in headers.items())]
    lines.append(f"Content-Length: {len(block)}")
    record = "\r\n".join(lines).encode() + b"\r\n\r\n" + block + b"\r\n\r\n"
    deflater = zlib.compressobj(level=6, wbits=_GZIP_WBITS)  # no name, no time in the header
    return deflater.compress(record) + deflater.flush()
