from __future__ import annotations

import os
import threading

import pytest
from surgrec.loaders.file_cache import FileCache


def files(folder, count):
    paths = []
    for number in range(count):
        path = folder / str(number)
        path.write_bytes(bytes([number]))
        paths.append(str(path))
    return paths


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_descriptors_are_kept_up_to_the_capacity(tmp_path):
    cache = FileCache(2)
    found = []
    for path in files(tmp_path, 3):
        with cache.borrow(path) as descriptor:
            found.append(descriptor)
    assert len(cache) == 2
    with cache.borrow(str(tmp_path / "2")) as again:
        assert again == found[2]
    cache.close()
    assert len(cache) == 0
    assert not is_open(again)


def test_a_borrowed_descriptor_is_never_closed(tmp_path):
    cache = FileCache(1)
    first, second, third = files(tmp_path, 3)
    with cache.borrow(first) as kept:
        for path in (second, third):
            with cache.borrow(path) as other:
                assert os.pread(other, 1, 0) != b"\0"
        assert os.pread(kept, 1, 0) == b"\0"
        cache.close()
        assert os.pread(kept, 1, 0) == b"\0"
    assert len(cache) == 0


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError), FileCache().borrow(str(tmp_path / "no")):
        pass


def test_a_closed_cache_lends_nothing(tmp_path):
    cache = FileCache()
    cache.close()
    with pytest.raises(ValueError, match="closed"), cache.borrow(files(tmp_path, 1)[0]):
        pass


def test_many_threads_read_the_right_files(tmp_path):
    cache = FileCache(3)
    paths = files(tmp_path, 20)
    wrong = []

    def read(seed):
        for step in range(300):
            number = (seed * 7 + step * 13) % len(paths)
            with cache.borrow(paths[number]) as descriptor:
                if os.pread(descriptor, 1, 0) != bytes([number]):
                    wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(cache) <= 3
    cache.close()
