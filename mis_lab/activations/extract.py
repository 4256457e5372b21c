"""One pass of a data set through a network, all sites written at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from mis_lab.activations.config import ActivationsConfig
from mis_lab.activations.shards import ActivationWriter
from mis_lab.core.progress import progress
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.loading import batches
from mis_lab.model.capture import Capture
from mis_lab.model.config import Layout, Tokens
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import resolve_sites


def extract(
    model: LoadedModel,
    dataset: ImageDataset,
    sites: Mapping[str, Path],
    config: ActivationsConfig,
    layout: Layout = Layout.auto,
    tokens: Tokens = Tokens.patches,
) -> None:
    """Store the activations of `dataset` at several sites; the network runs no further than the deepest.

    Args:
        sites: module path → folder to fill (format: docs/store.md).
        layout, tokens: how a site's output is laid out and which tokens are kept.

    Raises:
        ConfigError: when a site does not exist, is not reached or gives no tensor.
        DataError: when an image cannot be read, or its activations are NaN or infinite.
    """
    resolved = resolve_sites(model, list(sites), layout, tokens)
    about = {
        "model": model.name,
        "dataset": dataset.name,
        "split": dataset.split,
        "class_names": list(dataset.class_names),
    }
    with ExitStack() as stack:
        writers = {
            site.path: stack.enter_context(
                ActivationWriter(
                    sites[site.path],
                    site,
                    dataset.ids,
                    dataset.groups,
                    dataset.labels,
                    config.precision,
                    config.shard_mib,
                    about,
                )
            )
            for site in resolved
        }
        capture = stack.enter_context(Capture(model, resolved))
        for batch in progress(
            batches(dataset, model.transform, config.batch_size, config.workers),
            f"activations {dataset.name}/{dataset.split}",
            total=math.ceil(len(dataset) / config.batch_size),
            unit="batch",
        ):
            for path, x_bpd in capture.run(batch.images_bchw).items():
                writers[path].append(x_bpd, batch.indices)
