"""How entries of `data_paths` and `image_folders` may name something on the disk, known without opening it.

Apart from the package `datasets`, whose import takes seconds: the check of a config's text needs it, too.
"""

import os
import posixpath

WILDCARDS = "*?{"
ARCHIVES = (".tar", ".zip")


def is_pattern(path: str) -> bool:
    """Whether an entry names files by a pattern: `*` and `?` as in a shell, and braces."""
    return not os.path.exists(path) and any(char in path for char in WILDCARDS)


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
    """Whether something is there that an entry of `data_paths` can mean; a pattern isn't looked up."""
    return os.path.exists(path) or is_pattern(path)


def names_images(path: str) -> bool:
    """Whether something is there that an entry of `image_folders` can mean."""
    return os.path.isdir(path) or bool(split_archive(path)[0])
