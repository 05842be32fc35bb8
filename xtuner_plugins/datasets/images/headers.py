"""The size of a plain JPEG or PNG from its first bytes, in a tenth of the time that Pillow takes to open it.

Only files that Pillow opens without complaint are understood, and their size and orientation are Pillow's. Everything
else (damaged, rare or contradictory headers, other formats) gives None, and Pillow decides. So a segment counts only
when it is whole, and is left to Pillow where Pillow's reading of it could fail or depend on more than its bytes.

    JPEG  FFD8 | FFE0 APP0 | FFE1 EXIF | FFDB DQT | FFC0 SOF: height, width | FFC4 DHT | FFDA SOS | ...
    PNG   signature | IHDR: width, height | gAMA ... | IDAT | ...
"""

import os
import struct
import zlib

HEAD, LONG_HEAD = 1 << 12, 1 << 17  # bytes read at first; and where the header is longer (EXIF with a thumbnail, ICC)
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
DQT, SOS, COM = 0xDB, 0xDA, 0xFE
SKIPPED = {0xC4, 0xDD, COM}  # DHT, DRI, comments
FRAMES = {0xC0, 0xC1, 0xC2}  # SOF of baseline, extended and progressive JPEG
APPS = range(0xE0, 0xF0)
BEFORE_SCANS = {DQT, *SKIPPED, *FRAMES, *APPS}
WITHOUT_PIXELS = {COM, *APPS} - {0xE0, 0xEE}  # segments that don't change them; JFIF and Adobe's do
# What these segments begin with, and how many bytes of them Pillow reads without looking at their length
FIXED = {b"JFIF": 7, b"Adobe": 7, b"ICC_PROFILE\0": 14}
LEFT_TO_PILLOW = (b"MPF\0", b"Photoshop 3.0\0")  # several images in one file; a list of resources
EXIF, XMP, XMP_ORIENTATION = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"tiff:Orientation"
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # type -> bytes (TIFF 6.0)
ORIENTATION, X_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x0128
SHORT, RATIONAL = 3, 5
SWAPS_SIDES = {5, 6, 7, 8}  # orientations under which width and height change places
PNG_MODES = {(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3), (4, 3), (8, 3)}
PNG_MODES |= {(8, 4), (16, 4), (8, 6), (16, 6)}  # (bits, color type) of PNG 1.2, table 11.1
PNG_CHUNKS = {b"sRGB": 1, b"gAMA": 4, b"pHYs": 9, b"PLTE": 0, b"bKGD": 0, b"tIME": 0, b"sBIT": 0, b"tEXt": 0}
TEXT_WITH_MEANING = {b"exif", b"xmp", b"XML:com.adobe.xmp", b"Raw profile type exif", b"bbox"}  # for Pillow


def plain_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of the upright image that begins with `data`; None where Pillow has to look."""
    try:
        if data.startswith(JPEG):
            return _jpeg_size(data)
        return _png_size(data) if data.startswith(PNG) else None
    except (IndexError, struct.error):  # the header is longer than `data`
        return None


def read_plain_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """As `plain_size`, of a file, which is opened once and read only as far as needed."""
    try:
        file = os.open(path, os.O_RDONLY)
    except (OSError, ValueError):  # Pillow's own attempt gives the error
        return None
    try:
        head = os.read(file, HEAD)
        size = plain_size(head)
        if size is None and len(head) == HEAD and head.startswith((JPEG, PNG)):
            size = plain_size(head + os.read(file, LONG_HEAD))
        return size
    except OSError:
        return None
    finally:
        os.close(file)


def jpeg_content(data: bytes) -> bytes:
    """A JPEG without the segments that don't change its pixels: EXIF, color profiles, comments and the like.

    JFIF and Adobe's segment stay, since they tell the color space; so does everything from the first scan, or from a
    segment that isn't understood, on.
    """
    place, kept = 2, [data[:2]]
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] and data[place + 1] in BEFORE_SCANS:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if not place + 4 <= end <= len(data):
            break
        if data[place + 1] not in WITHOUT_PIXELS:
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Of a JPEG whose header is whole up to its first scan."""
    place, size, exif, xmp = 2, None, None, False
    while True:
        if data[place] != 0xFF:
            return None
        marker, length = data[place + 1], data[place + 2] << 8 | data[place + 3]
        start, place = place + 4, place + 2 + length
        if length < 2 or place > len(data):
            return None
        if marker == DQT:
            if not _whole_tables(data, start, place):
                return None
        elif marker in APPS:
            if data.startswith(EXIF, start):
                if exif is not None or marker != 0xE1:
                    return None
                exif = data[start + len(EXIF) : place]
            elif data.startswith(XMP, start):
                xmp = xmp or data.find(XMP_ORIENTATION, start, place) >= 0
            elif data.startswith(LEFT_TO_PILLOW, start) or not _is_whole(data, start, place):
                return None
        elif marker in FRAMES:
            height, width, layers = struct.unpack_from(">HHB", data, start + 1)
            if size is not None or data[start] != 8 or layers not in (1, 3, 4) or length != 8 + 3 * layers:
                return None
            size = width, height
        elif marker == SOS:
            break
        elif marker not in SKIPPED:
            return None
    if not size or not all(size):
        return None
    turn = 0 if exif is None else _orientation(exif)
    if turn is None or (xmp and not turn):
        return None
    return size[::-1] if turn in SWAPS_SIDES else size


def _whole_tables(data: bytes, place: int, end: int) -> bool:
    """Whether a segment holds whole quantization tables, of 64 values of one or two bytes."""
    while place < end:
        place += 65 if data[place] < 16 else 129
    return place == end


def _is_whole(data: bytes, start: int, end: int) -> bool:
    """Whether a segment of an application has the fields that Pillow reads."""
    return all(end - start >= num for name, num in FIXED.items() if data.startswith(name, start))


def _orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of EXIF; 0 where it isn't there, None where Pillow has to look."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    (directory,) = struct.unpack_from(order + "I", exif, 4)
    (num,) = struct.unpack_from(order + "H", exif, directory)
    first, end = directory + 2, directory + 2 + 12 * num
    if directory < 8 or end + 4 > len(exif):
        return None
    found = 0
    for place in range(first, end, 12):
        tag, kind, count, offset = struct.unpack_from(order + "HHII", exif, place)
        size = count * TIFF_SIZES.get(kind, 0)
        if size == 0 or (size > 4 and offset + size > len(exif)):
            return None
        if tag in (X_RESOLUTION, RESOLUTION_UNIT) and (kind, count) != (RATIONAL if tag == X_RESOLUTION else SHORT, 1):
            return None
        if tag == ORIENTATION:
            if found or (kind, count) != (SHORT, 1):
                return None
            found = struct.unpack_from(order + "H", exif, place + 8)[0] or 1
    return found


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Of a PNG whose header is whole up to its first pixels."""
    length, kind, width, height, bits, color, _, filters = struct.unpack_from(">I4sIIBBBB", data, len(PNG))
    if (length, kind) != (13, b"IHDR") or (bits, color) not in PNG_MODES or filters or not (width and height):
        return None
    place = len(PNG)
    while True:
        end = place + 8 + length
        if struct.unpack_from(">I", data, end)[0] != zlib.crc32(data[place + 4 : end]):
            return None
        place = end + 4
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            break
        if kind not in PNG_CHUNKS or length < PNG_CHUNKS[kind]:
            return None
        if kind == b"tEXt" and data[place + 8 : place + 8 + length].split(b"\0", 1)[0] in TEXT_WITH_MEANING:
            return None
    return width, height
