"""The paper's claims, each judged on a recorded study: supported, contradicted, practically equal, inconclusive, or not
tested.

A claim is an entry of CLAIMS: which methods stand on its two sides, at which lengths, by what measure, and which way
the difference should go. All of it is written down before any data are seen; the data only decide the verdict. What a
study does not hold is never replaced by something near: the claim is then not tested, and the sweep that tests it is
named.

A claim is about the difference of its sides in each fold, seeds averaged first (corrected resampled t). Several
comparisons stand for one claim in two ways: `each` must hold on its own (then the p of the claim is that of its weakest
comparison, an intersection-union test, and one of k that goes the other way needs p < alpha / k), or their `mean` over
lengths and methods is judged. p is corrected by Holm over all claims that the study tests. The first that holds:

1. practically equal: every comparison lies inside the ROPE with probability 1 - alpha, where the claim is of a
   difference. A claim of "not worse" is supported by it
2. supported: p is below alpha and the differences go the claimed way; for "not worse", they are not beyond the ROPE
   the other way
3. contradicted: p is below alpha and they go the other way
4. inconclusive
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf
from typing import Literal

import numpy as np
import pandas as pd

from analysis.measured import (
    ALIGNED,
    ARRANGED,
    BEST_EPOCH,
    CHANCE,
    F1,
    FIRST_TWO,
    GROWN,
    MOVED,
    OF_PARTS,
    PLAIN,
    RANK,
    RARE_F1,
    RARE_SPREAD,
    REST,
    SILHOUETTE,
    SPREAD,
    STRAIGHTNESS,
    WHOLE,
    Measure,
    Measured,
    Side,
    Untested,
)
from analysis.runs import StudyRuns
from analysis.stats import (
    ALPHA,
    ROPE,
    Difference,
    Posterior,
    corrected_t,
    data_needed,
    holm,
    posterior,
    smallest_detectable_difference,
)
from analysis.tables import rendered

ClaimVerdict = Literal["supported", "contradicted", "practically equal", "inconclusive", "not tested"]
Expected = Literal["greater", "less", "not less", "not greater"]

COLUMNS = (
    "claim",
    "part",
    "statement",
    "verdict",
    "measure",
    "unit",
    "effect",
    "low",
    "high",
    "p",
    "n_folds",
    "compared",
    "study",
    "decides",
)

MOST_PARTITIONS = 20  # a design with more is not proposed


# --- the claims -----------------------------------------------------------------------------------------------------

CE, TRIPLET, CTL = Side(("ce",)), Side(("triplet",)), Side(("ctl",))
GUIDE2D, GUIDE_UMAP, DISTANCE = Side(("guide2d",)), Side(("guide_umap",)), Side(("distance",))
TRIPLET_AND_CE, GUIDE2D_AND_DISTANCE = Side(("triplet", "ce")), Side(("guide2d", "distance"))
GUIDED = Side(("guide2d", "guide_umap", "distance"))
REPRESENTING = Side(("triplet", "guide2d", "guide_umap", "distance"))
CE_PLAIN, CE_GROWING = Side(("ce",), PLAIN), Side(("ce",), GROWN)
TRIPLET_PLAIN, TRIPLET_GROWING = Side(("triplet",), PLAIN), Side(("triplet",), GROWN)
UMAP_PLAIN, UMAP_GROWING = Side(("guide_umap",), PLAIN), Side(("guide_umap",), GROWN)

Lengths = tuple[tuple[int, ...], tuple[int, ...]]  # of the left and of the right side, averaged


def at(*lengths: int) -> tuple[Lengths, ...]:
    """One comparison at each length."""
    return tuple(((length,), (length,)) for length in lengths)


ENDS: tuple[Lengths, ...] = (((2,), (64, 256)), ((1024,), (64, 256)))


@dataclass(frozen=True)
class Claim:
    """One claim, or a part of one: `left` against `right` in `measure`."""

    name: str  # the number of the claim, and a letter where it is judged in parts
    left: Side
    expects: Expected
    right: Side
    measure: Measure
    sweeps: str  # the sweep files that have its variants, the best first
    where: tuple[Lengths, ...] = ()  # none: every length at which both sides stand
    held: Literal["each", "mean"] = "mean"
    against: Measure | None = None  # of the right side, where it is another one

    @property
    def number(self) -> int:
        return int(self.name.rstrip("abc"))

    @property
    def part(self) -> str:
        return self.name.lstrip("0123456789")

    @property
    def statement(self) -> str:
        return STATED[self.name]


STATED = {
    "1": "a growing embedding improves CE",
    "2a": "at length 2 guide2D beats CE",
    "2b": "at length 2 guide2D beats triplet",
    "3": "guide2D is no worse than triplet at 256 and 1024",
    "4": "distance is no worse than triplet at 64 and 1024",
    "5": "guideUMAP is below triplet at all lengths",
    "6": "a growing embedding does not help triplet",
    "7a": "guided embeddings have a smaller spread within classes than triplet's",
    "7b": "most so for rare classes",
    "7c": "rare classes are told apart better",
    "8a": "guide2D puts classes in the same place in every repeat, triplet and CE do not",
    "8b": "distance repeats up to permuted and mirrored axes, triplet not up to any isometry",
    "8c": "distance repeats the distances between classes better than triplet",
    "9": "guided training finds its best epoch sooner",
    "10": "guideUMAP without growing falls behind guideUMAP growing",
    "11": "CTL is below triplet",
    "12": "CE is worse at 2 and at 1024 than between",
    "13a": "representation learning uses more directions than CE",
    "13b": "representation learning parts classes more clearly than CE",
    "14": "maturity lies straighter for guide2D and distance than for triplet",
    "15a": "guide2D embeddings lose little when cut to two components",
    "15b": "their other components hold some information",
    "16": "representation learning is below CE",
}

CLAIMS = (
    Claim("1", CE_GROWING, "greater", CE_PLAIN, F1, "table1, ablation_growth"),
    Claim("2a", GUIDE2D, "greater", CE, F1, "table1, ablation_length", at(2)),
    Claim("2b", GUIDE2D, "greater", TRIPLET, F1, "table1", at(2)),
    Claim("3", GUIDE2D, "not less", TRIPLET, F1, "table1", at(256, 1024), "each"),
    Claim("4", DISTANCE, "not less", TRIPLET, F1, "table1", at(64, 1024), "each"),
    Claim("5", GUIDE_UMAP, "less", TRIPLET, F1, "table1", at(64, 256, 1024), "each"),
    Claim("6", TRIPLET_GROWING, "not greater", TRIPLET_PLAIN, F1, "table1, ablation_growth"),
    Claim("7a", GUIDED, "less", TRIPLET, SPREAD, "stability, table1"),
    Claim("7b", GUIDED, "less", TRIPLET, RARE_SPREAD, "stability, table1"),
    Claim("7c", GUIDED, "greater", TRIPLET, RARE_F1, "table1, stability"),
    Claim("8a", GUIDE2D, "less", TRIPLET_AND_CE, MOVED, "stability"),
    Claim("8b", DISTANCE, "less", TRIPLET, ALIGNED, "stability"),
    Claim("8c", DISTANCE, "greater", TRIPLET, ARRANGED, "stability"),
    Claim("9", GUIDED, "less", TRIPLET, BEST_EPOCH, "table1"),
    Claim("10", UMAP_PLAIN, "less", UMAP_GROWING, F1, "ablation_growth, ablation_loss"),
    Claim("11", CTL, "less", TRIPLET, F1, "ablation_loss, stability"),
    Claim("12", CE_PLAIN, "less", CE_PLAIN, F1, "table1", ENDS, "each"),
    Claim("13a", REPRESENTING, "greater", CE, RANK, "table1, stability"),
    Claim("13b", REPRESENTING, "greater", CE, SILHOUETTE, "table1, stability"),
    Claim("14", GUIDE2D_AND_DISTANCE, "greater", TRIPLET, STRAIGHTNESS, "stability, table1"),
    Claim("15a", GUIDE2D, "not less", GUIDE2D, FIRST_TWO, "table1, ablation_length", against=WHOLE),
    Claim("15b", GUIDE2D, "greater", GUIDE2D, REST, "table1, ablation_length", against=CHANCE),
    Claim("16", REPRESENTING, "less", CE, F1, "table1, ablation_loss"),
)


# --- verdicts -------------------------------------------------------------------------------------------------------


def verdicts(study: StudyRuns, uri: str, rope: float = ROPE, alpha: float = ALPHA) -> pd.DataFrame:
    """Judge CLAIMS on a study: a row for each, in their order, with the columns COLUMNS.

    effect is left - right over folds with its 95 % interval low..high, not widened for the number of claims, in the
    measure's own unit (unit `difference`; no effect is 0) or as a quotient (unit `ratio`; no effect is 1). Of a claim
    with several comparisons that must each hold it is that of the weakest. p is two-sided, after Holm over the claims
    tested. n_folds counts folds over all partitions. `compared` names the variants, `decides` what would settle a claim
    that is not. Differences in macro-F1 within ± `rope` are practically none. What is not known is NaN.
    """
    measured = Measured(study, uri)
    tested: dict[str, _Tested] = {}
    reasons: dict[str, str] = {}
    for claim in CLAIMS:
        try:
            tested[claim.name] = _test(claim, measured, rope)
        except Untested as reason:
            reasons[claim.name] = str(reason)
    corrected = dict(zip(tested, holm([one.p(alpha) for one in tested.values()]), strict=True))
    rows = []
    for claim in CLAIMS:
        row: dict[str, object] = {"claim": claim.number, "part": claim.part, "statement": claim.statement}
        row |= {"measure": claim.measure.name, "unit": "ratio" if claim.measure.ratio else "difference"}
        row |= {"study": study.id, "compared": "", "n_folds": 0, "decides": ""}
        if claim.name in reasons:
            row |= {"verdict": "not tested", "decides": f"{reasons[claim.name]}; run {_sweeps(claim, study)}"}
        else:
            one, p = tested[claim.name], corrected[claim.name]
            shown = _quotient(one.weakest.difference) if claim.measure.ratio else one.weakest.difference
            row |= {"effect": shown.mean, "low": shown.low, "high": shown.high, "p": p, "n_folds": shown.folds}
            row |= {"verdict": one.verdict(p, alpha), "compared": one.compared}
            if row["verdict"] == "inconclusive":
                row["decides"] = _what_decides(one, study)
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True)
class _Part:
    """One comparison of a claim, and how likely its differences are if the claim does not hold (`support`), or if it
    does (`refutation`): one-sided p."""

    difference: Difference
    equal: Posterior
    sd: float
    support: float
    refutation: float


@dataclass(frozen=True)
class _Tested:
    claim: Claim
    parts: tuple[_Part, ...]
    rope: float
    ratio: float  # n_test / n_train
    compared: str

    @property
    def support(self) -> float:
        return max(part.support for part in self.parts)

    @property
    def refutation(self) -> float:
        return min(1.0, len(self.parts) * min(part.refutation for part in self.parts))

    def equal(self, alpha: float) -> bool:
        """Whether every comparison is practically equal."""
        return all(part.equal.inside >= 1 - alpha for part in self.parts)

    def holds(self, alpha: float) -> bool:
        """The way the claim leans: a difference that is sure and practically none is not worse."""
        not_worse = self.claim.expects in ("not less", "not greater") and self.equal(alpha)
        return not_worse or self.support < self.refutation

    def p(self, alpha: float) -> float:
        """Two-sided, of the claim as a whole."""
        return min(1.0, 2 * (self.support if self.holds(alpha) else self.refutation))

    @property
    def weakest(self) -> _Part:
        """The comparison that supports the claim least."""
        return max(self.parts, key=lambda part: (part.support, -part.refutation))

    def verdict(self, p: float, alpha: float) -> ClaimVerdict:
        """By `p` after correction for the family."""
        if self.claim.expects in ("greater", "less") and self.equal(alpha):
            return "practically equal"
        if p < alpha:
            return "supported" if self.holds(alpha) else "contradicted"
        return "inconclusive"


def _test(claim: Claim, measured: Measured, rope: float) -> _Tested:
    lengths = claim.where or _common(claim, measured)
    rope = rope if claim.measure.rope is None else claim.measure.rope
    ratio = measured.study.ratio
    used: dict[str, None] = {}
    vectors = []
    for left_lengths, right_lengths in lengths:
        left, left_used = measured.side(claim.left, left_lengths, claim.measure)
        right, right_used = measured.side(claim.right, right_lengths, claim.against or claim.measure)
        if left.keys() != right.keys():
            raise Untested(f"its sides were not run on the same folds ({', '.join([*left_used, *right_used])})")
        vectors.append([left[fold] - right[fold] for fold in sorted(left)])
        against = " against " if claim.against is None else ""
        used[" and ".join(left_used) + (against + " and ".join(right_used) if against else "")] = None
    if claim.held == "mean":
        vectors = [np.mean(vectors, axis=0).tolist()]
    if len(vectors[0]) < 2 or ratio is None:
        raise Untested("a single fold has no interval")
    parts = tuple(_part(vector, claim.expects, ratio, rope) for vector in vectors)
    return _Tested(claim, parts, rope, ratio, "; ".join(used))


def _part(differences: Sequence[float], expects: Expected, ratio: float, rope: float) -> _Part:
    difference, equal = corrected_t(differences, ratio), posterior(differences, ratio, rope)
    upward = expects in ("greater", "not less")
    sign = 1 if upward else -1
    # One-sided p of "the true difference is not above 0", once the claimed way points up.
    half = difference.p / 2
    above = half if sign * difference.mean > 0 else 1 - half
    beyond = equal.below if upward else equal.above
    support = above if expects in ("greater", "less") else beyond
    return _Part(difference, equal, float(np.std(differences, ddof=1)), support, 1 - above)


def _common(claim: Claim, measured: Measured) -> tuple[Lengths, ...]:
    """Every length at which the study has all methods of both sides."""
    # Of two components there is nothing to cut.
    shortest = 3 if claim.measure in OF_PARTS else 2
    found = [length for length in measured.lengths if length >= shortest]
    for side in (claim.left, claim.right):
        found = [length for length in found if all(measured.variants(loss, side, length) for loss in side.losses)]
    if not found:
        sides = dict.fromkeys(side.told() for side in (claim.left, claim.right))
        raise Untested(f"the study does not have {' and '.join(sides)} at one length")
    return at(*found)


def _quotient(logs: Difference) -> Difference:
    low, high = (exp(min(value, 700.0)) for value in (logs.low, logs.high))
    return Difference(exp(logs.mean), low, high, logs.p, logs.folds)


def _sweeps(claim: Claim, study: StudyRuns) -> str:
    names = claim.sweeps.split(", ")
    # A sweep that has the variants and yet could not judge needs its missing fold runs, or other data.
    return f"{study.sweep} to its end" if study.sweep in names else " or ".join(names)


def _what_decides(one: _Tested, study: StudyRuns) -> str:
    """The design that finds a difference of the ROPE in 80 % of cases, from the sd of the fold differences seen: more
    partitions of the same cells, or, where no number of them would do, more data."""
    part = one.weakest
    folds = study.frame.loc[:, ["partition", "fold"]].drop_duplicates()
    per_partition = int(folds.groupby("partition").size().max())
    for partitions in range(folds["partition"].nunique() + 1, MOST_PARTITIONS + 1):
        if smallest_detectable_difference(partitions * per_partition, one.ratio, part.sd) <= one.rope:
            return f"{study.sweep} with partitions: {list(range(partitions))}"
    times = data_needed(one.rope, part.difference.folds, one.ratio, part.sd)
    floor = smallest_detectable_difference(inf, one.ratio, part.sd)
    least, smallest = (
        f"{exp(each) - 1:.0%}" if one.claim.measure.ratio else f"{each:.3g}" for each in (one.rope, floor)
    )
    return (
        f"{study.sweep} on {times:.3g} times the data (patients and regions, not only cells) to find {least}; more "
        f"partitions or seeds on these leave less than {smallest} open"
    )


# --- as a person reads them -----------------------------------------------------------------------------------------


def shown_claims(frame: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` as text."""

    def effect(row: pd.Series) -> str:
        if pd.isna(row["effect"]):
            return "–"
        form = "×{:.2f} [{:.2f}, {:.2f}]" if row["unit"] == "ratio" else "{:+.3f} [{:+.3f}, {:+.3f}]"
        return form.format(row["effect"], row["low"], row["high"])

    return pd.DataFrame(
        {
            "claim": [f"{row['claim']}{row['part']}" for _, row in frame.iterrows()],
            "statement": frame["statement"],
            "verdict": frame["verdict"],
            "effect [95 %]": [effect(row) for _, row in frame.iterrows()],
            "measure": frame["measure"],
            "folds": [str(folds) if folds else "–" for folds in frame["n_folds"]],
            "compared": frame["compared"],
            "what would decide": frame["decides"],
        }
    )


def claims_caption(study: StudyRuns, frame: pd.DataFrame, rope: float = ROPE) -> str:
    """How to read the verdicts."""
    tested = int((frame["verdict"] != "not tested").sum())
    return (
        f"Claims of Gräbel et al. judged on {study.data} by study {study.id} of {study.sweep}: differences in each "
        "fold, seeds averaged, with a 95 % interval by the corrected resampled t; × marks a quotient. Verdicts after "
        f"Holm over the {tested} claims tested; practically equal: within ± {rope:g} of macro-F1, a tenth of a "
        "quotient, 0.02 of a correlation, silhouette or straightness. Directions are the paper's, fixed before the "
        "data."
    )


def render_claims(study: StudyRuns, frame: pd.DataFrame, form: str, rope: float = ROPE) -> str:
    """The verdicts as text, markdown, csv, json, latex or html; csv and json at full precision."""
    if form == "csv":
        return frame.to_csv(index=False)
    if form == "json":
        return frame.to_json(orient="records", indent=1, force_ascii=False, double_precision=15) + "\n"
    return rendered(shown_claims(frame), claims_caption(study, frame, rope), form)
