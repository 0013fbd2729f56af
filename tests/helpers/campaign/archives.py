"""Changes of tars, npy, zips and wavs that keep what a quick check looks at: sums, lengths, magic words."""

import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
import zlib

import numpy as np

from helpers.campaign.damage import Change, flip_bit

BLOCK = 512


# Tars


def edit_tar_header(chance: random.Random, content: bytes) -> bytes:
    """Change a field of a header, and make its sum right again."""
    starts = _headers(content)
    if not starts:
        return flip_bit(chance, content)
    start = chance.choice(starts)
    header = bytearray(content[start : start + BLOCK])
    field = chance.choice(["size", "size", "name", "type", "link", "mtime", "prefix", "magic"])
    if field == "size":
        header[124:136] = chance.choice(
            [
                b"00000000000\0",
                b"77777777777\0",
                b"\x80" + b"\xff" * 11,
                b"\xff" * 12,  # -1 in base 256
                b"\xff" * 10 + b"\xfe\x00",  # -512: the next header is this one
                b"-0000001000\0",
                b"%011o\0" % chance.randrange(10_000),
                b"\x80" + (2**62).to_bytes(11, "big"),
                b"            ",
            ]
        )
    elif field == "name":
        name = chance.choice(
            [b"../../victim/data", b"/etc/passwd", b"", b"\xff\xfe.json", b"a\x1b[31m.json", b"a" * 100, b".json"]
        )
        header[0:100] = name[:100].ljust(100, b"\0")
    elif field == "type":
        header[156:157] = chance.choice([b"1", b"2", b"5", b"6", b"S", b"L", b"K", b"x", b"g", b"D", b"\0", b"V", b"Z"])
    elif field == "link":
        header[156:157], header[157:257] = b"2", b"../victim/data.tar".ljust(100, b"\0")
    elif field == "mtime":
        header[136:148] = chance.choice([b"\xff" * 12, b"zzzzzzzzzzzz", b"77777777777\0"])
    elif field == "prefix":
        header[345:500] = (b"../" * 51).ljust(155, b"\0")
    else:
        header[257:265] = chance.choice([b"ustar  \0", b"\0" * 8, b"Ustar\x0000"])
    return content[:start] + _with_sum(header) + content[start + BLOCK :]


def edit_members(chance: random.Random, content: bytes) -> bytes:
    """Drop, repeat, exchange or rename members, or change their content."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            members = [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    except (tarfile.TarError, AttributeError, OSError):
        return flip_bit(chance, content)
    one, other = chance.randrange(len(members)), chance.randrange(len(members))
    kind = chance.randrange(7)
    if kind == 0:
        del members[one]
    elif kind == 1:
        members.insert(other, members[one])
    elif kind == 2:
        members[one], members[other] = (members[one][0], members[other][1]), (members[other][0], members[one][1])
    elif kind == 3:
        members[one][0].name = chance.choice([members[other][0].name, "x.pickle", "a/b/c.npy", "é.json", "." * 90])
    elif kind == 4:
        change = edit_npy if members[one][0].name.endswith(".npy") else flip_bit
        members[one] = (members[one][0], change(chance, members[one][1]) if members[one][1] else b"x")
    elif kind == 5:
        members[one] = (members[one][0], b"")
    else:
        members = []
    return _tar(members, chance.choice([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))


def add_special(chance: random.Random, content: bytes) -> bytes:
    """Put a header before the others that costs much: sparse, a long name, or pax records that lie."""
    kind = chance.randrange(4)
    if kind == 0:
        info = tarfile.TarInfo("hole.embedding.npy")
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[156:157], header[124:136] = b"S", b"%011o\0" % 0
        header[386:398], header[398:410] = b"00000000000\0", b"%011o\0" % 0
        header[483:495] = b"77777777777\0"  # eight gigabytes of nothing
        return _with_sum(header) + content
    records = {
        1: b"27 GNU.sparse.size=9999999\n28 GNU.sparse.realsize=99999\n",
        2: b"99999999999 path=a\n",
        3: b"22 size=-99999999999\n",
    }
    body = records.get(kind, b"")
    info = tarfile.TarInfo("pax")
    info.size, info.type = len(body), b"x"
    return info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-len(body) // BLOCK) * BLOCK, b"\0") + content


def compress(chance: random.Random, content: bytes) -> bytes:
    """A compressed file where a plain one is expected; sometimes one that grows a thousandfold."""
    if chance.random() < 0.5:
        content = content[:-1024] + b"\0" * 30_000_000
    return gzip.compress(content) if chance.random() < 0.5 else lzma.compress(content, preset=0)


def cut_tar(chance: random.Random, content: bytes) -> bytes:
    """Cut between members, or without the blocks that end a tar."""
    starts = _headers(content) or [0]
    return content[: chance.choice([*starts, len(content.rstrip(b"\0"))])]


TARS: tuple[Change, ...] = (*(edit_tar_header,) * 6, *(edit_members,) * 6, add_special, add_special, compress, cut_tar)


def _headers(content: bytes) -> list[int]:
    return [start for start in range(0, len(content), BLOCK) if content[start + 257 : start + 262] == b"ustar"]


def _with_sum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# npy


def edit_npy(chance: random.Random, content: bytes) -> bytes:
    """Give an npy another header, as long as NumPy would write it."""
    if content[:6] != b"\x93NUMPY" or len(content) < 12:
        return flip_bit(chance, content)
    old_length = int.from_bytes(content[8:10], "little")
    body = content[10 + old_length :]
    shape = chance.choice(
        ["(512,)", "()", "(-1, 2)", "(0, 0)", "(512, 99999999)", "(2, 512)", "(1,) * 3", "(2.5, 1)", "(True, 2)",
         "(99999999999999999999, 1)", "'a'", "[512, 2]", "(" * 50 + ")" * 50, "-" * 9000 + "1"]
    )  # fmt: skip
    kind = chance.choice(
        ["'<f2'", "'<f4'", "'<f8'", "'|i1'", "'<i2'", "'|O'", "'>f2'", "'<U9999999'", "[('a', '<f4')]", "'|V0'",
         "'<M8[s]'", "1", "None", "'x'", "'<c8'", "(('<f2', (999999999,)))"]
    )  # fmt: skip
    order = chance.choice(["False", "True", "0", "'x'"])
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if chance.random() < 0.2:
        text = chance.choice(["{" * 3000, "{'descr': '<f4'}", "x" * 60000, "9" * 5000, "__import__('os')", "{}", "\0"])
    version = chance.choice([b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"])
    header = text.encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    length = (len(header) % 65536).to_bytes(2, "little") if version[0] == 1 else len(header).to_bytes(4, "little")
    return content[:6] + version + length + header + body


# Zips: npz, and what torch.save writes


def edit_member(chance: random.Random, content: bytes) -> bytes:
    """Change a member, and write the zip anew with right sums: a file that somebody made so."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, OSError, zlib.error, NotImplementedError):
        return flip_bit(chance, content)
    place = chance.randrange(len(members))
    info, body = members[place]
    kind = chance.randrange(6)
    if kind == 0:
        del members[place]
    elif kind == 1:
        members.append((info, body))
    elif kind == 2:
        info.filename = chance.choice(["../../victim/data.npy", "other.npy", "data", "data.pkl", "\x1b[31m.npy"])
    elif kind == 3:
        members[place] = (info, b"\0" * 40_000_000)  # a bomb, where it is compressed
    elif body:
        members[place] = (info, edit_npy(chance, body) if body[:6] == b"\x93NUMPY" else flip_bit(chance, body))
    method = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if kind == 3 else method) as archive:
        for info, body in members:
            archive.writestr(info.filename, body)
    return buffer.getvalue()


