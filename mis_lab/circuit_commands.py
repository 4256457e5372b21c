"""``mis-lab circuit``: what the network of a finished run says with some features changed; circuits of several runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mis_lab.circuit_run_commands import add_compare
from mis_lab.core.errors import EXIT_OK, ConfigError
from mis_lab.terminal import say, write_table

if TYPE_CHECKING:
    from torch import Tensor

    from mis_lab.circuit.steer import Steer, Steered
    from mis_lab.pipeline.steerable import Shown, SteerableRun

KINDS = ("feature", "neuron")
UNITS = ("largest", "mean", "code")
LEAST_SHOWN = 0.005  # a probability that two decimals show as something


def circuit(argv: list[str]) -> int:
    """``mis-lab circuit steer | compare``."""
    parser = argparse.ArgumentParser(prog="mis-lab circuit", description="a closer look at how units work together")
    actions = parser.add_subparsers(dest="action", required=True)
    for add in (_add_steer, add_compare):
        add(actions)
    arguments = parser.parse_args(argv)
    arguments.act(arguments)
    return EXIT_OK


def _add_steer(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "steer",
        help="set, scale, remove or raise features while the network runs",
        description="Several values (V,V,...) give a table and a curve over them; negative ones need --set=-1,0,1.",
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--site", required=True)
    parser.add_argument("--feature", required=True, metavar="N[,N...]", help="numbers at the site, steered together")
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0], help="what the numbers are of (default: feature)")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--set", metavar="V[,V...]", help="the activation becomes V")
    how.add_argument("--scale", metavar="S[,S...]", help="the activation becomes S times what it is")
    how.add_argument("--remove", action="store_true", help="the activation becomes 0")
    how.add_argument("--add", metavar="A[,A...]", help="move along the feature's direction by A times its --unit")
    parser.add_argument("--unit", choices=UNITS, default=UNITS[0], help="of --add: largest or mean activation, or 1")
    parser.add_argument("--active", action="store_true", help="only at positions where the feature is active")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--images", type=int, default=8, metavar="N", help="half most activating, half random (8)")
    which.add_argument("--image", action="append", default=[], metavar="ID", help="this one (repeatable)")
    parser.add_argument("--top", type=int, default=5, help="classes an image (default 5)")
    parser.add_argument("--out", type=Path, default=None, metavar="PNG", help="draw a picture")
    parser.add_argument("--store", type=Path, default=None, help="the run's store, if it moved")
    parser.set_defaults(act=_steer)


def _steer(arguments: argparse.Namespace) -> None:
    for option in ("images", "top"):
        if getattr(arguments, option) < 1:
            raise ConfigError(f"--{option} {getattr(arguments, option)}: at least 1 is needed")
    features = [_whole(word) for word in arguments.feature.split(",")]
    name, values = _values(arguments)
    from mis_lab.circuit.steer import steered_each
    from mis_lab.pipeline.steerable import SteerableRun

    if arguments.out:
        from mis_lab.report.canvas import require_png

        require_png(arguments.out)
    run = SteerableRun(arguments.run_dir, arguments.site, arguments.kind, arguments.store)
    for feature in features:
        run.check(feature)
    changes = [_change(run, features, name, value, arguments) for value in values]
    shown = run.wanted(arguments.image) if arguments.image else run.most_activating(features[0], arguments.images)
    answers = steered_each(run.problem, run.nodes, changes, run.images(shown.indices))
    words = f"{arguments.kind} {arguments.feature} of {arguments.site}: {_told(name, values, arguments)}"
    say(words)
    if len(values) == 1:
        _table(run, shown, answers[0], features[0], arguments.top)
    else:
        write_table(("value", "images", "another top class", "p of the former", "KL"), _dose_rows(values, answers))
    if arguments.out:
        say(str(_draw(run, shown, values, answers, words, arguments)))


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError as error:
        raise ConfigError(f"--feature {word}", fix="Write numbers: --feature 17 or --feature 3,17.") from error


def _values(arguments: argparse.Namespace) -> tuple[str, list[float]]:
    """What is done, and the values that it is done with."""
    if arguments.remove:
        return "remove", [0.0]
    name = next(option for option in ("set", "scale", "add") if getattr(arguments, option) is not None)
    try:
        return name, [float(word) for word in getattr(arguments, name).split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--{name} {getattr(arguments, name)}", fix=f"Write numbers: --{name}=2 or --{name}=-1,0,1."
        ) from error


def _change(
    run: SteerableRun, features: Sequence[int], name: str, value: float, arguments: argparse.Namespace
) -> list[Steer]:
    from mis_lab.circuit.steer import How, Steer

    changes = []
    for feature in features:
        size = value
        if name == "add" and arguments.unit != "code":
            strength = run.strength(feature)
            size *= strength.largest if arguments.unit == "largest" else strength.mean_if_active
        changes.append(Steer(arguments.site, feature, How[name], size, arguments.active))
    return changes


def _told(name: str, values: Sequence[float], arguments: argparse.Namespace) -> str:
    """The change in words."""
    listed = ", ".join(f"{value:g}" for value in values)
    unit = {"largest": " × largest activation", "mean": " × mean activation", "code": ""}[arguments.unit]
    words = {
        "set": f"set to {listed}",
        "scale": f"scaled by {listed}",
        "remove": "removed",
        "add": f"add {listed}{unit}",
    }
    return words[name] + " where active" * arguments.active


def _table(run: SteerableRun, shown: Shown, answer: Steered, feature: int, n_top: int) -> None:
    """A line an image, and one for all."""
    from mis_lab.report.steering import summary

    activations = run.activations(feature).values
    rows = [
        (
            run.dataset.ids[index],
            reason,
            float(activations[index]),
            _classes(answer.probabilities_before[row], run.names, n_top),
            "→",
            _classes(answer.probabilities_after[row], run.names, n_top),
            float(answer.probability_change()[row]),
            "changed" if answer.changed[row] else "",
        )
        for row, (index, reason) in enumerate(zip(*shown, strict=True))
    ]
    write_table(("image", "taken as", "activation", "before", "", "after", "p of the former", "top class"), rows)
    say(summary(answer))


def _classes(probability_c: Tensor, names: Sequence[str], n_top: int) -> str:
    """The largest classes with their probabilities; those that two decimals would call 0 are left out."""
    from mis_lab.report.steering import class_name

    found = probability_c.topk(min(n_top, len(probability_c)))
    told = [
        f"{class_name(names, number)} {probability:.2f}"
        for probability, number in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        if probability >= LEAST_SHOWN
    ]
    return ", ".join(told)


def _dose_rows(values: Sequence[float], answers: Sequence[Steered]) -> list[tuple[str, int, int, float, float]]:
    rows = []
    for value, answer in zip(values, answers, strict=True):
        former = answer.probabilities_after.gather(1, answer.top_before[:, None])
        n_changed = int(answer.changed.sum())
        rows.append((f"{value:g}", len(former), n_changed, float(former.mean()), float(answer.kl.mean())))
    return rows


def _draw(
    run: SteerableRun,
    shown: Shown,
    values: Sequence[float],
    answers: Sequence[Steered],
    words: str,
    arguments: argparse.Namespace,
) -> Path:
    from mis_lab.report.canvas import save_png
    from mis_lab.report.steering import SteeredImage, dose_picture, steering_picture

    title, _, change = words.partition(": ")
    if len(values) > 1:
        return save_png(dose_picture(title, change, values, answers), arguments.out)
    images = [
        SteeredImage(run.dataset.image(index), reason)
        for index, reason in zip(shown.indices, shown.reasons, strict=True)
    ]
    picture = steering_picture(title, change, answers[0], images, run.names, arguments.top)
    return save_png(picture, arguments.out)
