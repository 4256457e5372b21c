"""overcomplete 0.3: the state dict of a SAE, TopKSAE, BatchTopKSAE or JumpSAE with a linear encoder.

There ``pre = W·x + b``, ``x̂ = codes·D`` without any bias, D the normalised rows of ``dictionary._weights`` times
``exp(multiplier)``. A state dict says neither the class nor k, nor how rows are normalised, nor the threshold that a
BatchTopKSAE has learnt (a plain attribute, lost on save): the user adds what is missing.
"""

# D site width  F features

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError, StoreError
from mis_lab.sae.config import BatchTopKConfig, JumpReluConfig, ReluConfig, TopKConfig
from mis_lab.sae.share.formats.foreign import Foreign, Settings, State, inclusive, make, read_state, tensors_of

CLASSES = ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE")
SETTINGS = {
    "class": f"one of {', '.join(CLASSES)}",
    "top_k": "the number of codes kept, of a vector (TopKSAE) or of a batch (BatchTopKSAE)",
    "running_threshold": "the attribute of that name of the trained BatchTopKSAE",
    "normalization": "how the rows of the dictionary are normalised (l2 unless dictionary_params said otherwise)",
}
SMALLEST_NORM = 1e-8  # added to norms there
LARGEST_DRIFT = 0.1  # of the norm of a row, in the one step of the optimiser since it was last normalised
NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda rows: rows / (rows.norm(dim=1, keepdim=True) + SMALLEST_NORM),
    "max_l2": lambda rows: rows / rows.norm(dim=1).max(),
    "l1": lambda rows: rows / (rows.norm(p=1, dim=1, keepdim=True) + SMALLEST_NORM),
    "max_l1": lambda rows: rows / rows.norm(p=1, dim=1).max(),
    "identity": lambda rows: rows,
}


def read(path: Path, given: Mapping[str, str]) -> Foreign:
    """The SAE whose state dict is in the file `path`.

    Raises:
        StoreError: when the file is missing, damaged, or of an encoder or dictionary that is not linear.
        ConfigError: when a setting is missing or does not fit.
    """
    settings = Settings("overcomplete", given, SETTINGS)
    state = tensors_of(read_state(path), path)
    if "dictionary._weights" not in state:
        raise StoreError(f"{path} is no SAE of overcomplete", looked=", ".join(state.names[:6]) or "an empty file")
    class_name = settings.choice("class", CLASSES, "JumpSAE" if "thresholds" in state else None)
    if (class_name == "JumpSAE") != ("thresholds" in state):
        raise ConfigError(f"--set class={class_name}: {path} {'has' if 'thresholds' in state else 'has no'} thresholds")
    weights_fd = state.take("dictionary._weights", -1, -1)
    n_features, width = weights_fd.shape
    normalise = NORMALISATIONS[settings.choice("normalization", tuple(NORMALISATIONS), "l2")]
    if "normalization" not in settings:
        _check_norms(weights_fd, path)
    dictionary_fd = normalise(weights_fd) * state.take("dictionary.multiplier").exp()
    W_enc, b_enc = _encoder(state, dictionary_fd)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": dictionary_fd}
    if class_name == "JumpSAE":
        thresholds = state.take("thresholds", n_features).float().exp()
        sae = make(JumpReluConfig(n_features=n_features), width, threshold=inclusive(thresholds), **tensors)
    elif class_name == "TopKSAE":
        top_k = settings.integer("top_k")
        if top_k > n_features:
            raise ConfigError(f"--set top_k={top_k} is more than the {n_features} features of {path}")
        sae = make(TopKConfig(n_features=n_features, k=top_k), width, **tensors)
    elif class_name == "BatchTopKSAE":
        threshold = inclusive(torch.tensor(settings.number("running_threshold")))
        sae = make(BatchTopKConfig(n_features=n_features, k=1), width, threshold=threshold, **tensors)
    else:
        sae = make(ReluConfig(n_features=n_features, l1=0.0), width, **tensors)
    state.finish()
    return Foreign(sae, "", {"class": class_name})


def _check_norms(weights_fd: Tensor, path: Path) -> None:
    """Where nothing says how rows are normalised, l2 is taken if they show it."""
    smallest, largest = weights_fd.norm(dim=1).aminmax()
    if smallest < 1 - LARGEST_DRIFT or largest > 1 + LARGEST_DRIFT:
        raise ConfigError(
            f"rows of the dictionary in {path} have norms of {smallest:.3g} to {largest:.3g}, not 1 as l2 would give",
            fix=f"Add --set normalization=NAME with one of {', '.join(NORMALISATIONS)}.",
        )


def _encoder(state: State, dictionary_fd: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (F, D) and bias (F,) of a linear encoder: ``linear``, untied, or tied to the dictionary."""
    if unknown := [name for name in state.names if name.startswith(("encoder.mlp_", "encoder.final_block.1"))]:
        raise StoreError(
            f"{state.path}: the encoder has hidden or norm layers ({', '.join(unknown[:3])})",
            fix="Only a linear encoder can be taken over (encoder_module 'linear', tied or untied).",
        )
    n_features, width = dictionary_fd.shape
    if "encoder.final_block.0.weight" in state:
        return (
            state.take("encoder.final_block.0.weight", n_features, width),
            state.take("encoder.final_block.0.bias", n_features),
        )
    if "encoder.weight" in state:
        weight_fd = state.take("encoder.weight", n_features, width)
    elif "encoder.tied_to._weights" in state:  # the dictionary once more
        state.take("encoder.tied_to._weights", n_features, width)
        state.take("encoder.tied_to.multiplier")
        weight_fd = dictionary_fd
    else:
        raise StoreError(f"{state.path} has no linear encoder", looked=", ".join(state.names[:6]) or "the state dict")
    has_bias = "encoder.bias" in state
    return weight_fd, state.take("encoder.bias", n_features) if has_bias else dictionary_fd.new_zeros(n_features)
