"""What of a HEIC file reaches its decoder: the primary picture, its tiles and its transparency (ISO/IEC 23008-12).

A file may hold a thousand pictures that share megabytes of metadata, and a small picture may be made of large tiles.
libheif bounds each of them, but not what all of them come to.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from service.pose.formats import BrokenContainerError, UnknownFormatError

MAX_BOXES: Final = 4096
"""Boxes within a box. Of pictures, libheif reads a thousand at most."""

MAX_ENTRIES: Final = 16_384
"""References between the pictures of a file, and properties of all of them."""

_MAX_PIECES: Final = 32  # that the data of a picture is in
_MAX_CODED: Final = 3  # pixels of tiles and transparency for one of the picture
_OVERHANG_PIXELS: Final = 4 << 20  # of tiles beyond the edges of the picture
_FILE_BOXES: Final = frozenset({b"ftyp", b"meta", b"mdat"})
_META_BOXES: Final = frozenset({b"hdlr", b"pitm", b"iinf", b"iref", b"iprp", b"iloc", b"idat", b"dinf"})
_TURNS: Final = (b"irot", b"imir", b"clap", b"iscl")
_TILE, _AUXILIARY = b"dimg", b"auxl"
_ALPHA: Final = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\x00", b"urn:mpeg:hevc:2015:auxid:1\x00")


@dataclass(frozen=True, slots=True)
class _Box:
    """A box: its type, and where it, its content and what follows it begin."""

    kind: bytes
    at: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Reference:
    """From a picture to its tiles ("dimg"), or from its transparency to the picture ("auxl")."""

    box: _Box
    item: int
    targets: tuple[int, ...]


def primary_picture(data: bytes) -> bytes:
    """The file in which everything but the primary picture is renamed to free space.

    Raises:
        UnknownFormatError: the primary picture is not coded in HEVC.
        BrokenContainerError: damaged, or too complicated.
        KeyError: it breaks off before a table that every file has.
    """
    unused = list[_Box]()
    file = _tables(data, 0, len(data), _FILE_BOXES, unused)
    if b"meta" not in file and any(box.kind == b"moov" for box in unused):
        raise UnknownFormatError("it is a sequence of HEVC pictures, like a video, without a still one")
    meta = _tables(data, file[b"meta"].start + 4, file[b"meta"].end, _META_BOXES, unused)
    primary, items = _primary(data, meta[b"pitm"]), _items(data, meta[b"iinf"])
    references = _references(data, meta[b"iref"]) if b"iref" in meta else []
    properties = _properties(data, meta[b"iprp"])

    def tiles_of(pictures: Collection[int]) -> set[int]:
        return {to for each in references if each.box.kind == _TILE and each.item in pictures for to in each.targets}

    picture = {primary} | tiles_of({primary})
    alpha = {
        each.item
        for each in references
        if each.box.kind == _AUXILIARY
        and not picture.isdisjoint(each.targets)
        and any(data.startswith(_ALPHA, box.start + 4) for box in properties[each.item] if box.kind == b"auxC")
    }
    kept = picture | alpha | tiles_of(alpha)
    kinds = {item: items[item][0] if item in items else b"" for item in kept}
    if unknown := set(kinds.values()) - {b"hvc1", b"grid"}:
        raise UnknownFormatError(f"it is a HEIF picture coded as {min(unknown).decode('latin-1')!r} instead of HEVC")
    if any(_turns_twice(properties[item]) for item in kept):
        raise BrokenContainerError("it is to be turned more than once")
    pixels = {item: _pixels(data, properties[item]) for item in kept}
    if sum(pixels[item] for item in kept if kinds[item] == b"hvc1") > _MAX_CODED * pixels[primary] + _OVERHANG_PIXELS:
        raise BrokenContainerError("its tiles have far more pixels than the picture")
    if _bytes_of(data, meta[b"iloc"], kept) > len(data):
        raise BrokenContainerError("its tiles share their data")

    unused += [box for item, (_, box) in items.items() if item not in kept]
    unused += [each.box for each in references if each.item not in kept or each.box.kind not in (_TILE, _AUXILIARY)]
    changed = bytearray(data)
    for box in unused:
        changed[box.at + 4 : box.at + 8] = b"free"
    return bytes(changed)


class _Numbers:
    """The unsigned numbers in a box, one after the other.

    Attributes:
        version: of the box; 0 if it has none.
    """

    def __init__(self, data: bytes, box: _Box, *, has_version: bool = True) -> None:
        self._data, self.at, self._end = data, box.start, box.end
        self.version = self.next(1) if has_version else 0
        self.flags = self.next(3) if has_version else 0

    def next(self, size: int) -> int:
        """A number of so many bytes."""
        if self.at + size > self._end:
            raise BrokenContainerError("it breaks off")
        self.at += size
        return int.from_bytes(self._data[self.at - size : self.at], "big")


def _boxes(data: bytes, start: int, end: int) -> Iterator[_Box]:
    at = start
    for _ in range(MAX_BOXES):
        if at + 8 > end:
            return
        size, kind, content = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, content = int.from_bytes(data[content : content + 8], "big"), content + 8
        size = size or end - at  # none: up to the end
        if size < content - at:
            raise BrokenContainerError("it breaks off")
        yield _Box(kind, at, content, min(at + size, end))
        at += size
    raise BrokenContainerError("it has too many boxes")


def _tables(data: bytes, start: int, end: int, known: Collection[bytes], unused: list[_Box]) -> dict[bytes, _Box]:
    """The boxes between two places by their types; those of other types are added to `unused`."""
    found = dict[bytes, _Box]()
    for each in _boxes(data, start, end):
        if each.kind not in known:
            unused.append(each)
        elif each.kind in found and each.kind != b"mdat":
            raise BrokenContainerError(f"it has two {each.kind.decode()} boxes")
        else:
            found[each.kind] = each
    return found


def _primary(data: bytes, pitm: _Box) -> int:
    numbers = _Numbers(data, pitm)
    return numbers.next(2 if numbers.version == 0 else 4)


def _items(data: bytes, iinf: _Box) -> dict[int, tuple[bytes, _Box]]:
    """The type and the entry of each item."""
    items = dict[int, tuple[bytes, _Box]]()
    numbers = _Numbers(data, iinf)
    numbers.next(2 if numbers.version == 0 else 4)
    for box in _boxes(data, numbers.at, iinf.end):
        entry = _Numbers(data, box)
        item, _, kind = entry.next(2 if entry.version < 3 else 4), entry.next(2), entry.next(4)
        if item in items:
            raise BrokenContainerError("it has two items of the same number")
        items[item] = kind.to_bytes(4, "big"), box
    return items


def _references(data: bytes, iref: _Box) -> list[_Reference]:
    references, left = list[_Reference](), MAX_ENTRIES
    numbers = _Numbers(data, iref)
    size = 2 if numbers.version == 0 else 4
    for box in _boxes(data, numbers.at, iref.end):
        entry = _Numbers(data, box, has_version=False)
        item, count = entry.next(size), entry.next(2)
        if (left := left - count) < 0:
            raise BrokenContainerError("it has too many references")
        references.append(_Reference(box, item, tuple(entry.next(size) for _ in range(count))))
    return references


def _properties(data: bytes, iprp: _Box) -> Mapping[int, list[_Box]]:
    """What describes each item."""
    properties, left = defaultdict[int, list[_Box]](list), MAX_ENTRIES
    tables = list(_boxes(data, iprp.start, iprp.end))
    described = [each for table in tables if table.kind == b"ipco" for each in _boxes(data, table.start, table.end)]
    for numbers in (_Numbers(data, table) for table in tables if table.kind == b"ipma"):
        size, essential = (2, 0x8000) if numbers.flags & 1 else (1, 0x80)
        for _ in range(numbers.next(4)):
            item, count = numbers.next(2 if numbers.version == 0 else 4), numbers.next(1)
            if (left := left - 1 - count) < 0:
                raise BrokenContainerError("it has too many properties")
            indices = [numbers.next(size) % essential for _ in range(count)]
            properties[item] += [described[index - 1] for index in indices if 0 < index <= len(described)]
    return properties


def _turns_twice(properties: Collection[_Box]) -> bool:
    kinds = [box.kind for box in properties]
    return any(kinds.count(kind) > 1 for kind in _TURNS)


def _pixels(data: bytes, properties: Collection[_Box]) -> int:
    """How many pixels an item says that it has."""
    sizes = [_Numbers(data, box) for box in properties if box.kind == b"ispe"]
    return sum(size.next(4) * size.next(4) for size in sizes)


def _bytes_of(data: bytes, iloc: _Box, items: Collection[int]) -> int:
    """How many bytes of data the items have together."""
    total, numbers = 0, _Numbers(data, iloc)
    sizes, wide, is_new = numbers.next(2), 4 if numbers.version == 2 else 2, numbers.version > 0
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(numbers.next(wide)):
        item, place, _, base = numbers.next(wide), numbers.next(2 * is_new), numbers.next(2), numbers.next(base_size)
        pieces = numbers.next(2)
        if pieces > _MAX_PIECES:
            raise BrokenContainerError("the data of a picture is in too many pieces")
        for _ in range(pieces):
            _, offset, length = numbers.next(index_size * is_new), numbers.next(offset_size), numbers.next(length_size)
            if item in items:
                total += length or len(data)  # none: all that there is
                if place & 15 == 0 and base + offset + length > len(data):  # 0: in the file
                    raise BrokenContainerError("it breaks off")
    return total
