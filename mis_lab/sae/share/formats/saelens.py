"""SAELens (versions 3 to 6): a folder with ``cfg.json`` and ``sae_weights.safetensors``.

There ``pre = (s·x − b_dec)·W_enc + b_enc`` with W_enc (D, F), the subtraction only under ``apply_b_dec_to_input``, and
``x̂ = (codes·W_dec + b_dec)/s`` with W_dec (F, D); s = 1 unless inputs were normalised to a mean norm and this was not
folded into the weights. A BatchTopK SAE is saved as JumpReLU, its one threshold repeated.
"""

# D site width  F features

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mis_lab.core.errors import StoreError
from mis_lab.core.files import read_json
from mis_lab.sae.base import Sae
from mis_lab.sae.config import GatedConfig, JumpReluConfig, ReluConfig, TopKConfig
from mis_lab.sae.share.formats.foreign import Foreign, Settings, State, make, read_state, tensors_of

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
SETTINGS = {"scaling_factor": "the factor by which inputs were multiplied, where it was not folded into the weights"}
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
IGNORED = ("scaling_factor",)  # ones, in files of the versions that wrote it


def read(path: Path, given: Mapping[str, str]) -> Foreign:
    """The SAE in the folder `path`.

    Raises:
        StoreError: when a file is missing, damaged or of another architecture, or a setting of ``cfg.json`` is one that
            an SAE of ours cannot follow.
    """
    settings = Settings("saelens", given, SETTINGS)
    if not (path / CONFIG).is_file():
        raise StoreError(f"no SAE of SAELens in {path}", looked=path / CONFIG)
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise StoreError(f"{path / CONFIG} holds no settings")
    state = tensors_of(read_state(path / WEIGHTS), path / WEIGHTS)
    width, n_features = _size(config, "d_in", path), _size(config, "d_sae", path)
    for name in IGNORED:
        if name in state and not torch.equal(factor := state.take(name, n_features), torch.ones_like(factor)):
            raise StoreError(f"{path / WEIGHTS}: a {name} other than 1 (finetuning) cannot be taken over")
    scale = _scale(config, path, settings)
    architecture = _architecture(config, path)
    reader = {"standard": _standard, "gated": _gated, "jumprelu": _jump_relu, "topk": _top_k}[architecture]
    sae = reader(_Parts(config, state, width, n_features), scale)
    state.finish()
    about = {name: _said(config, name) for name in ("model_name", "hook_name", "sae_lens_version")}
    return Foreign(sae, about["hook_name"], {name: value for name, value in about.items() if value})


