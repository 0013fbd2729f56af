"""Damage that any file may suffer, whatever it holds: bits, cuts, insertions, and something else in its place."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

Change = Callable[[random.Random, bytes], bytes]
"""Content -> other content; what is drawn is drawn from the first argument."""


def flip_bit(chance: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flip_bit_of_an_end(chance: random.Random, content: bytes) -> bytes:
    """Headers and footers are short; they are hit as often as the rest."""
    changed, reach = bytearray(content), min(len(content), 600)
    place = chance.randrange(reach)
    changed[place if chance.random() < 0.5 else len(changed) - 1 - place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.choice([0, 1, len(content) // 2, len(content) - 1, chance.randrange(len(content))])]


def cut_front(chance: random.Random, content: bytes) -> bytes:
    return content[chance.randint(1, len(content)) :]


def insert(chance: random.Random, content: bytes) -> bytes:
    place = chance.randint(0, len(content))
    return content[:place] + _some_bytes(chance, chance.choice([1, 2, 7, 512])) + content[place:]


def remove(chance: random.Random, content: bytes) -> bytes:
    first, last = sorted(chance.randint(0, len(content)) for _ in range(2))
    return content[:first] + content[max(last, first + 1) :]


def overwrite(chance: random.Random, content: bytes) -> bytes:
    place, new = chance.randrange(len(content)), _some_bytes(chance, chance.choice([1, 4, 64, 512]))
    return content[:place] + new[: len(content) - place] + content[place + len(new) :]


def repeat(chance: random.Random, content: bytes) -> bytes:
    first, last = sorted(chance.randint(0, len(content)) for _ in range(2))
    return content[:last] + content[first:]


def append(chance: random.Random, content: bytes) -> bytes:
    return content + _some_bytes(chance, chance.choice([1, 100, 1024]))


def swap_blocks(chance: random.Random, content: bytes) -> bytes:
    """Exchange two blocks of 512 bytes, those of a tar."""
    count = len(content) // 512
    if count < 2:
        return content[::-1]
    one, other = sorted(chance.sample(range(count), 2))
    blocks = [content[512 * number : 512 * (number + 1)] for number in range(count)]
    blocks[one], blocks[other] = blocks[other], blocks[one]
    return b"".join(blocks) + content[512 * count :]


def number(chance: random.Random, content: bytes) -> bytes:
    """Put an absurd binary number anywhere."""
    size = chance.choice([2, 4, 8])
    value = chance.choice([0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 1 << (4 * size)])
    place = chance.randint(0, max(len(content) - size, 0))
    return content[:place] + value.to_bytes(size, "little") + content[place + size :]


GENERAL: tuple[Change, ...] = (
    flip_bit,
    flip_bit,
    flip_bit_of_an_end,
    flip_bit_of_an_end,
    cut,
    cut_front,
    insert,
    remove,
    overwrite,
    repeat,
    append,
    swap_blocks,
    number,
)


def _some_bytes(chance: random.Random, count: int) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return b"\0" * count
    if kind == 1:
        return b"\xff" * count
    if kind == 2:
        return (b"\x1b]0;owned\x07\x9b31m\xe2\x80\xae" * count)[:count]
    return chance.randbytes(count)


def put_absent(path: Path, _: Path) -> None:
    _clear(path)


def put_folder(path: Path, _: Path) -> None:
    _clear(path)
    path.mkdir()


def put_link(path: Path, victim: Path) -> None:
    _clear(path)
    path.symlink_to(victim)


def put_link_to_folder(path: Path, victim: Path) -> None:
    _clear(path)
    path.symlink_to(victim.parent)


def put_dangling_link(path: Path, victim: Path) -> None:
    _clear(path)
    path.symlink_to(victim.with_name("nothing"))


def put_fifo(path: Path, _: Path) -> None:
    _clear(path)
    os.mkfifo(path)


def put_endless(path: Path, _: Path) -> None:
    _clear(path)
    path.symlink_to("/dev/zero")


ABSENT = (put_absent, put_absent)
ELSE: tuple[Callable[[Path, Path], None], ...] = (
    put_folder,
    put_link,
    put_link_to_folder,
    put_dangling_link,
    put_fifo,
    put_endless,
)
"""What may lie where a file is expected; the second path is a file of somebody else."""

OF_OTHERS = (".tmp-notes", ".tmp-rsync.Xy12", "notes.tar", "train.tar", "other.index", "plan-notes.parquet", "plan.txt")
"""Files that somebody else keeps in a store's folder."""


def put_others(folder: Path) -> None:
    for name in OF_OTHERS:
        (folder / name).write_text("of somebody else")


def lost_of_others(folder: Path) -> list[str]:
    """Those that are gone, or are no longer what they were."""
    paths = [folder / name for name in OF_OTHERS]
    return [path.name for path in paths if not path.is_file() or path.read_text() != "of somebody else"]


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
