"""Which store a URL leads to: a hash that tells stores apart, and holds no credential in readable form."""

import json
import os
from collections.abc import Mapping
from typing import Any

from ...data_names import STORE_PACKAGES, is_url, scheme_of, unsigned
from ..cache import text_hash

# Environment variables that send the same URL to another store, by the package that reads them: botocore (under s3fs),
# ossfs, gcsfs, and libhdfs (under pyarrow)
VARIABLES = {
    "s3fs": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE"),
    "ossfs": ("OSS_ENDPOINT",),
    "gcsfs": ("STORAGE_EMULATOR_HOST",),
    "pyarrow": ("HADOOP_CONF_DIR",),
}
# The same in fsspec's own configuration: its files, and variables such as FSSPEC_S3_ENDPOINT_URL
OPTIONS = ("endpoint_url", "endpoint", "profile", "host")


def identity(root: str, options: Mapping[str, Any]) -> str:
    """Hash of what decides which object a name below `root` means: URL, options, and the environment's endpoint.

    It stays the same where only passwords, signatures of URLs and keys in the environment change.

    Args:
        root: a URL, or what stands before the names of a backend.
        options: `backend_args`, which hold no credentials.
    """
    elsewhere = _environment(scheme_of(root)) if is_url(root) and "backend" not in options else {}
    return text_hash(unsigned(root), *(json.dumps(each, sort_keys=True, default=str) for each in (options, elsewhere)))


def _environment(scheme: str) -> dict[str, str]:
    """The endpoint and the profile that the process's environment sets for URLs of a scheme."""
    from fsspec.config import conf

    package = STORE_PACKAGES.get(scheme, "")
    found = {name: os.environ[name] for name in VARIABLES.get(package, ()) if os.environ.get(name)}
    for name in (name for name, needed in STORE_PACKAGES.items() if needed == package):  # s3 and s3a read both
        for place in (conf.get(name, {}), conf.get(name, {}).get("client_kwargs", {})):
            found |= {f"{name} {option}": str(place[option]) for option in OPTIONS if option in place}
    return found


def url_key(url: str) -> str:
    """Hash of a URL without password and signature; reject lists name files by it, wherever they are read."""
    return text_hash(unsigned(url))
