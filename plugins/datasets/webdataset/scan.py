"""Where the members of a tar lie, found by its headers alone, also in a damaged tar.

Headers as in POSIX 1003.1-2001 (ustar, pax) with GNU's long names and large sizes. A header that
cannot be read costs its own member: the scan goes on at the next good one.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
ZEROS = bytes(BLOCK)
REGULAR = (b"0", b"\0", b"7")


class Member(NamedTuple):
    """A file in a tar: `size` bytes from `offset` on, or fewer if the tar ends before."""

    name: str
    offset: int
    size: int


class Header(NamedTuple):
    """What one block says."""

    name: str
    size: int
    kind: bytes


def scan(path: Path) -> tuple[list[Member], list[str]]:
    """The files in the tar at `path`, in order, and what is wrong with the tar itself.

    Raises:
        OSError: it cannot be read.
    """
    members: list[Member] = []
    problems: list[str] = []
    with open(path, "rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        members.extend(_walk(file.fileno(), end, problems))
    return members, problems


def _walk(file: int, end: int, problems: list[str]) -> Iterator[Member]:
    position, name, size = 0, None, None
    while True:
        block = os.pread(file, BLOCK, position)
        if len(block) < BLOCK:
            problems.append("it ends without its end mark" if position else "it is empty")
            return
        # A lone block of zeros is damage; the end mark has two.
        if block == ZEROS and os.pread(file, BLOCK, position + BLOCK) in (ZEROS, b""):
            return
        header = parse(block)
        if header is None:
            following = _next_header(file, position + BLOCK)
            problems.append(f"the header at byte {position:,} cannot be read")
            if following is None:
                return
            position, name, size = following, None, None
            continue
        start = position + BLOCK
        length = header.size if size is None else size
        position = start + -(-length // BLOCK) * BLOCK
        if start + length > end:
            problems.append(f"it ends within the member at byte {start:,}")
        if header.kind == b"L":
            name = os.pread(file, length, start).rstrip(b"\0").decode(errors="replace")
            continue
        if header.kind == b"x":
            said = _pax(os.pread(file, length, start))
            name = said.get("path", name)
            size = int(said["size"]) if said.get("size", "").isdigit() else None
            continue
        if header.kind in REGULAR:
            yield Member(name or header.name, start, length)
        if header.kind not in (b"g", b"K"):
            name, size = None, None
        if position > end:
            return


def parse(block: bytes) -> Header | None:
    """The header in a block of 512 bytes; None if its checksum says that it is none."""
    try:
        expected = int(block[148:156].strip(b" \0") or b"x", 8)
        if sum(block) - sum(block[148:156]) + 8 * 32 != expected:
            return None
        field = block[124:136]
        if field[0] & 0x80:  # GNU: sizes from 8 GiB on, as a binary number
            size = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        else:
            size = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    whole = prefix + b"/" + name if prefix else name
    return Header(whole.decode(errors="replace"), size, block[156:157])


def _next_header(file: int, position: int) -> int | None:
    """Where the next block lies that is a header beyond doubt; None if there is none."""
    while chunk := os.pread(file, 256 * BLOCK, position):
        for start in range(0, len(chunk) - BLOCK + 1, BLOCK):
            block = chunk[start : start + BLOCK]
            if block[257:262] == b"ustar" and parse(block) is not None:
                return position + start
        position += len(chunk) // BLOCK * BLOCK or BLOCK
    return None


def _pax(content: bytes) -> dict[str, str]:
    """The records `length key=value` of an extended header."""
    found = {}
    while content:
        length = content.partition(b" ")[0]
        if not length.isdigit() or not 0 < int(length) <= len(content):
            break
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        found[key.decode(errors="replace")] = value.decode(errors="replace")
    return found
