"""The language of filters: what it reads, what it refuses, and one meaning over tables and over single clips."""

import random

import pytest

from mova_engine.curation.filter_expression import MOST_LETTERS, parse_filter
from mova_engine.errors import MovaError

pa = pytest.importorskip("pyarrow")
NUMBERS, TEXTS = ("silence", "desync", "imagebind", "lse_c"), ("kind", "duplicate_of")


def decided(text, **row):
    """A condition's value for one clip; the same over a table with that one row."""
    condition = parse_filter("test", text)
    table = pa.table({name: pa.array([value], _type(name)) for name, value in row.items()})
    (of_table,) = condition.of_table(table).to_pylist() if row else [condition.of_row(row)]
    assert condition.of_row(row) is of_table
    return of_table


def _type(name):
    return pa.string() if name in TEXTS else pa.float64()


@pytest.mark.parametrize(
    "text, row, value",
    [
        ("desync <= 0.5 or imagebind >= 0.2", {"desync": 0.5, "imagebind": None}, True),
        ("desync <= 0.5 or imagebind >= 0.2", {"desync": 0.6, "imagebind": None}, None),
        ("desync <= 0.5 and imagebind >= 0.2", {"desync": 0.6, "imagebind": None}, False),
        ("not desync <= 0.5", {"desync": None}, None),
        ("-0.2 <= desync < 0.2", {"desync": -0.2}, True),
        ("-0.2 <= desync < 0.2", {"desync": 0.2}, False),
        ("lse_c / desync > 1", {"lse_c": 1.0, "desync": 0.0}, None),
        ("lse_c * 1e300 * 1e300 > 1", {"lse_c": 1.0}, None),
        ("silence < 1", {"silence": float("nan")}, None),
        ("2 * (silence + 0.25) - 1 == 0.5", {"silence": 0.5}, True),
        ("kind in ('speech-shot', 'speech-cuts')", {"kind": "speech-cuts"}, True),
        ("kind not in ('speech-shot', 'speech-cuts')", {"kind": "speech-cuts"}, False),
        ("kind != 'other-shot'", {"kind": None}, None),
        ("duplicate_of is None", {"duplicate_of": None}, True),
        ("duplicate_of is not None", {"duplicate_of": "0a"}, True),
        ("True", {}, True),
        ("silence < 1\n  and desync < 1", {"silence": 0.0, "desync": 0.0}, True),
    ],
)
def test_one_meaning(text, row, value):
    assert decided(text, **row) is value


def test_a_score_that_was_not_measured_is_not_one_without_a_number():
    """`is None` asks what was measured: of a clip that a filter dropped before, it cannot be said."""
    condition = parse_filter("lips", "lse_d is None or lse_d <= 9.5")
    assert condition.of_row({"lse_d": None}) is True
    assert condition.of_row({}) is None and condition.open_columns({}) == ("lse_d",)
    reasons = ['{"lip-sync": "no face"}', '{"desync": "no \\"lip-sync\\": here"}', None, None]
    table = pa.table({"lse_d": pa.array([None, None, None, 12.0]), "reasons": reasons})
    assert condition.of_table(table).to_pylist() == [True, None, None, False]
    assert condition.of_table(table.drop_columns(["reasons"])).to_pylist() == [None, None, None, False]


def test_a_mark_stands_for_its_condition():
    mark = parse_filter("written", "text_share > 0.9")
    condition = parse_filter("bare", "not written", {"written": mark})
    assert condition.columns == ("text_share",) and condition.scores == ("text",)
    assert condition.of_row({"text_share": 0.95}) is False


def _written(draw, depth):
    """A condition in words, of columns that may be missing."""
    if depth == 0 or draw.random() < 0.25:
        left = draw.choice([*NUMBERS, f"{draw.choice(NUMBERS)} {draw.choice('+-*/')} {draw.choice(NUMBERS)}"])
        plain = f"{left} {draw.choice(['<=', '>=', '<', '>', '==', '!='])} {draw.choice([0, 0.5, 1])}"
        return draw.choice([plain, f"kind == '{draw.choice(['speech-shot', 'other-cuts'])}'", "duplicate_of is None"])
    parts = [_written(draw, depth - 1) for _ in range(draw.choice([1, 2, 3]))]
    if len(parts) == 1:
        return f"not ({parts[0]})"
    return f" {draw.choice(['and', 'or'])} ".join(f"({part})" for part in parts)


