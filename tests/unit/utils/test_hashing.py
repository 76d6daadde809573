"""XXH64 as records of merges hold it, and files distinguished by it."""

from pathlib import Path

import numpy as np
import pytest

from lens.utils.hashing import checksum, checksum_of_sample


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (bytes(range(256)) * 1000, 0xEA8A95F52BCDB693),
    ],
)
def test_published_values(text, expected):
    """Records that are on disk already hold these digests: no other hash may take its place."""
    assert checksum(text) == expected


def test_arrays_are_their_bytes(rng):
    for dtype in (np.float64, np.float32, np.float16, np.uint16, np.int8):
        x = rng.integers(-100, 100, (7, 9)).astype(dtype)
        assert checksum(x) == checksum(x.tobytes())


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
    assert checksum_of_sample(tmp_path / "x") == f"{checksum(data):016x}"
