"""Checkpoints of Toussaint 2024: ``torch.save`` of epoch, model_state_dict, optimizer_state_dict and training_step.

sae_mlp: ``codes = ReLU(W_enc·(x − b_dec) + b_enc)``, ``x̂ = W_dec·codes + b_dec``, as two ``nn.Linear`` (encoder,
decoder); its first checkpoints hold W_enc (D, F), b_enc, W_dec (F, D), b_dec. gated_sae: W_gate (F, D), b_gate, b_mag,
r_mag and the same decoder; there a gate of exactly 0 lets half of the magnitude through, here nothing.
"""

# D site width  F features

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mis_lab.core.errors import StoreError
from mis_lab.sae.base import Sae
from mis_lab.sae.config import GatedConfig, ReluConfig, ReluForm
from mis_lab.sae.share.formats.foreign import Foreign, Settings, State, make, read_state, tensors_of

MODEL = "model_state_dict"


def read(path: Path, given: Mapping[str, str]) -> Foreign:
    """The SAE in the checkpoint `path` (or in a bare state dict).

    Raises:
        StoreError: when the file is missing, damaged or of another architecture.
    """
    Settings("thesis", given, {})
    held = read_state(path)
    state = tensors_of(held.get(MODEL, held), path)
    if "W_gate" in state:
        sae = _gated(state)
    elif "W_enc" in state:
        sae = _legacy(state)
    elif "encoder.weight" in state:
        sae = _mlp(state)
    else:
        raise StoreError(f"{path} is no SAE of the thesis", looked=", ".join(state.names[:6]) or "an empty state dict")
    state.finish()
    return Foreign(
        sae, "", {name: held[name] for name in ("epoch", "training_step") if isinstance(held.get(name), int)}
    )


def _mlp(state: State) -> Sae:
    W_enc = state.take("encoder.weight", -1, -1)
    n_features, width = W_enc.shape
    return make(
        ReluConfig(n_features=n_features, form=ReluForm.thesis, l1=0.0),
        width,
        W_enc=W_enc,
        b_enc=state.take("encoder.bias", n_features),
        W_dec=state.take("decoder.weight", width, n_features).T,
        b_dec=state.take("decoder.bias", width),
    )


def _legacy(state: State) -> Sae:
    W_enc = state.take("W_enc", -1, -1).T
    n_features, width = W_enc.shape
    return make(
        ReluConfig(n_features=n_features, form=ReluForm.thesis, l1=0.0),
        width,
        W_enc=W_enc,
        b_enc=state.take("b_enc", n_features),
        W_dec=state.take("W_dec", n_features, width),
        b_dec=state.take("b_dec", width),
    )


def _gated(state: State) -> Sae:
    W_gate = state.take("W_gate", -1, -1)
    n_features, width = W_gate.shape
    return make(
        GatedConfig(n_features=n_features),
        width,
        W_enc=W_gate,
        b_enc=state.take("b_gate", n_features),
        b_mag=state.take("b_mag", n_features),
        r_mag=state.take("r_mag", n_features),
        W_dec=state.take("decoder.weight", width, n_features).T,
        b_dec=state.take("decoder.bias", width),
    )
