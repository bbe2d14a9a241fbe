"""What a gate could show, before a cent is spent on it."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.evaluation.gate import paired, sequential
from workbench.evaluation.gate.looks import level
from workbench.recipe.schema.gate import Gate


@dataclass(frozen=True)
class Outlook:
    """A gate's reach, for binary scores of independent examples.

    Attributes:
        n: examples at hand.
        impossible: not even a candidate that answers exactly as the baseline could pass.
        least: the least number of examples that could pass.
        mde: the least true difference that passes with probability 0.8; None: none does.
        power_if_equal: the probability that a candidate just as good as the baseline passes.
        discordance: share of examples that exactly one of them gets right; assumed.
        alpha: what it will be judged at.
        sequential: it is judged after every example; `mde` and `power_if_equal` are then more than it reaches.
    """

    n: int
    impossible: bool
    least: int
    mde: float | None
    power_if_equal: float
    discordance: float
    alpha: float
    sequential: bool

    def text(self) -> str:
        """One sentence for before the run."""
        if self.impossible:
            return (
                f"the gate cannot pass: {self.n} examples are too few even if candidate and baseline agree on all of them; "
                f"it takes {self.least}"
            )
        reach = "nothing passes 4 times in 5"
        if self.mde is not None:
            reach = f"what passes 4 times in 5 has a true difference of {100 * self.mde:+.1f} points or better"
        more = ". That is if all are judged at once; judging after every one passes less often" if self.sequential else ""
        return (
            f"gate on {self.n} examples at alpha {self.alpha:.2g}, if they differ on {100 * self.discordance:.3g}% of them: {reach}; "
            f"one just as good as the baseline passes with probability {self.power_if_equal:.2f}{more}"
        )


def outlook(n: int, rules: Gate, *, look: int | None = None) -> Outlook:
    """What `rules` could show on n examples.

    Args:
        n: examples in the test set, 1 or more.
        rules: the recipe's section; its `discordance` is assumed.
        look: which look at the test set it will be; None: looks are not counted.
    """
    alpha = rules.alpha if look is None else level(rules.alpha, look)
    mode = sequential if rules.sequential else paired
    return Outlook(
        n=n,
        impossible=mode.impossible(n, rules.margin, alpha),
        least=mode.least_examples(rules.margin, alpha),
        mde=paired.detectable(n, rules.margin, alpha, discordance=rules.discordance),
        power_if_equal=paired.power(n, rules.margin, alpha, discordance=rules.discordance),
        discordance=rules.discordance,
        alpha=alpha,
        sequential=rules.sequential,
    )
