"""The baseline of each set of images: one for all, or that of the images' partners."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mis_lab.circuit.baselines import BASELINES
from mis_lab.circuit.config import Baseline, Pairing, Target
from mis_lab.circuit.images import choose
from mis_lab.circuit.states import States
from mis_lab.core.errors import DataError, MissingFileError


@pytest.fixture
def states_of(make_toy, noise, stage_config):
    """states_of(**options): toy, discovery images 0 to 11, evaluation images 12 to 22, states."""

    def make(**options):
        config = replace(stage_config, target=Target.label, **options)
        toy = make_toy("relu", dtype=torch.float32)
        model = toy.problem.model
        discovery = choose(model, noise(), range(12), 5, config)
        evaluation = choose(model, noise(), range(12, 24), 4, config)
        dictionaries = {kind: toy.dictionaries(kind) for kind in toy.node_sets}
        return toy, discovery, evaluation, States.of(toy.problem, dictionaries, discovery, evaluation, config, 0)

    return make


@pytest.mark.parametrize("baseline", BASELINES)
def test_one_baseline_serves_all_images(states_of, baseline) -> None:
    toy, discovery, evaluation, states = states_of(baseline=baseline)
    expected = BASELINES[baseline](toy.problem, states.dictionaries, discovery.images)
    for some in (discovery, evaluation):
        for kind, nodes in states.on(some).items():
            for path, of_site in nodes.items():
                assert torch.equal(of_site.state, expected[kind][path].state)


@pytest.mark.parametrize("baseline", [Baseline.resample, Baseline.counterfactual])
def test_ablated_images_become_their_partners_whatever_part_of_the_set(states_of, baseline) -> None:
    toy, discovery, evaluation, states = states_of(baseline=baseline)
    for some, allowed in ((discovery, range(12)), (evaluation.take([3, 1]), range(12, 24))):
        partners = [states.partner_of[index] for index in some.images.indices]
        assert set(partners) <= {*allowed}
        for index, partner in zip(some.images.indices, partners, strict=True):
            assert index != partner
            if baseline is Baseline.counterfactual:
                assert index % 4 != partner % 4
                assert partner != 23, "an image without a label is of no class"
        images = torch.cat(list(some.images.at(partners)))
        expected = toy.problem.observe(images, torch.zeros(len(images), dtype=torch.int64)).vectors
        for nodes in states.on(some).values():
            batches = list(nodes)
            for path, x_bpd in expected.items():
                found = torch.cat([batch[path].state for batch in batches])
                torch.testing.assert_close(found, x_bpd)


def test_a_file_names_partners_anywhere_in_the_data_set(states_of, tmp_path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({f"noise/{index}": f"noise/{(index + 13) % 24}" for index in range(24)}))
    by_file = {"baseline": Baseline.counterfactual, "pairing": Pairing.file, "pairs_file": str(path)}
    *_, states = states_of(**by_file)
    assert len(states.partner_of) == 9
    assert all(partner == (index + 13) % 24 for index, partner in states.partner_of.items())
    path.write_text(json.dumps({"noise/0": "noise/99"}))
    with pytest.raises(DataError):
        states_of(**by_file)
    path.unlink()
    with pytest.raises(MissingFileError, match="no file of image pairs"):
        states_of(**by_file)
