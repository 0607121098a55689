"""`mova eval selftest`: every example that needs nothing holds, a wrong number is a miss, an absent file is named."""

import dataclasses

import pytest

from mova_engine.commands import eval_selftest
from mova_engine.evaluation import selftest
from mova_engine.evaluation.selftest import read_examples, run_examples
from mova_engine.evaluation.selftest_checks import CHECKS
from source_tree import ROOT

# Seconds of CPU; the rest together takes less than one.
DEAR = {"dnsmos", "inception_score", "frechet_bias", "lip_sync", "speech_lag"}
EXAMPLES = read_examples()
MEDIA = ROOT / "tests" / "data" / "media"


@pytest.mark.parametrize("example", [x for x in EXAMPLES if x.check not in DEAR], ids=lambda x: x.name)
def test_an_example_that_needs_no_network_holds(example):
    (verdict,) = run_examples([example])
    assert verdict.state == "held", verdict


@pytest.mark.long
@pytest.mark.parametrize("example", [x for x in EXAMPLES if x.check in DEAR], ids=lambda x: x.name)
def test_a_dear_example_holds_where_its_files_are(example):
    (verdict,) = run_examples([example], media=MEDIA)
    if not all((MEDIA / name).exists() for name in example.needs.media):
        assert verdict.state == "absent" and all(name in verdict.reason for name in example.needs.media)
    else:
        assert verdict.state == "held", verdict


def test_every_check_is_an_example_and_every_number_can_miss():
    assert {example.check for example in EXAMPLES} == set(CHECKS)
    for example in EXAMPLES:
        assert example.expected and example.source and example.bound >= 0


def test_a_wrong_number_is_a_miss_and_ends_with_status_1(monkeypatch, capsys):
    example = next(x for x in EXAMPLES if x.check == "kl_divergence")
    absent = dataclasses.replace(example, needs=selftest.ExampleNeeds(packages=("no_such_package",)))
    monkeypatch.setattr(selftest, "read_examples", lambda: [example, absent])
    assert eval_selftest.main([]) == 0
    assert "1 held, 0 missed, 1 not tried" in capsys.readouterr().out
    monkeypatch.setitem(CHECKS, "kl_divergence", lambda given, media: {"kl": example.expected["kl"] + 2e-6})
    assert eval_selftest.main([]) == 1
    out = capsys.readouterr().out
    assert "missed" in out and "no_such_package" in out and example.source in out