class _Parts:
    """What the architectures share, in our shapes; biases of the encoder for inputs from which b_dec is subtracted."""

    def __init__(self, config: Mapping[str, Any], state: State, width: int, n_features: int) -> None:
        self.config, self.state, self.width, self.n_features = config, state, width, n_features
        self.W_enc = state.take("W_enc", width, n_features).T
        self.W_dec = state.take("W_dec", n_features, width)
        self.b_dec = state.take("b_dec", width)
        self._subtracted = config.get("apply_b_dec_to_input", True)

    def bias(self, name: str, gain_f: Tensor | float = 1.0) -> Tensor:
        """An encoder bias (F,); `gain_f` is what multiplies the rows of W_enc in front of it."""
        bias_f = self.state.take(name, self.n_features)
        return bias_f if self._subtracted else bias_f + gain_f * (self.W_enc @ self.b_dec)

    def common(self, scale: float) -> dict[str, Tensor]:
        return {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_dec": self.b_dec, "scale": torch.tensor(scale)}


def _standard(parts: _Parts, scale: float) -> Sae:
    config = ReluConfig(n_features=parts.n_features, l1=0.0)
    return make(config, parts.width, b_enc=parts.bias("b_enc"), **parts.common(scale))


def _gated(parts: _Parts, scale: float) -> Sae:
    r_mag = parts.state.take("r_mag", parts.n_features)
    b_gate, b_mag = parts.bias("b_gate"), parts.bias("b_mag", r_mag.exp())
    config = GatedConfig(n_features=parts.n_features)
    return make(config, parts.width, b_enc=b_gate, b_mag=b_mag, r_mag=r_mag, **parts.common(scale))


def _jump_relu(parts: _Parts, scale: float) -> Sae:
    name = "log_threshold" if "log_threshold" in parts.state else "threshold"
    threshold = parts.state.take(name, parts.n_features)
    threshold = threshold.exp() if name == "log_threshold" else threshold.clamp_min(0.0)  # there ReLU comes first
    config = JumpReluConfig(n_features=parts.n_features)
    return make(config, parts.width, b_enc=parts.bias("b_enc"), threshold=threshold, **parts.common(scale))


def _top_k(parts: _Parts, scale: float) -> Sae:
    k = parts.config.get("k") or (parts.config.get("activation_fn_kwargs") or {}).get("k")
    if not isinstance(k, int) or not 1 <= k <= parts.n_features:
        raise StoreError(f"{CONFIG}: k={k} of a topk SAE of {parts.n_features} features")
    tensors = parts.common(scale) | {"b_enc": parts.bias("b_enc")}
    if parts.config.get("rescale_acts_by_decoder_norm"):  # codes as if atoms were of unit norm
        norm_f = parts.W_dec.norm(dim=1)
        tensors |= {
            "W_enc": parts.W_enc * norm_f[:, None],
            "b_enc": tensors["b_enc"] * norm_f,
            "W_dec": parts.W_dec / norm_f[:, None],
        }
    return make(TopKConfig(n_features=parts.n_features, k=k), parts.width, **tensors)


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    """Name as version 6 says it: earlier ones call a TopK SAE standard, with another activation function."""
    architecture = str(config.get("architecture", "standard"))
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if activation == "topk" and architecture == "standard":
        architecture = "topk"
    elif activation not in ("relu", "topk"):
        raise StoreError(f"{path / CONFIG}: activation_fn={activation} cannot be taken over", fix="relu and topk can.")
    if architecture not in ARCHITECTURES:
        fix = f"Those that can: {', '.join(ARCHITECTURES)}."
        if "batchtopk" in architecture:
            fix = "Save it with save_inference_model, which makes it a jumprelu SAE."
        raise StoreError(f"{path / CONFIG}: architecture={architecture} cannot be taken over", fix=fix)
    return architecture


def _scale(config: Mapping[str, Any], path: Path, settings: Settings) -> float:
    """Factor before the encoder."""
    if config.get("reshape_activations", "none") not in ("none", None):
        raise StoreError(
            f"{path / CONFIG}: reshape_activations={config['reshape_activations']} is for the heads of a language model"
        )
    normalisation = config.get("normalize_activations")
    if normalisation in (None, False, "none"):
        return 1.0
    if normalisation in (True, "expected_average_only_in"):
        if "scaling_factor" in settings:
            return settings.number("scaling_factor")
        if (path / SCALER).is_file() and (factor := read_json(path / SCALER).get("scaling_factor")):
            return float(factor)
        return settings.number("scaling_factor")  # says that it is missing
    raise StoreError(
        f"{path / CONFIG}: normalize_activations={normalisation} cannot be taken over",
        fix="It treats every vector by its own statistics, or whitens; none and expected_average_only_in can.",
    )


def _size(config: Mapping[str, Any], name: str, path: Path) -> int:
    size = config.get(name)
    if not isinstance(size, int) or size < 1:
        raise StoreError(f"{path / CONFIG}: {name}={size} is no size")
    return size


def _said(config: Mapping[str, Any], name: str) -> str:
    """An entry that version 6 keeps under ``metadata`` and earlier ones at the top."""
    early = {"hook_name": "hook_point"}.get(name, name)
    return str((config.get("metadata") or {}).get(name) or config.get(name) or config.get(early) or "")
