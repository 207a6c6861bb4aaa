"""Five kills at random moments of a run; benchmarks/chaos.py makes a hundred."""

import pytest

from ft_pipeline_tests.chaos import STAGES, Chaos, is_good
from ft_pipeline_tests.conftest import TinyProject


@pytest.mark.slow
def test_the_run_behind_a_kill_equals_an_undisturbed_one(project: TinyProject) -> None:
    chaos = Chaos(project, seed=11)
    stages = [stage for stage in STAGES if stage != "everything"]
    # Not measured, which would be five runs more: a later end only leaves more that is not hit.
    chaos.seconds = dict.fromkeys(stages, 10.0)
    kills = [
        chaos.kill_once(stage, "tree" if n % 2 else "command") for n, stage in enumerate(stages)
    ]
    assert [kill for kill in kills if not is_good(kill)] == []
