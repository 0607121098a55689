"""Verdicts over what was measured: their logic, what is measured next, and that order changes no verdict."""

import random

import pytest

from mova_engine.curation.verdicts import Judge
from mova_engine.errors import MovaError

pa = pytest.importorskip("pyarrow")
FILTERS = {
    "audible": "silence <= 0.5",
    "clear": "dnsmos_ovrl >= 2",
    "unique": "duplicate_of is None",
    "agreeing": "desync <= 0.5 or imagebind >= 0.2",
    "lips": "lse_d is None or (lse_d <= 9.5 and lse_c >= 4.5)",
}
MARKS = {"written": "text_share > 0.5"}
SCORES = {
    "dnsmos": ("dnsmos_ovrl",),
    "desync": ("desync",),
    "imagebind": ("imagebind",),
    "lip-sync": ("lse_d", "lse_c"),
    "text": ("text_share",),
}
VALUES = {
    "dnsmos_ovrl": (1.0, 3.0),
    "desync": (0.1, 1.4),
    "imagebind": (0.1, 0.4),
    "lse_d": (7.0, 11.0),
    "lse_c": (2.0, 6.0),
    "text_share": (0.0, 1.0),
}


def test_a_clip_is_measured_as_far_as_its_verdict_needs():
    judge = Judge.of(FILTERS, MARKS, also=("clap",))
    assert judge.scores == ("dnsmos", "desync", "imagebind", "lip-sync", "text", "clap"), "the cut measures silence"
    row = {"silence": 0.1}
    assert judge.scores_needed(row)[0] == "dnsmos"
    assert judge.scores_needed({"silence": 0.9}) == ()
    # A number that there is not decides nothing: the clip may still be dropped by a later filter.
    assert judge.scores_needed({"silence": None}) == ("dnsmos",)
    assert judge.scores_needed({"silence": None, "dnsmos_ovrl": None}) == ("desync", "imagebind")
    row |= {"dnsmos_ovrl": 3.0, "desync": 0.2}
    assert judge.scores_needed(row) == ("lip-sync",), "ImageBind is not needed where DeSync is good"
    row |= {"lse_d": None, "lse_c": None}
    assert judge.scores_needed(row) == ("text", "clap"), "marks and --also are for clips that are not dropped"
    row |= {"text_share": None, "clap": 0.3}
    assert judge.scores_needed(row) == ()
    assert judge.verdict(row) == ("unknown", "unique")
    assert judge.verdict({**row, "duplicate_of": None}) == ("keep", None)
    assert judge.verdict({**row, "duplicate_of": "0a"}) == ("drop", "unique")


def _film(draw):
    """Clips with every number that there is to know."""
    numbers = VALUES | {"silence": (0.1, 0.9)}
    return [{name: draw.choice([*given, None]) for name, given in numbers.items()} for _ in range(200)]


def _measured(judge, truth):
    """What is known of a clip after it was measured as far as needed."""
    row = {"silence": truth["silence"]}
    while needed := judge.scores_needed(row):
        row |= {column: truth[column] for column in SCORES[needed[0]]}
    return row | {"duplicate_of": truth["duplicate_of"]}


def _table(rows):
    """The rows as clips.parquet has them: null, and the reason where a score gives no number."""
    columns = {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in (*VALUES, "silence")}
    columns["duplicate_of"] = pa.array([row["duplicate_of"] for row in rows], pa.string())
    without = [
        "{"
        + ", ".join(f'"{s}": "why"' for s, names in SCORES.items() if any(row.get(n, 0) is None for n in names))
        + "}"
        for row in rows
    ]
    return pa.table({**columns, "reasons": without})


def test_verdicts_do_not_depend_on_the_order_nor_on_what_else_was_measured():
    draw = random.Random(0)
    clips = [{**clip, "duplicate_of": draw.choice([None, None, "0a"])} for clip in _film(draw)]
    complete = [Judge.of(FILTERS).verdict(clip)[0] for clip in clips]
    assert set(complete) == {"keep", "drop", "unknown"}
    for _ in range(6):
        order = draw.sample(list(FILTERS), len(FILTERS))
        judge = Judge.of(FILTERS, MARKS, order=order)
        rows = [_measured(judge, clip) for clip in clips]
        assert [judge.verdict(row)[0] for row in rows] == complete
        if order.index("unique") == len(order) - 1:
            # A duplicate is known last of all: in any other place it is named before what was measured meanwhile.
            assert [judge.verdict(row) for row in rows] == [judge.verdict(clip) for clip in clips]
        found = judge.verdict_columns(_table(rows))
        by_table = list(zip(found["verdict"].to_pylist(), found["dropped_by"].to_pylist(), strict=True))
        assert by_table == [judge.verdict(row) for row in rows]
        assert found["written"].to_pylist() == [judge.marks[0].of_row(row) for row in rows]


def test_a_table_in_pieces_and_an_empty_one_are_judged_alike():
    draw = random.Random(1)
    rows = [{**clip, "duplicate_of": None} for clip in _film(draw)]
    judge = Judge.of(FILTERS, MARKS)
    whole = _table(rows)
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 90), whole.slice(97)])
    assert judge.verdict_columns(pieces).to_pydict() == judge.verdict_columns(whole).to_pydict()
    assert judge.verdict_columns(whole.slice(0, 0)).num_rows == 0
    kept = Judge.of({}).verdict_columns(whole)
    assert set(kept["verdict"].to_pylist()) == {"keep"} and kept["dropped_by"].null_count == len(rows)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"filters": FILTERS, "order": ["audible"]}, "lacks clear, unique, agreeing, lips"),
        ({"filters": FILTERS, "order": [*FILTERS, "lips"]}, "twice"),
        ({"filters": FILTERS, "order": ["lip"]}, "Did you mean 'lips'?"),
        ({"filters": {}, "marks": {"silence": "silence > 0.5"}}, "mark silence"),
        ({"filters": {}, "marks": {"verdict": "silence > 0.5"}}, "mark verdict"),
        ({"filters": {}, "marks": {"crop_x": "silence > 0.5"}}, "mark crop_x"),
        ({"filters": {}, "marks": {"too loud": "silence > 0.5"}}, "mark too loud"),
        ({"filters": {"two words": "silence < 1"}}, "'two words': a filter's name is letters"),
        ({"filters": {"a#b": "silence < 1"}}, "'a#b': a filter's name is letters"),
        ({"filters": {"lips": "lse > 0"}}, "filter lips names no column: 'lse'"),
    ],
)
def test_what_cannot_be_judged_by_is_one_line(given, said):
    with pytest.raises(MovaError, match=said):
        Judge.of(**given)
