"""Checks: sentences that must hold for an artifact. Nothing here knows Dagster.

A check reads the artifact (and its inputs) from the store. Its result is written into the
artifact's manifest; an artifact with a failed blocking check is never a usable input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ft_pipeline.store.artifacts import Artifact, CheckResult


@dataclass(frozen=True)
class Verdict:
    """Whether the sentence holds, what was found, and the numbers behind it."""

    passed: bool
    message: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One check. Raise `version` when its meaning changes: stored results are then recomputed."""

    name: str
    description: str
    evaluate: Callable[[Artifact, Mapping[str, Artifact]], Verdict]
    blocking: bool = True
    version: str = "1"

    def run(self, artifact: Artifact, inputs: Mapping[str, Artifact]) -> CheckResult:
        """Evaluate the check now."""
        verdict = self.evaluate(artifact, inputs)
        return CheckResult(
            name=self.name,
            version=self.version,
            passed=verdict.passed,
            blocking=self.blocking,
            message=verdict.message,
            metadata=verdict.metadata,
        )

    def stored_result(self, artifact: Artifact) -> CheckResult | None:
        """Return the result in the manifest, if it has this version."""
        for result in artifact.manifest.checks:
            if result.name == self.name and result.version == self.version:
                return result
        return None


def expect_zero(file: str, name: str, what: str) -> Callable[..., Verdict]:
    """Return an evaluation that holds if the count `name` in a JSON report is zero."""

    def evaluate(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
        count = artifact.read_json(file)[name]
        return Verdict(count == 0, f"{count} {what}", {name: count})

    return evaluate
