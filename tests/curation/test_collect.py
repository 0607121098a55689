"""Joining a ledger by column gives, to the byte, what joining it row by row gives."""

import pytest

pytest.importorskip("pyarrow")

from curation.collected_rows import collected_rows, drawn_ledger

from mova_engine.curation import collect
from mova_engine.curation.collect import write_table


@pytest.mark.parametrize("seed", range(4))
def test_columns_are_those_of_the_rows(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(collect, "_UNITS", 4)
    collector, units = drawn_ledger(tmp_path, 9, 8, seed)
    found = collector.collected(units)
    table, prints, seconds = collected_rows(collector, units)
    assert table.num_rows > 20 and found.table.equals(table, check_metadata=True)
    assert table["reasons"].to_pylist().count("{}") < table.num_rows
    assert (found.prints, found.seconds) == (prints, seconds)
    for name, each in (("columns", found.table), ("rows", table)):
        write_table(each, tmp_path / name)
    assert (tmp_path / "columns").read_bytes() == (tmp_path / "rows").read_bytes()


def test_nothing_that_was_cut(tmp_path):
    collector, units = drawn_ledger(tmp_path, 6, 2)
    for some in ([], units[5:]):
        found = collector.collected(some)
        assert found.table.equals(collected_rows(collector, some)[0], check_metadata=True)
        assert not found.table.num_rows and not found.prints and not found.seconds
