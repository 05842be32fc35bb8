"""How entries of `data_paths` and `image_folders` may name files and objects, known without opening them.

Apart from the package `datasets`, whose import takes seconds: the check of a config's text needs it, too.
"""

import os
import posixpath
import re
from urllib.parse import parse_qsl, unquote, urlsplit

WILDCARDS = "*?{"
ARCHIVES = (".tar", ".zip")
LOCAL_SCHEME = "file"
# Packages that fsspec needs, by the scheme of a URL, as Python and pip name them; '' where it needs none
STORE_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "oss": "ossfs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hdfs": "pyarrow",
    "http": "aiohttp",
    "https": "aiohttp",
    "memory": "",
}
_URL = re.compile(r"(?:[\w.:-]+:)?([a-z][a-z0-9+.-]*)://", re.IGNORECASE)  # petrel writes `cluster:s3://`
# What stands before the host: up to the first slash, or beyond it where a password that isn't quoted holds one.
_USER = re.compile(r"(?<=://)(?:[^/\s@]*|[^/\s@]*:(?!\d+/)[^\s@]*)@")
HIDDEN = "***"  # stands for credentials in what messages show of a URL
# Parameters of signed URLs: of S3, Google, OSS, COS, and those by which other servers know a reader
_SIGNATURE = re.compile(
    r"(?:x-amz-.*|x-goog-.*|x-oss-(?:signature.*|credential|date|expires|additional-headers)|signature|sig|token"
    r"|(?:x-oss-|x-cos-)?security-token|(?:aws|oss)accesskeyid|googleaccessid"
    r"|q-(?:sign-algorithm|ak|sign-time|key-time|header-list|url-param-list|signature))=.*",
    re.IGNORECASE | re.DOTALL,
)
# Those that are part of a signature only beside one: of S3 and CloudFront (Signature), and of Azure (sig)
_BESIDE_SIGNATURE = re.compile(r"(?:expires|policy|key-pair-id)=.*", re.IGNORECASE | re.DOTALL)
_BESIDE_SIG = re.compile(r"(?:s[epvrst]|spr|srt|sip|sk(?:oid|tid|t|e|s|v))=.*", re.IGNORECASE | re.DOTALL)
_QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>]+")  # holds the signature of a signed URL


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


def unsigned(url: str) -> str:
    """A URL without password and signature, which change while it names the same object; the user's name stays."""
    url = _USER.sub(lambda user: user[0].rstrip("@").partition(":")[0] + "@", url)
    base, question, query = url.partition("?")
    parts = query.split("&") if is_url(url) else [query]
    names = {part.partition("=")[0].lower() for part in parts}
    for pattern, needed in ((_BESIDE_SIGNATURE, "signature"), (_BESIDE_SIG, "sig"), (_SIGNATURE, None)):
        if is_url(url) and (needed is None or needed in names):
            parts = [part for part in parts if not pattern.fullmatch(part)]
    return base + question + "&".join(parts) if parts else base


def hidden_parts(url: str) -> list[str]:
    """What `masked` hides in a URL, whole and in parts, for texts that repeat some of it; the longest first."""
    user, query = _USER.search(url), url.partition("?")[2]
    user = user[0].rstrip("@") if user else ""
    parts = [user, user.partition(":")[2], query, *(value for _, value in parse_qsl(query))]
    return sorted({text for part in parts for text in (part, unquote(part)) if len(text) > 3}, key=len, reverse=True)


def is_pattern(path: str) -> bool:
    """Whether an entry names files by a pattern: `*` and `?` as in a shell, and braces."""
    return not is_url(path) and not os.path.exists(path) and any(char in path for char in WILDCARDS)


def split_archive(path: str) -> tuple[str, str]:
    """(archive, folder in it) of a path; ('', '') where no part of it is a tar or zip file."""
    head, inside = path.rstrip("/"), ""
    while head and not os.path.isdir(head):
        if head.lower().endswith(ARCHIVES) and os.path.isfile(head):
            return head, inside
        head, tail = os.path.split(head)
        if not tail:
            break
        inside = posixpath.join(tail, inside) if inside else tail
    return "", ""


def names_data(path: str) -> bool:
    """Whether something is there that an entry of `data_paths` can mean; patterns and URLs aren't looked up."""
    path = local_path(path)
    return is_url(path) or os.path.exists(path) or is_pattern(path)


def names_images(path: str) -> bool:
    """Whether something is there that an entry of `image_folders` can mean; URLs aren't looked up."""
    path = local_path(path)
    return is_url(path) or os.path.isdir(path) or bool(split_archive(path)[0])
