"""How entries of `data_paths` and `image_folders` may name files and objects, known without opening them.

Apart from the package `datasets`, whose import takes seconds: the check of a config's text needs it, too.
"""

import hashlib
import os
import posixpath
import re
from urllib.parse import unquote, urlsplit

WILDCARDS = "*?"
LOCAL_SCHEME = "file"
# Packages that fsspec needs, by the scheme of a URL, as Python and pip name them; '' where it needs none
STORE_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    "oss": "ossfs",
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    "hdfs": "pyarrow",
    **dict.fromkeys(("http", "https"), "aiohttp"),
    "memory": "",
}
HIDDEN = "***"  # stands for credentials in what messages show of a URL
# Settings of data that went, and what to do instead
GONE_SETTINGS = {
    "augment": "write jpeg_quality=(75, 100); images are no longer cropped or recolored in training",
    "route": "write fast_decoding: False for pillow (the default), True or 'auto' for torchvision",
    "backend_args": "write fsspec's options as storage_options; mount another store, or save LMDB as Parquet",
    "store_timeout": "leave it out: a read is tried four times, 60 s each",
    "image_cache_gib": "leave it out: images in stores are read each time; copy them to a disk to keep them",
    "windows_paths": "leave it out: `\\` separates folders where no file has the name as it is",
    "num_threads": "leave it out: set num_workers, whose processes open samples side by side",
    "record_sizes": "leave it out: sizes are read from the images' headers",
}
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# What stands before the host: up to the first slash, or beyond it where a password that isn't quoted holds one.
_USER = re.compile(r"(?<=://)(?:[^/\s@]*|[^/\s@]*:(?!\d+/)[^\s@]*)@")
_QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>]+")  # holds the signature of a signed URL
# Parameters of URLs that are signed for S3, Google, OSS and COS, CloudFront, and of servers that know a reader by them
_SIGNED = re.compile(
    r"x-(?:amz|goog|oss|cos)-(?!process)|q-|(?:sig|signature|expires|policy|key-pair-id|token|\w*access(?:key)?id|security-token)=",
    re.IGNORECASE,
)


def is_url(path: object) -> bool:
    """Whether an entry is a URL; `file://` is one, too."""
    return isinstance(path, str) and _URL.match(path) is not None


def scheme_of(url: str) -> str:
    """The scheme of a URL, in lower case."""
    return _URL.match(url)[1].lower()


def local_path(path: str) -> str:
    """The path that a `file://` URL names; any other entry as it is."""
    if not is_url(path) or scheme_of(path) != LOCAL_SCHEME:
        return path
    return unquote(urlsplit(path).path)


def absolute_path(path: str) -> str:
    """The absolute path of an entry; a URL as it is."""
    return path if is_url(path) else os.path.abspath(path)


def real_path(path: str) -> str:
    """The path of an entry without links, by which two entries are compared; a URL as it is."""
    return path if is_url(path) else os.path.realpath(path)


def masked(text: str) -> str:
    """A text without the users, passwords and queries (signatures) of the URLs in it, for messages."""
    return _QUERY.sub(rf"\1?{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def shown(url: str) -> str:
    """As `masked`, and a hash tells URLs apart that differ in a query, the signature aside."""
    query = unsigned(url).partition("?")[2]
    return masked(url) + (hashlib.blake2b(query.encode(), digest_size=4).hexdigest() if query else "")


def unsigned(url: str) -> str:
    """A URL without user and signature, which change while it names the same object; for keys."""
    base, _, query = _USER.sub("", url).partition("?")
    parts = [part for part in query.split("&") if not _SIGNED.match(part)]
    is_azure = any(part.startswith("sig=") for part in query.split("&"))  # whose query is the signature's alone
    return base if is_azure or not any(parts) else f"{base}?{'&'.join(parts)}"


def is_pattern(path: str) -> bool:
    """Whether an entry names files by a pattern: `*` and `?` as in a shell."""
    return not is_url(path) and not os.path.exists(path) and any(char in path for char in WILDCARDS)


def split_zip(path: str) -> tuple[str, str]:
    """(zip archive, folder in it) of a path; ('', '') where no part of it is one."""
    head, inside = path.rstrip("/"), ""
    while head and not os.path.isdir(head):
        if head.lower().endswith(".zip") and os.path.isfile(head):
            return head, inside
        head, tail = os.path.split(head)
        inside = posixpath.join(tail, inside) if inside else tail
        if not tail:
            break
    return "", ""


def names_data(path: str) -> bool:
    """Whether something is there that an entry of `data_paths` can mean; patterns and URLs aren't looked up."""
    path = local_path(path)
    return is_url(path) or os.path.exists(path) or is_pattern(path)


def names_images(path: str) -> bool:
    """Whether something is there that an entry of `image_folders` can mean; URLs aren't looked up."""
    path = local_path(path)
    return is_url(path) or os.path.isdir(path) or bool(split_zip(path)[0])
