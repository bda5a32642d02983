"""A thread reads the next items; results and errors come in order."""

import threading

import pytest

from querypose_hf.inference.reading_ahead import read_ahead


def test_results_and_errors_come_in_order():
    def read(number: int) -> int:
        if number == 2:
            raise ValueError("no two")
        return 10 * number

    found = list(read_ahead(read, range(4), count=2))
    assert [item for item, _ in found] == [0, 1, 2, 3]
    assert [future.result() for item, future in found if item != 2] == [0, 10, 30]
    with pytest.raises(ValueError, match="no two"):
        found[2][1].result()
    assert list(read_ahead(read, [], count=2)) == []


def test_as_many_are_read_ahead_as_asked_for():
    read: list[int] = []
    third = threading.Event()

    def note(number: int) -> None:
        read.append(number)
        if number == 2:
            third.set()

    reading = read_ahead(note, range(9), count=2)
    first = next(reading)
    assert first[0] == 0 and third.wait(10)
    reading.close()
    assert read == [0, 1, 2]
