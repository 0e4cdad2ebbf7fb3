"""A place that is an S3 bucket, of AWS or of another server that speaks its protocol.

Credentials, region and endpoint_url come from the environment and ~/.aws, as for every client of S3. A file shows under
its name only once the server has all of it.
"""

import base64
import hashlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import urlsplit

from a0backup.a0cli.text import quote
from a0backup.errors import PlaceDeniedError, PlaceError
from a0backup.fleet.copies import Copy
from a0backup.places.credentials import S3Credentials
from a0backup.places.store import CHUNK, LEFT_AFTER, OF_TRANSFER, Entry, Store, missing_extra

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        ListMultipartUploadsRequestTypeDef,
        ListObjectsV2RequestTypeDef,
    )

PART = 8 << 20  # bytes; a file up to this size is sent at once
PROBE = ".checksum-probe"

_MOST_PARTS = 9000  # S3 takes 10,000
_AT_ONCE = 2  # parts on their way; with the one that is being filled, this bounds the memory of a transfer
_CONNECT = 20.0  # seconds
_SILENCE = 60.0  # seconds in which a server that is alive sends something
_LONGEST_PAUSE = 20.0  # seconds between two tries

# The names of classes of botocore and the codes of servers; a HEAD has only a status.
_BUSY = dict.fromkeys(("408", "429", "500", "502", "503", "504", "RequestTimeout", "SlowDown"), 90.0)
_WORTH_TRYING = _BUSY | {"SSLError": 0.0, "ConnectionError": 15.0, "HTTPClientError": 90.0}  # seconds

_CREDENTIALS = "correct the credentials of this place in ~/.aws or in the environment, and check its endpoint_url"
_RIGHTS = (
    "allow these credentials s3:GetObject and s3:PutObject, and best also s3:ListBucket, s3:DeleteObject and "
    "s3:AbortMultipartUpload below the prefix; a lock on the objects refuses to remove or replace them"
)
_REGION = "set the region of the bucket for the profile in ~/.aws/config"
_LATER = "the next run tries again; if it stays like this, lower at_most or limit of this place"
_NETWORK = "check that the server runs, the network, and endpoint_url for the profile in ~/.aws/config"
_NO_S3 = "check endpoint_url of this place: what answers there is no server that speaks S3"
_SPACE = "free space on the server, or raise the quota"
_REMEDIES = {
    "NoCredentialsError": "put credentials into ~/.aws/credentials, and name their `profile` for this place if it is "
    "not the default one; or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "PartialCredentialsError": _CREDENTIALS,
    "CredentialRetrievalError": _CREDENTIALS,
    "ProfileNotFound": "add the profile to ~/.aws/config, or correct `profile` of this place",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "RequestTimeTooSkewed": "set the clock of this machine",
    "NoSuchBucket": "make the bucket, or correct url and endpoint_url of this place",
    "AccessDenied": _RIGHTS,
    "403": _RIGHTS,
    "301": _REGION,
    "400": "check the region of the bucket, and that the credentials have not expired",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    **dict.fromkeys(_BUSY, _LATER),
    "507": _SPACE,
    "QuotaExceeded": _SPACE,
    "SSLError": "name the file of the certificate authority in AWS_CA_BUNDLE, or as ca_bundle in ~/.aws/config; check "
    "the host name in endpoint_url, and the clock",
    "ConnectionError": _NETWORK,
    "HTTPClientError": _NETWORK,
}

