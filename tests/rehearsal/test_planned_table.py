"""The commands of the table of memory on docs/plan.md, and of the changes with which what does not fit would: each is
rehearsed, with three layers, on a GPU that is not here. So few layers are predicted less well than a whole model, whose
policies benchmarks/dry_runs.py rehearses.
"""

from itertools import product

import pytest
from plan_page import CARDS, HOSTS, MODELS, TASKS, limited

from mova_engine.config.recipes import TRAIN
from mova_engine.config.rehearsal import RehearsalOptions
from mova_engine.config.sample import SAMPLE
from mova_engine.plan.command_line import command
from mova_engine.rehearsal.rehearse import rehearse
from mova_engine.rehearsal.result import Rehearsal

from .test_dry_run import SAMPLING, TRAINING


def planned(task: str, model: str) -> set[tuple[str, ...]]:
    """The commands of a task's and a model's rows, without the program."""
    found = set()
    for card, host in product(CARDS, HOSTS):
        one, would = limited(task, model, card, host)
        for plan in [one] if one is not None else [each.plan for each in would]:
            words = command(plan)
            assert words is not None
            found.add(tuple(words[words.index("mova") + 2 :]))
    return found


@pytest.mark.dry
@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_every_command_of_the_table_of_memory_is_rehearsed(task, model):
    deviations = {}
    for words in sorted(planned(task, model)):
        if task == "lora":
            # The sizes of the model are the recipe's, where no folder says others.
            given = " ".join(words).replace("--model.checkpoint FOLDER", "")
            target, config = TRAINING, TRAIN.parse(given.split())
        else:
            target, config = SAMPLING, SAMPLE.parse([model if word == "FOLDER" else word for word in words])
        found = Rehearsal.from_dict(rehearse(target, config, "cuda", RehearsalOptions(dry_run=True), 3))
        assert found.copied.get("unforeseen", 0) == 0, words
        deviations[words] = found.predicted / found.peak - 1
    assert len(deviations) >= 4 and not [words for words, error in deviations.items() if abs(error) > 0.1], deviations
