"""The only place that knows what a URI is: local paths and `s3://`, with the standard AWS environment variables.

Data goes through pyarrow's filesystems (Ray Data and Delta use the same variables). Control files and the check that a
store answers go through s3fs, whose errors tell a wrong key from a missing bucket and whose retries can be bounded.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import pyarrow.fs as pafs
import xxhash

from llmrec.errors import StoreError, UserError

SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
REDIS_PASSWORD = "LLMREC_REDIS_PASSWORD"
SERVE_TOKEN = "LLMREC_SERVE_TOKEN"
PSEUDONYM_KEY = "LLMREC_PSEUDONYM_KEY"
OWN_SECRETS = (REDIS_PASSWORD, SERVE_TOKEN, PSEUDONYM_KEY)  # of what is no store
TRACKERS_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY")
# The one that privacy.key_variable names is added when a configuration is read, and where the key is used.
_secret_variables = {*SECRET_VARIABLES, *OWN_SECRETS, *TRACKERS_SECRETS}
STORE_VARIABLES = (
    *SECRET_VARIABLES, "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP",
    "AWS_EC2_METADATA_DISABLED", "AWS_PROFILE",
)  # fmt: skip
CONNECT_SECONDS, READ_SECONDS = 3, 10
# With waits that double up to 20 s: a store that is away for less than about a minute is waited for.
ATTEMPTS = 12
READERS = 16
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")

Given = TypeVar("Given")
Found = TypeVar("Found")


class Listed(NamedTuple):
    """A file that a listing found. modified: seconds since 1970, by the store's clock."""

    uri: str
    size: int
    modified: float


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(p.strip("/") for p in parts)])


def under(root: str, name: str) -> str:
    """A relative name joined to a root; an absolute path or a URI as it is."""
    return name if name.startswith("/") or _SCHEME.match(name) else join(root, name)


def absolute(uri: str) -> str:
    """A local path made absolute (workers run in other directories), an s3:// URI without a trailing slash.

    Raises:
        UserError: another scheme, credentials inside the URI, an s3:// URI without a bucket, or what is no path.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        try:
            return str(Path(uri).expanduser().resolve())
        except (ValueError, RuntimeError) as error:  # a zero byte; ~ of a user who is not there
            raise UserError(f"{uri!r}: no path ({error})") from None
    if scheme[1] == "file":
        return str(Path(uri.removeprefix("file://")).resolve())
    if scheme[1] != "s3":
        raise UserError(f"'{redact(uri)}': unknown scheme '{scheme[1]}://'; use a local path or s3://bucket/prefix")
    parts = urlsplit(uri)
    # A secret may hold slashes, and then the part before the first one is no bucket.
    if "@" in uri or ":" in parts.netloc or parts.query:
        raise UserError(
            f"'{redact(uri)}': put credentials and endpoint in the AWS_* environment variables, not in the URI"
        )
    if not parts.netloc:
        raise UserError(f"'{uri}': no bucket; use s3://bucket/prefix")
    return uri.rstrip("/")


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a URI and the path inside it."""
    uri = absolute(uri)
    if not is_s3(uri):
        return pafs.LocalFileSystem(), uri
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS, "request_timeout": 60,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    }  # fmt: skip
    if endpoint.netloc:
        options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or endpoint.netloc:
        options["region"] = region or "us-east-1"
    return pafs.S3FileSystem(**options), uri.removeprefix("s3://")


