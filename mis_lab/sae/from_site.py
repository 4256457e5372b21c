"""Forward passes that start at a site, on its stored vectors: what stands before the site is not run again.

A network begins at its input, so that an image has to go up to the site; behind it there are as many rows as vectors.
That is the same as whole passes where the site is all that the rest of the network reads.
"""

# B images of a batch  P positions  D site width  K classes

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mis_lab.activations.config import Precision
from mis_lab.activations.shards import StoredActivations
from mis_lab.model.capture import predictions
from mis_lab.model.intervene import fan_out
from mis_lab.model.load import LoadedModel
from mis_lab.sae.ablation import Outputs

OWN_ANSWER = 1e-4  # of the largest logit, how far a start at the site may miss the network's own
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FromSite:
    """The network from a site on.

    Attributes:
        stored: vectors of the site.
        images_bchw: two images that differ, (2, C, H, W); the first alone goes up to the site once it is known that
            nothing passes by it.
    """

    model: LoadedModel
    stored: StoredActivations
    images_bchw: Tensor

    def logits(self, indices: Sequence[int], replace: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (B, K) of some images, their vectors (B, P, D) turned into others by `replace`."""
        return self._run(self.images_bchw[:1], replace(self._vectors(indices)))

    def decides_the_answer(self, original: Outputs, some: Sequence[int]) -> bool:
        """Whether the stored vectors of some images alone lead to the untouched network's answers to them.

        Two images go up to the site and more rows go on, so that whatever passes by it meets other sizes. Vectors kept
        in a lower precision are not good enough.

        Args:
            original: of all images.
            some: places of at least three images.
        """
        expected = original.logits_nk[list(some)]
        if len(some) <= len(self.images_bchw) or self.stored.precision is not Precision.float32:
            return False
        if bool((expected == expected[:1]).all()):
            return False  # whatever were put in would seem right
        try:
            found = self._run(self.images_bchw, self._vectors(some)).cpu()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:  # two images met several rows
            logger.debug("whole passes instead of some from %s on: %s", self.stored.site.path, error)
            return False
        missed = (found - expected).abs().max() if found.shape == expected.shape else torch.inf
        return bool(missed <= OWN_ANSWER * expected.abs().max())

    def _vectors(self, indices: Sequence[int]) -> Tensor:
        return self.stored.take(indices).to(self.model.device)

    def _run(self, images_bchw: Tensor, new_bpd: Tensor) -> Tensor:
        rows_b = torch.arange(len(new_bpd), device=new_bpd.device) % len(images_bchw)
        with fan_out(self.model, self.stored.site, rows_b, lambda _x: new_bpd):
            return predictions(self.model, images_bchw)
