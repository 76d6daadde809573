"""XXH64 against the specification, and files told apart by it."""

from pathlib import Path

import numpy as np
import pytest

from lens.utils.hashing import checksum, checksum_of_sample

P1, P2, P3, P4, P5 = (
    11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579,
    2870177450012600261,
)  # fmt: skip
BITS = (1 << 64) - 1


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def turn(x: int, n: int) -> int:
    return (x << n | x >> (64 - n)) & BITS


def mix(lane: int, word: int) -> int:
    return turn((lane + word * P2) & BITS, 31) * P1 & BITS


def xxh64(data: bytes) -> int:
    """The specification, step by step, in whole numbers."""
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data) - 7, 8)]
    lanes, hash_ = [(P1 + P2) & BITS, P2, 0, -P1 & BITS], P5
    striped = len(words) // 4 * 4
    for i in range(striped):
        lanes[i % 4] = mix(lanes[i % 4], words[i])
    if striped:
        hash_ = sum(turn(x, n) for x, n in zip(lanes, (1, 7, 12, 18), strict=True)) & BITS
        for lane in lanes:
            hash_ = ((hash_ ^ mix(0, lane)) * P1 + P4) & BITS
    hash_ = (hash_ + len(data)) & BITS
    for word in words[striped:]:
        hash_ = (turn(hash_ ^ mix(0, word), 27) * P1 + P4) & BITS
    rest = data[8 * len(words) :]
    if len(rest) >= 4:
        four = int.from_bytes(rest[:4], "little")
        hash_ = (turn(hash_ ^ (four * P1 & BITS), 23) * P2 + P3) & BITS
        rest = rest[4:]
    for byte in rest:
        hash_ = turn(hash_ ^ (byte * P5 & BITS), 11) * P1 & BITS
    for shift, factor in ((33, P2), (29, P3), (32, 1)):
        hash_ = (hash_ ^ hash_ >> shift) * factor & BITS
    return hash_


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"", 0xEF46DB3751D8E999), (b"a", 0xD24EC4F1A98C6E5B), (b"abc", 0x44BC2CF5AD770999)],
)
def test_published_values(text, expected):
    assert checksum(text) == xxh64(text) == expected


def test_every_short_length_and_place(rng):
    data = rng.integers(0, 256, 300, np.uint8)
    for n in range(130):
        for start in (0, 1, 3):
            part = data[start : start + n]
            assert checksum(part) == xxh64(part.tobytes()), (n, start)


def test_arrays_are_their_bytes(rng):
    for dtype in (np.float64, np.float32, np.float16, np.uint16, np.int8):
        x = rng.integers(-100, 100, (7, 9)).astype(dtype)
        assert checksum(x) == checksum(x.tobytes()) == xxh64(x.tobytes())


def test_any_changed_bit_shows(rng):
    data = rng.integers(0, 256, 77, np.uint8)
    seen = {checksum(data)}
    for bit in range(8 * data.size):
        data[bit // 8] ^= 1 << bit % 8
        seen.add(checksum(data))
        data[bit // 8] ^= 1 << bit % 8
    assert len(seen) == 8 * data.size + 1


@pytest.mark.parametrize("size", [0, 1, 64 * 4096, 64 * 4096 + 1, 3_000_000])
def test_a_sample_sees_both_ends_and_a_training(size, tmp_path: Path, rng):
    path = tmp_path / "weights"
    data = rng.integers(0, 256, size, np.uint8)
    path.write_bytes(data)
    before = checksum_of_sample(path)
    assert len(before) == 16
    assert checksum_of_sample(path) == before
    for place in {0, size - 1} if size else set():
        changed = data.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert checksum_of_sample(path) != before
    path.write_bytes(data[:-1])
    assert not size or checksum_of_sample(path) != before


def test_of_a_small_file_a_sample_is_all_of_it(tmp_path: Path, rng):
    data = rng.integers(0, 256, 64 * 4096, np.uint8)
    (tmp_path / "x").write_bytes(data)
    assert checksum_of_sample(tmp_path / "x") == f"{xxh64(data.tobytes()):016x}"