def check(uri: str) -> None:
    """Ask the store once whether it answers and the bucket is there; for a local path, that its parent can be read.

    Raises:
        UserError: within seconds, naming the endpoint, bucket or credential that is wrong; a StoreError if there is no
            answer or nothing to sign with.
    """
    uri = absolute(uri)
    if not is_s3(uri):
        return
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from botocore.exceptions import ConnectionError as BotoConnectionError

    bucket = urlsplit(uri).netloc
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "AWS")
    s3 = _s3fs()
    try:
        s3.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except NoCredentialsError:
        raise StoreError(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except (PermissionError, FileNotFoundError, ClientError, OSError, BotoCoreError) as error:
        if isinstance(error, BotoConnectionError) or _names(error, "Connect", "Timeout", "timed out"):
            raise StoreError(f"{uri}: no answer from {endpoint}; is AWS_ENDPOINT_URL right and the store up?") from None
        if isinstance(error, FileNotFoundError) or _names(error, "NoSuchBucket"):
            raise UserError(
                f"{uri}: bucket '{bucket}' does not exist at {endpoint}; create it or correct the URI"
            ) from None
        if isinstance(error, PermissionError) or _names(
            error, "SignatureDoesNotMatch", "InvalidAccessKeyId", "Forbidden"
        ):
            raise UserError(
                f"{uri}: {endpoint} refuses these credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        raise UserError(f"{uri}: {endpoint} answered {redact(str(error))}") from None


def read_bytes(uri: str) -> bytes:
    """A whole small file.

    Raises:
        UserError: it does not exist, is a directory, or the store does not give it.
    """
    found = read_if_there(uri)
    if found is None:
        raise UserError(f"{uri}: no such file")
    return found


def read_if_there(uri: str) -> bytes | None:
    """A whole small file; None if there is none.

    Raises:
        UserError: it is a directory, or the store does not give it; a StoreError if that does not answer.
    """
    fs, path = filesystem(uri)
    try:
        with fs.open_input_stream(path) as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        check(uri)  # says what is wrong with the store, if that is it
        reason = os.strerror(error.errno) if error.errno else redact(str(error).splitlines()[0])[:160]
        raise UserError(f"{uri}: cannot be read ({reason})") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole small file; a reader sees the old one or the new one, never a part.

    Raises:
        UserError: the disk is full, or the store or the file system does not take it.
    """
    fs, path = filesystem(uri)
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        if is_s3(uri):
            with fs.open_output_stream(path) as stream:
                stream.write(data)
            return
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        if not is_s3(uri):
            with contextlib.suppress(OSError):  # a part of the path may be a file
                temporary.unlink(missing_ok=True)
        reason = error.strerror or redact(str(error).splitlines()[0])[:160]
        raise UserError(f"{uri}: cannot be written ({reason}); mend that and run the same command again") from None


def is_leftover(uri: str) -> bool:
    """Whether a file is what a process that was killed in `write_bytes` left, a part of another one."""
    return not is_s3(uri) and re.search(r"\.\d+\.tmp$", uri) is not None


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def each(work: Callable[[Given], Found], of: Iterable[Given]) -> list[Found]:
    """`work` of each, in order, several at once: a store takes its time for every small read."""
    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(work, of))


def exists(uri: str) -> bool:
    """
    Raises:
        UserError: the store does not say.
    """
    fs, path = filesystem(uri)
    with _answering(uri):
        return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


@contextlib.contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Errors of a store, but that something is not there, as one line: a StoreError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith("botocore."):
            raise
        try:
            check(uri)  # says what is wrong with the store, if that is it
        except UserError as told:
            raise StoreError(str(told)) from None
        reason = " ".join(redact(str(error) or type(error).__name__).split())[:160]
        raise StoreError(f"{uri}: the store refuses it ({reason}); is this process allowed to?") from None


def list_files(uri: str, suffix: str = "") -> list[tuple[str, int]]:
    """(URI, bytes) of every file under a prefix, or of the file itself, sorted by name; empty if there is none."""
    return [(f.uri, f.size) for f in list_details(uri, suffix)]


def list_details(uri: str, suffix: str = "") -> list[Listed]:
    """`list_files` with the time of each file's last change."""
    fs, path = filesystem(uri)
    with _answering(uri):
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [Listed(absolute(uri), info.size, info.mtime_ns / 1e9)]
        found = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = "s3://" if is_s3(uri) else ""
    return sorted(
        Listed(prefix + f.path, f.size, f.mtime_ns / 1e9)
        for f in found if f.type == pafs.FileType.File and f.path.endswith(suffix)
    )  # fmt: skip


def manifest(uri: str) -> list[tuple[str, int, str]]:
    """(name, bytes, content tag) of every file under a prefix: equal manifests mean equal content.

    The tag is the store's ETag, or a hash of a local file.
    """
    uri = absolute(uri)
    if is_s3(uri):
        with _answering(uri):
            found = _s3fs().find(uri, detail=True)
        return sorted((name, f["size"], f["ETag"].strip('"')) for name, f in found.items())
    return [(name, size, _content_tag(name)) for name, size in list_files(uri)]


def _content_tag(path: str) -> str:
    """Of a local file, which may be larger than memory."""
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def delete(uri: str) -> None:
    """Delete a file or everything under a prefix; nothing there is fine."""
    fs, path = filesystem(uri)
    with _answering(uri):
        kind = fs.get_file_info(path).type
        if kind == pafs.FileType.File:
            fs.delete_file(path)
        elif kind == pafs.FileType.Directory:
            with contextlib.suppress(FileNotFoundError):  # a store may list a folder for a while that is gone
                fs.delete_dir(path)


def upload_directory(local: Path, uri: str, last: str = "") -> None:
    """Copy a local directory to a URI, file by file, that of this name last."""
    for file in sorted((p for p in local.rglob("*") if p.is_file()), key=lambda p: (p.name == last, p)):
        write_bytes(join(uri, file.relative_to(local).as_posix()), file.read_bytes())


def local_directory(uri: str, cache: Path) -> Path:
    """A directory to read files from: the path itself, or a cached copy of what lies under an s3:// prefix.

    The copy is keyed by the listing's names, sizes and times, so a changed model is fetched anew.

    Raises:
        UserError: nothing lies there.
    """
    if not is_s3(uri):
        if not Path(uri).is_dir():
            raise UserError(f"{uri}: no such directory")
        return Path(uri)
    uri = absolute(uri)
    fs, root = filesystem(uri)
    found = [
        f for f in fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        if f.type == pafs.FileType.File
    ]  # fmt: skip
    if not found:
        raise UserError(f"{uri}: nothing lies there")
    listing = json.dumps(sorted((f.path, f.size, f.mtime_ns) for f in found))
    target = cache / hashlib.sha256((uri + listing).encode()).hexdigest()[:24]
    if target.is_dir():
        return target
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    for f in found:
        file = temporary / f.path.removeprefix(root + "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        with fs.open_input_stream(f.path) as stream:
            file.write_bytes(stream.read())
    try:
        temporary.rename(target)
    except OSError:  # another process was first; its copy is as good
        if not target.is_dir():
            raise
    return target


def made_once(folder: Path, version: str, make: Callable[[Path], None]) -> Path:
    """A directory of this machine under `folder`, filled by `make` unless this version of it is there.

    Processes that ask at once wait for the first. Other versions go; who has their files open keeps them.

    Raises:
        UserError: the folder cannot be written.
    """
    target = folder / version
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                for other in folder.iterdir():
                    if other.is_dir():  # an older version, or what a killed process left
                        shutil.rmtree(other)
                work = Path(tempfile.mkdtemp(dir=folder))
                make(work)
                work.rename(target)
    except OSError as error:
        raise UserError(f"{folder}: this cache cannot be written ({error.strerror or error})") from None
    return target


def delta_options(uri: str) -> dict[str, str]:
    """Options for delta-rs, which reads the AWS variables itself except for permission to use plain http."""
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return {"AWS_ALLOW_HTTP": "true"} if is_s3(uri) and plain else {}


def environment() -> dict[str, str]:
    """The variables that a worker needs to reach the same store as this process."""
    return {name: os.environ[name] for name in STORE_VARIABLES if name in os.environ}


def keep_secret(variable: str) -> None:
    """Let `redact` blot out the value of this environment variable, too, in this process."""
    _secret_variables.add(variable)


def redact(text: str) -> str:
    """Text with the values of the secret variables, and credentials inside URIs, blotted out."""
    values = {os.environ.get(name, "") for name in _secret_variables} - {""}
    for value in sorted(values, key=len, reverse=True):  # or of one that begins with another the end would stay
        text = text.replace(value, "***")
    return re.sub(r"(s3|https?|rediss?)://[^\s'@]+@", r"\1://***@", text)


def _s3fs() -> Any:
    import s3fs

    return s3fs.S3FileSystem(
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"max_attempts": 0},
        },
    )


def _names(error: BaseException, *words: str) -> bool:
    text = f"{type(error).__name__} {error} {type(error.__cause__).__name__}"
    return any(word in text for word in words)