_DENIED = ("AccessDenied", "403", "MethodNotAllowed")

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def open_bucket(copy: Copy, credentials: S3Credentials | None = None) -> Iterator[Store]:
    """Yield the bucket of *copy*. Nothing is asked of the server yet. Raise PlaceError."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise missing_extra(copy) from None
    logging.getLogger("botocore").setLevel(logging.INFO)  # its debug lines show session tokens
    # Nothing about addressing: botocore puts the bucket into the path where an endpoint_url is set, and
    # addressing_style in ~/.aws/config still counts. No checksums but ours: many servers know no others.
    config = Config(
        connect_timeout=min(_CONNECT, copy.deadline),
        read_timeout=min(_SILENCE, copy.deadline),
        tcp_keepalive=True,
        retries={"total_max_attempts": 1, "mode": "standard"},  # `_Bucket._call` tries again, and keeps the deadline
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        key, secret, token = credentials.keys() if credentials else (None, None, None)
        client = boto3.Session(key, secret, token, profile_name=copy.profile).client("s3", config=config)
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint_url that is none
        raise _explained(copy, error) from error
    with closing(client):
        yield _Bucket(copy, client)


class _Bucket:
    """See `Store`."""

    def __init__(self, copy: Copy, client: "S3Client") -> None:
        self._copy, self._client = copy, client
        self._bucket = urlsplit(copy.url).netloc
        self._root = f"{copy.root}/" if copy.root else ""
        self._bucket_seen = False

    def size(self, path: str) -> int | None:
        try:
            head = self._get(self._client.head_object, path)
        except FileNotFoundError:
            self._require_bucket()
            return None
        return _told(self._copy, head, "ContentLength", int)

    def read(self, path: str) -> Iterator[bytes]:
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        reply = self._get(self._client.get_object, path)
        announced, came = _told(self._copy, reply, "ContentLength", int), 0
        with closing(reply["Body"]) as body:
            while True:
                try:
                    chunk = body.read(CHUNK)
                except (BotoCoreError, HTTPError, OSError) as error:
                    raise _explained(self._copy, error, f"{path} ended after {came} of {announced} bytes") from error
                if not chunk:
                    break
                came += len(chunk)
                yield chunk
        if came != announced:
            raise PlaceError(self._copy.name, f"{path} ended after {came} of {announced} bytes", "try again")

    def write(self, path: str, chunks: Iterable[bytes], *, size: int) -> bool:
        key = self._root + path
        checksum = self._put(key, chunks, size) if size <= PART else self._put_in_parts(key, chunks, size)
        if self._copy.prove != "checksum" or not self._checks_checksums:
            return False
        head = self._call(self._client.head_object, Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        return head.get("ContentLength") == size and head.get("ChecksumSHA256") == checksum

    def settle(self, path: str) -> None:
        """Do nothing: what a bucket shows is durable."""

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        # Not by a paginator of boto3: after an error it ends as if there were no further page.
        place: ListObjectsV2RequestTypeDef = {"Bucket": self._bucket, "Prefix": self._root + prefix}
        while True:
            page = self._call(self._client.list_objects_v2, **place)
            for item in page.get("Contents", []):
                path = _told(self._copy, item, "Key", str).removeprefix(self._root)
                if path and not path.endswith("/"):  # what a console makes to show an empty folder
                    yield Entry(path, _told(self._copy, item, "Size", int))
            if not page.get("IsTruncated"):
                return
            following = _told(self._copy, page, "NextContinuationToken", str)
            if following == place.get("ContinuationToken"):
                raise PlaceError(self._copy.name, "the server lists the same page again and again", _NO_S3)
            place["ContinuationToken"] = following

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._call(self._client.delete_object, Bucket=self._bucket, Key=self._root + path)

    def tidy(self) -> None:
        before = datetime.now(UTC) - timedelta(seconds=LEFT_AFTER)
        place: ListMultipartUploadsRequestTypeDef = {"Bucket": self._bucket, "Prefix": self._root}
        try:
            while True:
                page = self._call(self._client.list_multipart_uploads, **place)
                for upload in page.get("Uploads", []):
                    key, initiated = (
                        _told(self._copy, upload, "Key", str),
                        _told(self._copy, upload, "Initiated", datetime),
                    )
                    if initiated < before and OF_TRANSFER.fullmatch(key.removeprefix(self._root)):
                        self._abort(key, _told(self._copy, upload, "UploadId", str))
                following = page.get("NextKeyMarker", ""), page.get("NextUploadIdMarker", "")
                if not page.get("IsTruncated") or following == (place.get("KeyMarker"), place.get("UploadIdMarker")):
                    return
                place |= {"KeyMarker": following[0], "UploadIdMarker": following[1]}
        except (PlaceError, FileNotFoundError) as error:
            # Many servers and credentials do not allow this; a rule of the bucket then ends such uploads.
            log.debug("%s: unfinished uploads cannot be listed: %s", self._copy.name, error)

    def _put(self, key: str, chunks: Iterable[bytes], size: int) -> str:
        """Store *chunks* under *key* with one request; return their checksum."""
        body = b"".join(_counted(self._copy, chunks, size))
        checksum = _sha256(body)
        self._call(self._client.put_object, Bucket=self._bucket, Key=key, Body=body, ChecksumSHA256=checksum)
        return checksum

    def _put_in_parts(self, key: str, chunks: Iterable[bytes], size: int) -> str:
        """Store *chunks* under *key* part by part; return their checksum, of the checksums of the parts."""
        started = self._call(
            self._client.create_multipart_upload, Bucket=self._bucket, Key=key, ChecksumAlgorithm="SHA256"
        )
        upload = _told(self._copy, started, "UploadId", str)
        try:
            parts = self._send_parts(key, upload, _parts(_counted(self._copy, chunks, size), _part_size(size)))
            self._call(
                self._client.complete_multipart_upload,
                Bucket=self._bucket,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
            )
        except BaseException as error:
            # Another deadline of waiting for a server that does not answer would end nothing: `tidy` does, a day later.
            if not _is_silence(error):
                self._abort(key, upload)
            raise
        digests = b"".join(base64.b64decode(part["ChecksumSHA256"]) for part in parts)
        return f"{_sha256(digests)}-{len(parts)}"

    def _send_parts(self, key: str, upload: str, parts: Iterable[bytes]) -> "list[CompletedPartTypeDef]":
        def send(number: int, part: bytes) -> "CompletedPartTypeDef":
            checksum = _sha256(part)
            sent = self._call(
                self._client.upload_part,
                Bucket=self._bucket,
                Key=key,
                UploadId=upload,
                PartNumber=number,
                Body=part,
                ChecksumSHA256=checksum,
            )
            return {"PartNumber": number, "ETag": _told(self._copy, sent, "ETag", str), "ChecksumSHA256": checksum}

        done: list[CompletedPartTypeDef] = []
        waiting: deque[Future[CompletedPartTypeDef]] = deque()
        try:
            for number, part in enumerate(parts, 1):
                waiting.append(_started(partial(send, number, part), f"copy-{self._copy.name}-{number}"))
                if len(waiting) == _AT_ONCE:
                    done.append(waiting.popleft().result())
            while waiting:
                done.append(waiting.popleft().result())
        except BaseException:
            # A part that arrives after the abort would stay, and cost.
            wait(waiting)
            raise
        return done

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._call(self._client.abort_multipart_upload, Bucket=self._bucket, Key=key, UploadId=upload)
        except (PlaceError, FileNotFoundError) as error:
            log.debug("%s: the unfinished upload of %s stays: %s", self._copy.name, key, error)

    @cached_property
    def _checks_checksums(self) -> bool:
        """Whether the server refuses bytes that are not those of their checksum.

        A server that only keeps the checksum it is sent would prove nothing by showing it.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        key = self._root + PROBE
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=b"probe", ChecksumSHA256=_sha256(b"other"))
        except (BotoCoreError, ClientError) as error:
            # Only the answers that mean the checksum: any other failure tells nothing, and copies are read back.
            return _names(error)[0] in ("BadDigest", "InvalidDigest", "InvalidRequest", "XAmzContentChecksumMismatch")
        with suppress(PlaceError):
            self.remove(PROBE)
        log.info("%s: the server accepts wrong checksums, so each copy is read back", self._copy.name)
        return False

    def _get(self, request: Callable[..., R], path: str) -> R:
        """Return the answer to *request* for the file *path*. Raise FileNotFoundError, PlaceError."""
        try:
            return self._call(request, Bucket=self._bucket, Key=self._root + path)
        except PlaceDeniedError:
            # S3 answers so for a missing file, too, if the credentials may not list. Where they may not read, either,
            # what is written next cannot be read back, and so is never taken for proven.
            if self._may_list:
                raise
            raise FileNotFoundError(path) from None

    @cached_property
    def _may_list(self) -> bool:
        try:
            self._call(self._client.list_objects_v2, Bucket=self._bucket, Prefix=self._root, MaxKeys=1)
        except PlaceDeniedError:
            return False
        return True

    def _require_bucket(self) -> None:
        """Raise PlaceError if there is no such bucket; it is looked for once."""
        if self._bucket_seen:
            return
        try:
            self._call(self._client.head_bucket, Bucket=self._bucket)
        except PlaceDeniedError:
            return  # credentials that may not list may not ask this, either
        except FileNotFoundError:
            reason = f"there is no bucket {self._bucket}"
            raise PlaceError(self._copy.name, reason, _REMEDIES["NoSuchBucket"]) from None
        self._bucket_seen = True

    def _call(self, request: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what *request* returns; try it again while that may help. Raise PlaceError.

        Raise FileNotFoundError if the server has no such key.
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        started, pause = time.monotonic(), 1.0
        while True:
            try:
                return request(*args, **kwargs)
            except (BotoCoreError, ClientError) as error:
                if _is_missing(error):
                    raise FileNotFoundError(f"{self._copy.name}: no such file") from None
                nap = random.uniform(pause / 2, pause)  # noqa: S311 - only spreads the tries
                give_up_at = started + min(_seconds_worth_trying(error), self._copy.deadline)
                if time.monotonic() + nap >= give_up_at:
                    raise _explained(self._copy, error) from error
                log.debug("%s: tried again in %.1f s: %s", self._copy.name, nap, _explained(self._copy, error).reason)
            except (ResponseParserError, ValueError) as error:  # botocore's for XML and values that are none
                raise PlaceError(self._copy.name, "the answer of the server cannot be read", _NO_S3) from error
            time.sleep(nap)
            pause = min(pause * 2, _LONGEST_PAUSE)


def _told(copy: Copy, reply: Mapping[str, object], name: str, kind: type[R]) -> R:
    """Return what the server says under *name*. Raise PlaceError if it says nothing, or nothing of that *kind*."""
    value = reply.get(name)
    if not isinstance(value, kind):
        raise PlaceError(copy.name, f"there is no {name} in the answer of the server", _NO_S3)
    return value


def _names(error: Exception) -> list[str]:
    """Return the names under which the tables know *error*, the narrowest first."""
    if response := getattr(error, "response", None):  # only a ClientError has one that is not None
        return [response["Error"]["Code"], str(response["ResponseMetadata"]["HTTPStatusCode"])]
    return [kind.__name__ for kind in type(error).__mro__]


def _is_silence(error: BaseException) -> bool:
    """Return whether *error* means that the server did not answer."""
    cause = error.__cause__
    return isinstance(cause, Exception) and not {"HTTPClientError", "ConnectionError"}.isdisjoint(_names(cause))


def _is_missing(error: Exception) -> bool:
    return _names(error)[0] in ("NoSuchKey", "404", "NotFound")


def _seconds_worth_trying(error: Exception) -> float:
    return next((_WORTH_TRYING[name] for name in _names(error) if name in _WORTH_TRYING), 0.0)


def _explained(copy: Copy, error: Exception, what: str = "") -> PlaceError:
    """Return *error* in words that help; *what* it meant may come before them."""
    names = _names(error)
    if response := getattr(error, "response", None):
        told = response["Error"].get("Message", "")
        reason = f"the server answers {getattr(error, 'operation_name', 'a request')} with {quote(names[0], limit=60)}"
        reason += f": {quote(told)}" if told and told != names[0] else ""
    elif "CredentialRetrievalError" in names:
        reason = "the program that provides the credentials failed"  # what it printed may contain them
    else:
        reason = quote(str(error))
    remedy = next((_REMEDIES[name] for name in names if name in _REMEDIES), "")
    kind = PlaceDeniedError if names[0] in _DENIED else PlaceError
    return kind(copy.name, f"{what}: {reason}" if what else reason, remedy)


def _started(work: Callable[[], R], name: str) -> Future[R]:
    """Return the result of *work* in a thread of its own, which does not keep the process from ending."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _counted(copy: Copy, chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield *chunks*. Raise PlaceError unless they are *size* bytes in all, before one too many is sent."""
    came = 0
    for chunk in chunks:
        came += len(chunk)
        if came > size:
            break
        yield chunk
    if came != size:
        raise PlaceError(copy.name, f"{came} bytes or more were to be sent, not {size}")


def _parts(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the bytes of *chunks* in parts of *size*; the last one may be smaller."""
    pieces: list[memoryview] = []
    room = size
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            pieces.append(rest[:room])
            room -= len(pieces[-1])
            rest = rest[len(pieces[-1]) :]
            if not room:
                yield b"".join(pieces)
                pieces, room = [], size
    if pieces:
        yield b"".join(pieces)


def _part_size(size: int) -> int:
    return max(PART, -(-size // _MOST_PARTS))


def _sha256(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()
