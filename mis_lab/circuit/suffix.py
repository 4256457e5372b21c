"""The network from a site on, run for many vectors of each image: what stands before the site runs once.

Behind the site a pass holds rows, each the copy of an image with vectors of its own. That works where the site is all
that the rest of the network reads; elsewhere (a branch, the inside of a residual block) whole images are copied.
"""

# B images  R rows  P positions  D site width

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mis_lab.circuit.objectives import Problem
from mis_lab.model.intervene import Replacement, fan_out
from mis_lab.model.sites import Site


@dataclass(frozen=True)
class Suffix:
    """What follows `site`.

    Attributes:
        is_cut: whether everything that follows reads the site's output alone.
    """

    problem: Problem
    site: Site
    is_cut: bool

    @classmethod
    @torch.inference_mode()
    def of(cls, problem: Problem, site: Site, images_bchw: Tensor, targets_b: Tensor) -> Suffix:
        """Find out whether `site` is a cut by trying: two images, three rows behind the site."""
        two = torch.tensor([0, -1], device=images_bchw.device)  # one image is taken twice
        rows = torch.tensor([0, 1, 0], device=images_bchw.device)
        images, targets = images_bchw[two], targets_b[two]
        try:
            found = cls(problem, site, True).values(images, targets, rows, lambda x_rpd: x_rpd)
        except (RuntimeError, ValueError, IndexError, AssertionError):  # two images met three
            return cls(problem, site, False)
        plain = problem.values(images, targets)[rows]
        same = found.shape == plain.shape and torch.allclose(found, plain, rtol=1e-3, atol=1e-4, equal_nan=True)
        return cls(problem, site, same)

    def values(self, images_bchw: Tensor, targets_b: Tensor, rows_r: Tensor, replace: Replacement) -> Tensor:
        """Objective (R,) of rows: row r is image `rows_r[r]`, with new vectors at the site.

        Args:
            replace: the images' vectors as rows (R, P, D) → new ones.
        """
        if not self.is_cut:
            return self.problem.values(images_bchw[rows_r], targets_b[rows_r], {self.site.path: replace})
        with fan_out(self.problem.model, self.site, rows_r, replace):
            return self.problem.values(images_bchw, targets_b[rows_r])
