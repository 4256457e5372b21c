"""The run's result in plain sentences, made from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from mis_lab.report.data import ComparisonRow, FaithfulnessCurve, ReportData
from mis_lab.report.figures import headline_rows
from mis_lab.report.wording import (
    KINDS,
    MEASURES,
    NEGATIVES,
    count,
    fixed,
    interval,
    listed,
    named,
    percent,
    plural,
    spread,
)

LEVEL = 0.05
CHANCE = {"soft": 0.5, "hard": 0.5, "delta_over_tau": 0.0}


def headline(data: ReportData) -> str:
    """The answer in one sentence; it begins "On these scenes" unless every clear difference holds beyond them."""
    rows = headline_rows(data)
    if not rows:
        return _nothing_compared(data)
    sentence = _who_is_ahead(rows)
    won = [row for row in rows if row.winner is not None]
    if all(row.carries_over for row in won):
        return sentence
    kept_as_it_is = sentence.startswith("SAE")
    sentence = sentence if kept_as_it_is else sentence[0].lower() + sentence[1:]
    return f"On these {plural(_n_groups(data), data.dataset.group_word)}, {sentence}"


def _nothing_compared(data: ReportData) -> str:
    if data.mis is None:
        return "No unit was scored in this run."
    if not data.saes:
        return f"This run scored the neurons of {data.model.name}; without an SAE there is nothing to compare."
    return f"This run scored the units of {data.model.name}, without a comparison of kinds."


def _who_is_ahead(rows: Sequence[ComparisonRow]) -> str:
    n_won = {kind: sum(row.winner == kind for row in rows) for kind in ("feature", "neuron")}
    if not any(n_won.values()):
        return "No clear difference between SAE features and neurons."
    if all(n_won.values()):
        return _mixed(rows, n_won)
    ahead, behind = ("SAE features", "neurons") if n_won["feature"] else ("Neurons", "SAE features")
    won = max(n_won.values())
    if won < len(rows):
        where = f"in {won} of {len(rows)} comparisons; the others are unclear"
    else:
        where = "at every site" if len({row.site for row in rows}) > 1 else f"at {rows[0].site}"
        where += ", whichever negatives are used" if len({row.negatives for row in rows}) > 1 else ""
    return f"{ahead} score as more interpretable than {behind} {where}."


def _mixed(rows: Sequence[ComparisonRow], n_won: dict[str, int]) -> str:
    winners: dict[str, set[str]] = {row.negatives: set() for row in rows}
    for row in rows:
        if row.winner is not None:
            winners[row.negatives].add(row.winner)
    if all(len(kinds) <= 1 for kinds in winners.values()):
        leads = [
            f"{named(KINDS, kind)} with {named(NEGATIVES, key)}" for key, kinds in winners.items() for kind in kinds
        ]
        first = leads[0].replace(" with ", " lead with ", 1)
        return f"It depends on what units are held against: {', '.join([first, *leads[1:]])}."
    return (
        f"It depends on the site: SAE features are ahead in {n_won['feature']}, neurons in {n_won['neuron']} of "
        f"{len(rows)} comparisons."
    )


def _n_groups(data: ReportData) -> int:
    return data.mis.n_groups if data.mis else data.dataset.n_groups


def sentences(data: ReportData) -> list[Markup]:
    """The paragraphs below the headline: by negatives, how sure, controls, circuit."""
    rows = headline_rows(data)
    found = [_by_negatives(rows, negatives) for negatives in dict.fromkeys(row.negatives for row in rows)]
    if rows:
        found.append(_how_sure(data, rows))
    if beside := _beside(data):
        found.append(beside)
    if controls := _controls(data):
        found.append(controls)
    if circuit := _circuit(data):
        found.append(circuit)
    return found


def _by_negatives(rows: Sequence[ComparisonRow], negatives: str) -> Markup:
    rows = [row for row in rows if row.negatives == negatives]
    tally = []
    for kind in ("feature", "neuron"):
        if n := sum(row.winner == kind for row in rows):
            tally.append(f"{named(KINDS, kind)} are clearly ahead at {n} of {plural(len(rows), 'site')}")
    if n_unclear := sum(row.winner is None for row in rows):
        tally.append(f"{n_unclear} of {plural(len(rows), 'site')} show no clear difference")
    text = Markup("With <strong>{}</strong> {}: median {} {} for features, {} for neurons (means differ by {}).")
    return text.format(
        named(NEGATIVES, negatives),
        listed(tally),
        named(MEASURES, rows[0].measure),
        spread([row.median_a for row in rows]),
        spread([row.median_b for row in rows]),
        spread([float(row.mean_difference.estimate) for row in rows], signed=True),
    )


def _how_sure(data: ReportData, rows: Sequence[ComparisonRow]) -> Markup:
    won = [row for row in rows if row.winner is not None]
    carried = sum(row.carries_over for row in won)
    word = data.dataset.group_word
    groups = plural(_n_groups(data), word)
    if not won:
        text = (
            f"None of {plural(len(rows), 'comparison')} passes the test over units (Mann-Whitney with Holm's "
            "correction, "
            "and an interval that excludes 0)."
        )
    elif carried == len(won):
        text = (
            f"All {plural(len(won), 'clear difference')} also keep their sign when the {groups} instead of the "
            "units are "
            "resampled."
        )
    else:
        kept = f"{carried} also {'keeps its' if carried == 1 else 'keep their'}" if carried else "none keeps its"
        text = (
            f"Of the {plural(len(won), 'clear difference')}, {kept} sign when the {groups} instead of the units are "
            f"resampled; {'the others' if carried else 'they'} may be peculiar to these {word}s."
        )
    turned = [f"{row.site} ({row.negatives})" for row in won if row.turns_round]
    if turned:
        text += (
            f" But units without a score (dead, or active on too few images) weigh: counted as chance, they turn the "
            f"difference round at {listed(turned)}."
        )
    return Markup("<em>How sure:</em> {}").format(text)


def _beside(data: ReportData) -> Markup | None:
    """The same question asked otherwise: over the sites, of matched pairs, of scores drawn again."""
    if data.mis is None:
        return None
    measure, found = data.mis.headline[0], []
    over = [one for one in data.beside.over_sites if one.measure == measure and one.n > 1]
    if over:
        told = [
            f"{fixed(one.mean_difference.estimate, 2, True)} {interval(one.mean_difference, 2, True)} with "
            f"{named(NEGATIVES, one.negatives)}"
            for one in over
        ]
        cannot = f"; so few sites cannot be told from chance (p from {fixed(over[0].least_p)} on)"
        found.append(
            f"over the {over[0].n} sites features differ from neurons by {listed(told)}"
            f"{cannot if over[0].least_p >= LEVEL else ''}"
        )
    if pairs := [one for (_, _, kind), one in data.beside.pairs.items() if kind == measure]:
        ahead, behind = (
            sum(one.p_value < LEVEL and sign * one.mean_difference.estimate > 0 for one in pairs) for sign in (1, -1)
        )
        found.append(
            "beside the neuron that each correlates with best, features score clearly higher in "
            f"{ahead} and lower in {behind} of {plural(len(pairs), 'comparison')}"
        )
    if noise := [one.mean_sd for (*_, kind), one in data.beside.noise.items() if kind == measure]:
        found.append(f"drawing pools and tasks again moves the mean of a site by {spread(noise, 3)}")
    if not found:
        return None
    text = "; ".join(found)
    return Markup("<em>Asked otherwise:</em> {}.").format(text[0].upper() + text[1:])


def _controls(data: ReportData) -> Markup | None:
    if data.mis is None:
        return None
    measure, negatives = data.mis.headline
    parts = []
    for kind in ("permuted", "random_direction", "sparse_neuron"):
        scores = [one.of(negatives, measure) for one in data.scores if one.kind == kind]
        if medians := [float(np.median(values)) for values in scores if values.size]:
            parts.append(f"{named(KINDS, kind)} {spread(medians)}")
    if not parts:
        return None
    text = Markup("<em>Controls</em> with the same tasks have medians of: {}; chance is {}.")
    return text.format(listed(parts), fixed(CHANCE[measure]))


def _circuit(data: ReportData) -> Markup | None:
    circuit = data.circuit
    if circuit is None:
        return None
    main = _curve(data, "feature", "effect") or _curve(data, "neuron", "effect")
    if main is None:
        return None
    size, value = main.at(len(circuit.nodes))
    rivals = []
    for kind, selection, words in (("neuron", "effect", "neurons"), (main.kind, "random", f"random {main.kind} nodes")):
        curve = _curve(data, kind, selection)
        if curve is not None and curve is not main:
            rivals.append(f"as many {words} {percent(float(curve.at(size)[1].estimate))}")
    left = data.circuit_details.completeness_at(main.kind, size)
    word = data.dataset.group_word
    limits = f"no interval over {word}s"
    if np.isfinite(float(value.high) - float(value.low)):
        limits = f"95 % interval over {word}s {percent(float(value.low))} to {percent(float(value.high))}"
    text = Markup(
        "<em>Circuit:</em> {} of {} live nodes keep <strong>{}</strong> of {} on {} of {} it was not found on ({}){}{}."
    )
    return text.format(
        count(size),
        count(circuit.n_live),
        percent(float(value.estimate)),
        circuit.objective,
        plural(circuit.n_evaluation, "image"),
        plural(circuit.n_evaluation_groups, word),
        limits,
        "; " + listed(rivals) if rivals else "",
        f"; without them {percent(left[1])} is left" if left is not None else "",
    )


def _curve(data: ReportData, kind: str, selection: str) -> FaithfulnessCurve | None:
    return next((curve for curve in data.faithfulness if (curve.kind, curve.selection) == (kind, selection)), None)
