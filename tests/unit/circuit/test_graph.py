"""Lists of edges: what is in them, disk, coverage, the strongest, and agreement of linear with exact ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import mean_image
from mis_lab.circuit.circuit import ERROR, Node
from mis_lab.circuit.config import EdgeMethod, EffectMethod, Quadrature
from mis_lab.circuit.edges import LinkEdges, chain, link_edges
from mis_lab.circuit.effects import SiteEffects, node_effects
from mis_lab.circuit.graph import _ROWS, _TOTALS, Edges, agreement, join
from mis_lab.circuit.quadrature import RULES
from mis_lab.core.errors import ConfigError, StoreError


def link(weight: list[list[float]], sources: list[int], targets: list[int], total=None, **options) -> LinkEdges:
    weight = torch.tensor(weight, dtype=torch.float64)
    options = {"source": "early", "target": "late", "method": EdgeMethod.vjp} | options
    return LinkEdges(
        sources=torch.tensor(sources),
        targets=torch.tensor(targets),
        weight=weight,
        standard_error=weight.abs() / 10,
        total=weight.sum(1) if total is None else torch.tensor(total, dtype=torch.float64),
        n_images=3,
        n_vjps=4,
        n_forwards=5,
        **options,
    )


LAST = SiteEffects(
    torch.tensor([[1.0, -2.0, 0.5, 4.0], [3.0, -2.0, 0.5, 0.0]], dtype=torch.float64),
    torch.tensor([2] * 4),
    torch.tensor([True] * 4),
    1.0,
    has_error=True,
)


@pytest.fixture
def edges() -> Edges:
    """Three nodes of `early`, two of `late` and the objective; one edge is zero, one node's total not all told."""
    between = link([[1.0, -3.0], [0.0, 2.0], [0.25, 0.5]], [7, 0, ERROR], [ERROR, 1], [-2.0, 4.0, 0.75])
    return join("feature", ("early", "late"), [between], LAST, torch.tensor([1, ERROR]))


def test_edges_are_listed_with_their_nodes_and_zero_is_none(edges: Edges) -> None:
    assert dict(zip(edges.ends, edges.weight.tolist(), strict=True)) == {
        (Node("early", 7), Node("late", ERROR)): 1.0,
        (Node("early", 7), Node("late", 1)): -3.0,
        (Node("early", 0), Node("late", 1)): 2.0,
        (Node("early", ERROR), Node("late", ERROR)): 0.25,
        (Node("early", ERROR), Node("late", 1)): 0.5,
        (Node("late", 1), None): -2.0,
        (Node("late", ERROR), None): 2.0,
    }
    assert edges.standard_error[1] == pytest.approx(0.3)
    assert edges.standard_error[-1] == pytest.approx(float(LAST.standard_error[-1]))
    assert edges.methods == {"early→late": "vjp"}
    assert (edges.n_vjps, edges.n_forwards) == (4, 5)


def test_coverage_is_the_share_of_a_node_that_its_edges_tell(edges: Edges) -> None:
    assert edges.coverage.tolist() == [1.0, 0.5, 1.0]
    assert edges.strongest(1).coverage.tolist() == [1.0, 0.0, 0.0]


def test_the_strongest_into_every_target_are_kept_in_their_order(edges: Edges) -> None:
    kept = edges.strongest(1)
    assert kept.ends == [
        (Node("early", 7), Node("late", ERROR)),
        (Node("early", 7), Node("late", 1)),
        (Node("late", 1), None),
    ]
    assert edges.strongest(9).ends == edges.ends
    assert len(edges.strongest(0)) == 0


def test_disk_gives_it_back(edges: Edges, tmp_path) -> None:
    edges.save(tmp_path / "new")
    again = Edges.load(tmp_path / "new")
    for name in ("kind", "sites", "methods", "n_vjps", "n_forwards", "ends"):
        assert getattr(again, name) == getattr(edges, name)
    assert all(torch.equal(getattr(again, name), getattr(edges, name)) for name in (*_ROWS, *_TOTALS))
    (tmp_path / "new" / "edges.safetensors").write_bytes(b"cut short")
    with pytest.raises(StoreError, match="damaged"):
        Edges.load(tmp_path / "new")


def test_links_that_do_not_belong_are_told() -> None:
    here = link([[1.0]], [0], [0])
    with pytest.raises(ConfigError, match="site late do not belong here"):
        join("feature", ("early", "other"), [here], LAST, torch.tensor([1]))
    with pytest.raises(ConfigError, match="given twice"):
        join("feature", ("early", "late"), [here, here], LAST, torch.tensor([1]))


def test_agreement_is_over_the_nodes_that_both_have() -> None:
    a, b = torch.randn(5, 4).double(), torch.randn(2, 3).double()
    b[1, 2] = 0
    linear = link(a.tolist(), [3, 8, ERROR, 1, 0], [2, 5, 6, ERROR])
    exact = link(b.tolist(), [ERROR, 8], [ERROR, 2, 4], method=EdgeMethod.exact)
    found = agreement(linear, exact)
    x = np.array([a[1, 0], a[1, 3], a[2, 0], a[2, 3]])
    y = np.array([b[1, 1], b[1, 0], b[0, 1], b[0, 0]])
    assert found.n_edges == found.n_signed == 4
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.same_sign == pytest.approx(float((x * y > 0).mean()))
    flat = agreement(link([[1.0, 1.0]], [0], [0, 1]), link([[0.0, 2.0]], [0], [0, 1], method=EdgeMethod.exact))
    assert np.isnan(flat.pearson)
    assert (flat.same_sign, flat.n_signed) == (1.0, 1)


def test_agreement_needs_the_same_link_and_both_methods() -> None:
    linear, exact = link([[1.0]], [0], [0]), link([[1.0]], [0], [0], method=EdgeMethod.exact)
    with pytest.raises(ConfigError, match="are others"):
        agreement(linear, link([[1.0]], [0], [0], target="later", method=EdgeMethod.exact))
    with pytest.raises(ConfigError, match="were to be vjp and exact"):
        agreement(exact, linear)
    with pytest.raises(ConfigError, match="are in both"):
        agreement(linear, link([[1.0]], [4], [0], method=EdgeMethod.exact))


def test_a_chain_of_a_network_ends_at_the_objective(make_toy) -> None:
    toy = make_toy("relu")
    nodes, path = toy.node_sets["feature"], InputPath(mean_image(toy.images), RULES[Quadrature.midpoint](1))
    effects = node_effects(toy.problem, toy.node_sets, toy.images, toy.targets_n, EffectMethod.atp, path)["feature"]
    chosen = {site: torch.tensor([*range(11), ERROR]) for site in nodes}
    links = [link_edges(toy.problem, nodes, of, chosen, toy.images, toy.targets_n) for of in chain(toy.problem.sites)]
    edges = join("feature", tuple(nodes), links, effects["3"], chosen["3"])
    into = edges.take(edges.target_site == -1)
    assert torch.equal(into.weight, effects["3"].mean)
    live = effects["1"].mean != 0
    torch.testing.assert_close(edges.coverage[live], torch.ones(int(live.sum())).double(), rtol=1e-9, atol=1e-9)
    linear, exact = (
        links[0],
        link_edges(
            toy.problem, nodes, chain(toy.problem.sites)[0], chosen, toy.images, toy.targets_n, EdgeMethod.exact
        ),
    )
    assert agreement(linear, exact).pearson > 0.5
