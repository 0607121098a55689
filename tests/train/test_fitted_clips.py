"""Which clips the embedded codecs take their scales from."""

import pytest

from mova_engine.train.clip_data import drawn


@pytest.mark.parametrize(("listed", "most"), [(768, 64), (768, 256), (100, 10), (90, 32), (7, 7), (3, 256), (1, 1)])
def test_each_entry_is_there_once_the_wanted_ones_first_in_the_lists_order(listed, most):
    entries, count = drawn(range(listed), most)
    found = list(entries)
    assert count == min(listed, most) and sorted(found) == list(range(listed))
    assert found[:count] == sorted(found[:count])
    again, _ = drawn(range(listed), most)
    assert list(again) == found


@pytest.mark.parametrize("kinds", [2, 3, 4, 6, 8, 12, 24])
@pytest.mark.parametrize("most", [32, 64, 96, 128])
def test_of_kinds_that_take_turns_in_the_list_nearly_all_are_drawn(kinds, most):
    """Every 12th of 768 clips of 24 kinds in turn would be of two kinds."""
    entries, count = drawn(range(768), most)
    seen = {entry % kinds for entry, _ in zip(entries, range(count), strict=False)}
    assert len(seen) >= 0.7 * kinds
