"""Colour profiles made on the spot."""

import struct


def profile(space: bytes, curve: float, **columns: tuple[float, float, float]) -> bytes:
    """A version 2 matrix profile: a power curve, and the XYZ (D50) of each primary."""
    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
    }
    gamma = b"curv" + bytes(4) + struct.pack(">IH", 1, round(curve * 256)) + bytes(2)
    if space == b"GRAY":
        tags[b"kTRC"] = gamma
    for name, column in columns.items():
        tags[name[0].encode() + b"XYZ"] = xyz(*column)
        tags[name[0].encode() + b"TRC"] = gamma
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name_in_file, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name_in_file + struct.pack(">II", at + len(body), len(padded))
        body += padded
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    head += bytes(28) + struct.pack(">3i", round(0.9642 * 65536), 65536, round(0.8249 * 65536))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * each) for each in (x, y, z)))


# Display P3, adapted to D50: the primaries of phones.
DISPLAY_P3 = {
    "red": (0.51512, 0.24120, -0.00105),
    "green": (0.29198, 0.69225, 0.04189),
    "blue": (0.15710, 0.06657, 0.78407),
}