def edit_directory(chance: random.Random, content: bytes) -> bytes:
    """Change a field of a zip's directory, or of the header before a member."""
    mark, fields = chance.choice(
        [
            (b"PK\x01\x02", ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4))),
            (b"PK\x03\x04", ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
            (b"PK\x05\x06", ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
        ]
    )
    starts = [place for place in range(len(content) - 4) if content.startswith(mark, place)][:50]
    if not starts:
        return flip_bit(chance, content)
    offset, size = chance.choice(fields)
    start = chance.choice(starts) + offset
    old = int.from_bytes(content[start : start + size], "little")
    value = chance.choice([0, 1, old ^ 1, old + 1, old * 2, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)])
    return content[:start] + (value % 2 ** (8 * size)).to_bytes(size, "little") + content[start + size :]


ZIPS: tuple[Change, ...] = (*(edit_member,) * 4, *(edit_directory,) * 5)


# wav


def edit_wav(chance: random.Random, content: bytes) -> bytes:
    """Change a field of a wav's header."""
    form, size = chance.choice([(20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (40, 4), (16, 4), (4, 4)])
    values = [0, 1, 2, 3, 8, 16, 24, 44_100, 65_535, 0xFFFE, 2**31, 2**32 - 1]
    return content[:form] + (chance.choice(values) % 2 ** (8 * size)).to_bytes(size, "little") + content[form + size :]


def no_numbers(chance: random.Random, content: bytes) -> bytes:
    """A float wav of the same length that holds NaN, infinity or absurd values."""
    count = max((len(content) - 44) // 2, 1)
    samples = np.zeros(count, dtype="<f4")
    samples[chance.randrange(count)] = chance.choice([np.nan, np.inf, -np.inf, 1e30, 3e38])
    body = samples.tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(body), b"WAVE", b"fmt ", 16, 3, 1, 16_000, 64_000, 4, 32,
                       b"data", len(body))  # fmt: skip
    return head + body


def other_audio(chance: random.Random, content: bytes) -> bytes:
    """The same samples at another rate, in stereo, or fewer or more of them."""
    samples = content[44:]
    kind = chance.randrange(4)
    rate, channels = (8_000, 1) if kind == 0 else (16_000, 2) if kind == 1 else (16_000, 1)
    if kind == 2:
        samples = samples[: len(samples) // 4 * 2]
    elif kind == 3:
        samples = samples * 2
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, channels, rate,
                       rate * 2 * channels, 2 * channels, 16, b"data", len(samples))  # fmt: skip
    return head + samples


WAVS: tuple[Change, ...] = (*(edit_wav,) * 4, *(no_numbers,) * 3, *(other_audio,) * 3)
