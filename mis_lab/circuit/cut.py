"""Checks before any circuit: splices leave the network as it is, SAEs fit their sites, sites carry all that follows.

A site is a *cut set* when every way from the image to the output leads through it: its vectors then decide the
output, and what its nodes do adds up to what ablating it whole does. All checks are measured on images, so they
hold for any network and any SAE.
"""

# B images of a batch  P positions  D site width

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from mis_lab.circuit.config import Topology
from mis_lab.circuit.dictionaries import n_images_at_once
from mis_lab.circuit.objectives import Images, Problem, with_targets
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.model.capture import Capture
from mis_lab.model.intervene import Replacement
from mis_lab.sae.base import Autoencoder

CUT_TOLERANCE = 1e-4
logger = logging.getLogger(__name__)


def check_splice(problem: Problem, images_bchw: Tensor) -> None:
    """Compare the logits with each site's vectors replaced by themselves to the plain ones, bit by bit.

    They differ where a module writes in place into memory that the site's output shares with something else: the
    splice puts other memory there.

    Raises:
        ConfigError: naming the first site whose splice changes the output, or when two plain passes differ.
        DataError: when the plain output is not finite.
    """
    with torch.inference_mode():
        plain_bc = problem.logits(images_bchw)
        if not plain_bc.isfinite().all():
            raise DataError(
                f"{problem.model.name} puts out numbers that are not finite", fix="Look for infinite weights or inputs."
            )
        if not torch.equal(plain_bc, problem.logits(images_bchw)):
            raise ConfigError(
                f"two passes of {problem.model.name} over the same images differ",
                fix="A circuit needs a network without random numbers.",
            )
        for site in problem.sites:
            spliced_bc = problem.logits(images_bchw, {site.path: _itself})
            if not torch.equal(plain_bc, spliced_bc):
                raise ConfigError(
                    f"splicing at site {site.path} of {problem.model.name} moves its output by "
                    f"{float((spliced_bc - plain_bc).abs().max()):.3g} although nothing is replaced",
                    fix="A module that works in place changes what the site shares: set inplace=False on it, "
                    "or choose the module before.",
                )


def check_saes(problem: Problem, saes: Mapping[str, Autoencoder], images_bchw: Tensor) -> dict[str, float]:
    """What share of each site's variance its SAE misses; one that misses all of it is told in a warning.

    Widths of sites are often equal, so that an SAE of another site, or of another network, fits: its reconstruction is
    then further from the vectors than their mean is.

    Args:
        saes: site path → SAE.

    Returns:
        Site path → Σ‖x − x̂‖² / Σ‖x − x̄‖² over images and positions; NaN where all vectors are equal.
    """
    missed = {}
    with Capture(problem.model, problem.sites) as capture, torch.inference_mode():
        for path, x_bpd in capture.run(images_bchw).items():
            if path not in saes:
                continue
            at_once = n_images_at_once(saes[path], x_bpd.shape[1])
            squares = sum(_squares(x - saes[path](x).reconstruction) for x in x_bpd.split(at_once))
            spread = _squares(x_bpd - x_bpd.mean((0, 1)))
            missed[path] = squares / spread if spread > 0 else float("nan")
            logger.info("the SAE of site %s misses %.3g %% of the variance there", path, 100 * missed[path])
            if missed[path] >= 1:
                logger.warning(
                    "the SAE of site %s misses %.3g %% of the variance, more than the mean vector would: "
                    "is it an SAE of another site or network?",
                    path,
                    100 * missed[path],
                )
    return missed


def check_cut(
    problem: Problem,
    images: Images,
    partners: Images,
    targets_n: Tensor,
    topology: Topology = Topology.chain,
    tolerance: float = CUT_TOLERANCE,
) -> dict[str, float]:
    """How far the objective with a site taken from other images misses that of the network on these.

    With m(do) the objective of an image with the site's vectors of its partner, m(partner) that of the network
    run on the partner, and m(image): ‖m(do) − m(partner)‖ / ‖m(partner) − m(image)‖ over all images. 0 is a cut
    set; 1 is a site that does nothing.

    Args:
        problem: network, sites and objective.
        images: batches (B, C, H, W).
        partners: other images, in batches of the same sizes.
        targets_n: what the objective reads of each image; for its partner as well.
        topology: ``parallel`` where sites are not meant to be cut sets: told, not raised.
        tolerance: of the measure.

    Returns:
        Site path → the measure.

    Raises:
        ConfigError: naming the first site above `tolerance`, under ``chain``.
        DataError: when partners have the objective of their images, so that there is nothing to compare.
        ValueError: when batches differ in size.
    """
    missed = dict.fromkeys((site.path for site in problem.sites), 0.0)
    moved = 0.0
    for (images_bchw, targets_b), partners_bchw in zip(with_targets(images, targets_n), partners, strict=True):
        clean = problem.observe(images_bchw, targets_b)
        partner = problem.observe(partners_bchw, targets_b)
        moved += _squares(partner.objective_b - clean.objective_b)
        with torch.inference_mode():
            for path in missed:
                done_b = problem.values(images_bchw, targets_b, {path: _instead(partner.vectors[path])})
                missed[path] += _squares(done_b - partner.objective_b)
    if not moved > 0:
        raise DataError(
            f"other images do not change the objective of {problem.model.name}: whether sites cut it is open",
            fix="Take other partners.",
        )
    found = {path: (squares / moved) ** 0.5 for path, squares in missed.items()}
    for path, share in found.items():
        if share <= tolerance:
            continue
        told = f"site {path} of {problem.model.name} is no cut set: {100 * share:.3g} % of the objective's change"
        if topology is Topology.chain:
            raise ConfigError(
                f"{told} passes by it",
                fix="Choose a module that all ways lead through (model.tokens=all for tokens), "
                "or take the sites as parallel.",
            )
        logger.warning("%s passes by it", told)
    return found


def _itself(x_bpd: Tensor) -> Tensor:
    return x_bpd.clone()  # not the very tensor: what is put in goes the way of any replacement


def _instead(vectors_bpd: Tensor) -> Replacement:
    return lambda x_bpd: vectors_bpd.clone()


def _squares(values: Tensor) -> float:
    return float(values.cpu().double().square().sum())
