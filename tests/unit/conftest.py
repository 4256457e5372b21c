"""The command line in this process; a finished run without the work: artifacts in a store, and a result naming them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mis_lab.cli import main


@pytest.fixture
def mis_lab(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Calls ``mis-lab`` with the module's ``COMMAND`` and more words, in this process; gives the lines of stdout, or of
    stderr where it must fail."""
    monkeypatch.setattr("signal.signal", lambda *_arguments: None)  # the handler of a process of its own

    def call(*words: object, expect: int = 0) -> list[str]:
        with pytest.raises(SystemExit) as ended:
            main([request.module.COMMAND, *map(str, words)])
        told = capsys.readouterr()
        assert ended.value.code == expect, told
        return (told.err if expect else told.out).splitlines()

    return call


@dataclass(frozen=True)
class MadeRun:
    """A run's folder, its store, and the key of the SAE's artifact by site."""

    folder: Path
    store: Path
    saes: dict[str, str]


@pytest.fixture
def made_run(tmp_path: Path) -> Callable[..., MadeRun]:
    """Makes a finished run with TopK SAEs of width 8 at the sites asked for."""
    # A run is of the packages that need torch; tests of the command line's start must not import it.
    import torch

    from mis_lab.core.build import build
    from mis_lab.core.files import write_json
    from mis_lab.core.seeding import generator
    from mis_lab.core.store import Recipe, Store
    from mis_lab.sae import io
    from mis_lab.sae.config import TopKConfig

    def make(
        sites: Sequence[str] = ("blocks.4",), trained: bool = True, evaluated: bool = True, live: bool = False
    ) -> MadeRun:
        store = Store(tmp_path / "made_store")
        artifacts, saes = {}, {}
        for number, site in enumerate(sites):

            def activations(folder: Path, site: str = site) -> None:
                place = {"path": site, "layout": "bchw", "width": 8, "n_positions": 4, "grid": [2, 2]}
                write_json(folder / "metadata.json", {"site": place | {"n_prefix": 0, "tokens": "all"}, "width": 8})

            def sae(folder: Path, number: int = number) -> None:
                made = build(TopKConfig(n_features=20, k=3), width=8)
                random = generator(number, "test")
                made.initialise(torch.randn(64, 8, generator=random) + 1, random)
                io.save(made, folder)

            def evaluation(folder: Path) -> None:
                seen = {"seen/fvu": 0.125, "seen/l0": 3.0, "seen/reconstruction_bias": 1.0, "seen/n_images": 40}
                held_out = {"held_out/fvu": 0.25, "held_out/dead_share": 0.1, "held_out/recovered_mean": 0.875}
                write_json(folder / "summary.json", seen | held_out | {"held_out/recovered_zero": None})

            inputs = {"weights": "f" * 64, "data": "0123456789abcdef"}
            recipe = Recipe("activations", 1, {"site": site}, inputs)
            train_key = "never stored" if live else recipe.key
            artifacts[f"activations/{'score' if live else 'train'}/{site}"] = store.get(recipe, activations).key
            if trained:
                trainer = {"n_vectors": 4096, "batch_size": 64, "lr": 0.01, "normalisation": "unit_variance"}
                recipe = Recipe("sae", 1, {"trainer": trainer, "seed": 3}, {"activations": train_key})
                artifacts[f"sae/{site}"] = saes[site] = store.get(recipe, sae).key
            if evaluated:
                recipe = Recipe("evaluate", 1, {}, {"sae": saes.get(site, "")})
                artifacts[f"evaluate/{site}"] = store.get(recipe, evaluation).key
        result = {
            "artifacts": artifacts,
            "seed": 3,
            "overrides": ["sae=topk", "sae.k=3", "name=my lab", f"paths.store={store.root}", "logger=wandb"],
            "config": {
                "paths": {"store": str(store.root)},
                "seed": 3,
                "model": {"name": "efficientnet", "init_seed": 5},
                "dataset": {"name": "photo_patches", "split": {"hold_out_seed": 7}},
            },
            "versions": {"mis_lab": "0.1.0", "torch": "2.15"},
        }
        write_json(tmp_path / "run" / "result.json", result)
        return MadeRun(tmp_path / "run", store.root, saes)

    return make