def _clip(draw):
    texts = {"kind": draw.choice([None, "speech-shot", "other-cuts"]), "duplicate_of": draw.choice([None, "0a"])}
    return {name: draw.choice([None, 0.0, 0.5, 1.0]) for name in NUMBERS} | texts


def test_tables_and_clips_agree_and_what_is_learned_later_changes_nothing():
    draw = random.Random(0)
    outcomes = set()
    for _ in range(150):
        condition = parse_filter("drawn", _written(draw, 3))
        clips = [_clip(draw) for _ in range(40)]
        of_clips = [condition.of_row(clip) for clip in clips]
        columns = {name: pa.array([clip[name] for clip in clips], _type(name)) for name in (*NUMBERS, *TEXTS)}
        assert condition.of_table(pa.table(columns)).to_pylist() == of_clips
        outcomes |= set(of_clips)
        for clip, value in zip(clips, of_clips, strict=True):
            measured = {name: clip[name] for name in clip if draw.random() < 0.6}
            early = condition.of_row(measured)
            assert early in (None, value)
            # Measuring what may still decide, one column after the other, comes to the same end.
            while needed := condition.open_columns(measured):
                measured[needed[0]] = clip[needed[0]]
            assert condition.of_row(measured) is value
    assert outcomes == {True, False, None}


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is empty"),
        ("silense <= 0.5", "names no column: 'silense'. Did you mean 'silence'?"),
        ("imagebin >= 0.2", "Did you mean 'imagebind'?"),
        ("dover >= 0.15", "names the score dover; its columns are dover_overall, dover_technical"),
        ("kind == 'speech'", "asks for the kind 'speech'. Did you mean 'speech-shot'?"),
        ("kind <= 0.5", "compares a text with a number"),
        ("silence", "wants true or false where it has a number: 'silence'"),
        ("silence + 'a' < 1", "wants a number where it has a text: ''a''"),
        ("abs(desync) < 1", "calls 'abs': there are no functions"),
        ("__import__('os').system('true')", "calls '__import__('os').system'"),
        ("silence.real < 1", "has 'silence.real'"),
        ("silence[0] < 1", "has 'silence[0]'"),
        ("(x := 1) < silence", "has 'x := 1'"),
        ("[x for x in y] == 1", "has '[x for x in y]'"),
        ("lambda: silence", "has 'lambda: silence'"),
        ("silence ** 99999 < 1", "has 'silence ** 99999'"),
        ("silence < None", "a missing value is asked for by COLUMN is None"),
        ("silence is 0.5", "is read as COLUMN is None"),
        ("kind in 'speech-shot'", "wants a list of values after 'in'"),
        ("silence < 1j", "neither a number nor a text"),
        ("1e999 > silence", "a number that is too large"),
        (f"{'9' * 400} > silence", "a number that is too large"),
        (f"0x{'f' * 3000} > silence", "a number that is too large"),
        ("silence < = 1", "cannot be read: invalid syntax in 'silence < = 1'"),
        ("silence < 1\0", "cannot be read"),
        (f"{'(' * 250}silence < 1{')' * 250}", "cannot be read"),
        (f"{'-' * 3900}1 < silence", "nested too deeply"),
        (f"{'not ' * 900}True", "nested too deeply"),
        (f"{'+'.join(['silence'] * 300)} < 1", "nested too deeply"),
        ("1 if True else " * 200 + "2", "has '1 if True"),
        (f"silence < {'1' * MOST_LETTERS}", "letters; at most"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(text, said):
    with pytest.raises(MovaError) as refused:
        parse_filter("sound", text)
    (line,) = str(refused.value).splitlines()
    assert line.startswith("filter sound ") and said in line and len(line) < 250
