"""The ledger: parts come back as they were, the same rows give the same bytes, what is damaged counts as missing."""

import os
import resource

import pytest

from mova_engine.curation.ledger import Ledger, LedgerError, LedgerPart, LedgerStep, part_bytes, read_table
from mova_engine.files.atomic import write_atomic

STEP = LedgerStep.made_of("score-motion", {"version": 1, "weights": {}})
ROWS = (
    {"clip_id": "b", "motion": 0.25, "reason": None, "pictures": 193, "sharp": True},
    {"clip_id": "a", "motion": None, "reason": "naïve 🎬\nof two lines", "pictures": 5, "sharp": None},
)
KEY = "ab12cd34ef56ab12cd34ef56"


def test_a_part_comes_back_as_it_was(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.read(STEP, KEY) is None
    ledger.write(STEP, KEY, LedgerPart(ROWS, {"width": 1280, "codec": "h264"}))
    found = ledger.read(STEP, KEY)
    assert found.rows == list(ROWS) and found.facts == {"width": 1280, "codec": "h264"}
    ledger.write(STEP, KEY, LedgerPart())
    assert ledger.read(STEP, KEY) == LedgerPart([], {})
    ledger.remove(STEP, KEY)
    ledger.remove(STEP, KEY)
    assert ledger.read(STEP, KEY) is None


def test_the_same_rows_give_the_same_bytes():
    turned = [dict(reversed(row.items())) for row in ROWS]
    assert part_bytes(LedgerPart(ROWS, {"a": 1, "b": 2})) == part_bytes(LedgerPart(turned, {"b": 2, "a": 1}))
    assert part_bytes(LedgerPart(ROWS)) != part_bytes(LedgerPart(ROWS[::-1]))


@pytest.mark.parametrize("place", range(0, 900, 90))
def test_a_damaged_part_counts_as_missing(place):
    data = part_bytes(LedgerPart([{"clip_id": str(i), "motion": i / 7} for i in range(60)]))
    assert read_table(data[: len(data) * place // 900]) is None
    spoilt = bytearray(data)
    spoilt[len(data) * place // 900] ^= 0xFF
    found = read_table(bytes(spoilt))
    # Only what Parquet does not read can be another byte, such as an offset that is stated twice.
    assert found is None or found.equals(read_table(data), check_metadata=True)


def test_units_are_listed_by_their_names_alone(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.present(STEP) == set()
    keys = {f"{i:02x}{i:022x}" for i in range(0, 256, 5)}
    for key in keys:
        ledger.write(STEP, key, LedgerPart())
    # What a writer that was killed leaves behind, and another step's part.
    write_atomic(tmp_path / STEP.folder / "ab" / f".{KEY}.parquet.0123456789ab", b"half")
    ledger.write(LedgerStep.made_of("cut", {}), KEY, LedgerPart())
    assert ledger.present(STEP) == keys


def test_a_fingerprint_is_of_name_and_facts():
    assert LedgerStep.made_of("cut", {"a": 1, "b": [2]}) == LedgerStep.made_of("cut", {"b": [2], "a": 1})
    others = [LedgerStep.made_of("cuts", {"a": 1}), LedgerStep.made_of("cut", {"a": 2}), LedgerStep.made_of("cut", {})]
    assert len({step.fingerprint for step in others}) == 3


def test_what_cannot_be_written_is_no_fault_of_the_unit(tmp_path):
    (tmp_path / STEP.folder).write_text("a file where a folder belongs")
    with pytest.raises(LedgerError, match="the same command goes on once that is mended"):
        Ledger(tmp_path).write(STEP, KEY, LedgerPart())


def test_a_file_beyond_the_limit_leaves_the_old_part(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.write(STEP, KEY, LedgerPart(ROWS))
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        try:
            ledger.write(STEP, KEY, LedgerPart())
        except LedgerError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert ledger.read(STEP, KEY).rows == list(ROWS)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{KEY}.parquet"]
