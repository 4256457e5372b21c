"""Negatives of the classes of a task's strongly activating images.

A metric that knows classes gives a class-selective unit a high score, whatever else the unit sees. Here both sides of
a task have images of the same classes, so that the class alone tells nothing.
"""

# U units  S pool size  N tasks a unit  K explanations a side  n images

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.activations.order import image_ordinals
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.seeding import derive_seed
from mis_lab.mis.draws import hashes


class ImageClasses(NamedTuple):
    """Of n images: `class_n` (n,) int64, and `ordinal_n` (n,) int64, each image's place among the sorted ids, its name
    for draws."""

    class_n: Tensor
    ordinal_n: Tensor


def image_classes(classes: Sequence[int] | Tensor | None, ids: Sequence[str]) -> ImageClasses:
    """Check the classes of images, labels or a network's predictions.

    Raises:
        ConfigError: when there are none.
        DataError: when there is not one an image, or an image has none (−1).
    """
    if classes is None:
        raise ConfigError(
            "mis.negatives=[within_class] needs the class of every image",
            fix="Pass classes: the labels, or the network's own predictions.",
        )
    class_n = torch.as_tensor(classes, dtype=torch.int64)
    if len(class_n) != len(ids):
        raise DataError(f"{len(class_n)} classes for {len(ids)} images", fix="Give one class an image, in their order.")
    if len(missing := (class_n < 0).nonzero()):
        raise DataError(
            f"image {ids[int(missing[0])]} has no class ({len(missing)} of {len(ids)} have none)",
            fix="Use the network's predictions as classes.",
        )
    return ImageClasses(class_n, image_ordinals(ids).long())


def match_classes(
    positive_unk: Tensor, top_us: Tensor, classes: ImageClasses, groups: Tensor | None, seed: int, unit_keys: Tensor
) -> tuple[Tensor, Tensor]:
    """For each image of the positive sides a random one of its class from outside the top pool.

    Within a task no image comes twice (nor a group, where there are groups); over tasks images recur as rarely as
    there are images for.

    Args:
        positive_unk: (U, N, K+1) images, -1 where there is no task.
        top_us: (U, S) the top pools, -1 for none.

    Returns:
        (U, N, K+1) images, and (U, N) bool, which tasks could be filled; the others hold -1.
    """
    negative_unk = torch.full_like(positive_unk, -1)
    group_of = None if groups is None else groups.tolist()
    for unit, (positive_nk, top_s) in enumerate(zip(positive_unk, top_us, strict=True)):
        if positive_nk[0, 0] < 0:
            continue
        allowed = torch.isin(classes.class_n, classes.class_n[positive_nk[positive_nk >= 0]])
        allowed[top_s[top_s >= 0]] = False
        images = allowed.nonzero()[:, 0]
        own_seed = derive_seed(seed, "within class")
        order = hashes(own_seed, unit_keys[unit : unit + 1], classes.ordinal_n[images])[0].argsort()
        waiting: dict[int, list[int]] = {}
        for image, its_class in zip(images[order].tolist(), classes.class_n[images[order]].tolist(), strict=True):
            waiting.setdefault(its_class, []).append(image)
        for task, wanted_k in enumerate(positive_nk):
            if wanted_k[0] >= 0 and (chosen := _fill(classes.class_n[wanted_k].tolist(), waiting, group_of)):
                negative_unk[unit, task] = torch.tensor(chosen)
    return negative_unk, negative_unk[..., 0] >= 0


def _fill(wanted: list[int], waiting: dict[int, list[int]], group_of: list[int] | None) -> list[int]:
    """Images of the wanted classes, each the first that waits and may be taken; empty where one is missing.

    What is taken goes to the end of its class.
    """
    chosen: list[int] = []
    taken: set[int] = set()  # images, or their groups
    for its_class in wanted:
        queue = waiting.get(its_class, [])
        for place, image in enumerate(queue):
            name = image if group_of is None else group_of[image]
            if name not in taken:
                chosen.append(queue.pop(place))
                queue.append(image)
                taken.add(name)
                break
        else:
            return []
    return chosen


def keep_filled(sides: Sequence[Tensor], filled_un: Tensor) -> tuple[Tensor, ...]:
    """Each side's tasks (U, N, K+1) with those that were filled first, in their order, and -1 after them."""
    order = (~filled_un).to(torch.int64).argsort(dim=1, stable=True)
    kept = filled_un.gather(1, order)[..., None]
    return tuple(side.gather(1, order[..., None].expand_as(side)).masked_fill(~kept, -1) for side in sides)
