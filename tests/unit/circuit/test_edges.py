"""Edges against node effects, slow derivatives over single positions, forward mode, exact ablation, and Captum."""

# n images  B images  P positions  D site width  U upstream nodes  T downstream nodes

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from captum.attr import NeuronConductance
from torch import Tensor, nn

from mis_lab.circuit.attribution import InputPath, input_path_gradients, site_gradients
from mis_lab.circuit.baselines import SiteNodes, mean, mean_image, zero
from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.config import EdgeMethod, EffectMethod, Quadrature
from mis_lab.circuit.dictionaries import Neurons, SaeFeatures
from mis_lab.circuit.edges import Link, LinkEdges, all_pairs, chain, choose, link_edges
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.objectives import Problem, logit
from mis_lab.circuit.quadrature import RULES
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.model.sites import Site

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-13)


def every_node(nodes: SiteNodes) -> Tensor:
    features = torch.arange(nodes.dictionary.n_features)
    return torch.cat([features, torch.tensor([ERROR])]) if nodes.dictionary.has_error else features


def edges_of(toy, kind: str = "feature", method=EdgeMethod.vjp, link: Link | None = None, **options) -> LinkEdges:
    """Edges between all nodes of both sites unless `chosen` says which."""
    nodes = toy.node_sets[kind]
    options = {
        "chosen": {path: every_node(of_site) for path, of_site in nodes.items()},
        "images": toy.images,
        "targets_n": toy.targets_n,
    } | options
    return link_edges(toy.problem, nodes, link or chain(toy.problem.sites)[0], method=method, **options)


def atp_of(toy, kind: str) -> dict[str, Tensor]:
    path = InputPath(mean_image(toy.images), RULES[Quadrature.midpoint](1))
    effects = node_effects(toy.problem, toy.node_sets, toy.images, toy.targets_n, EffectMethod.atp, path)[kind]
    return {site_path: of_site.mean for site_path, of_site in effects.items()}


class Between(nn.Module):
    """From the vectors of the first of two sites to those of the second, written down anew."""

    def __init__(self, toy) -> None:
        super().__init__()
        self.module, self.is_tokens = copy.deepcopy(toy.module), toy.problem.sites[0].layout == "btd"
        self.grid = toy.problem.sites[0].grid
        self.first, self.last = (site.path for site in toy.problem.sites)

    def forward(self, x_bpd: Tensor) -> Tensor:
        if self.is_tokens:
            return self.module.mix(nn.functional.gelu(x_bpd).transpose(1, 2)).transpose(1, 2)
        maps = x_bpd.transpose(1, 2).unflatten(2, self.grid).clone()
        return self.module[int(self.first) + 1 : int(self.last) + 1](maps).flatten(2).transpose(1, 2)


def downstream(toy, kind: str, y_bpd: Tensor) -> Tensor:
    """(B, P, F + D): every code of the second site, then every number of its error; with derivatives."""
    if kind == "neuron":
        return y_bpd
    codes = toy.saes[toy.problem.sites[1].path].encode(y_bpd)
    return torch.cat([codes, y_bpd - toy.saes[toy.problem.sites[1].path].decode(codes)], dim=-1)


def deltas(toy, kind: str, x_bpd: Tensor) -> Tensor:
    """(U, B, P, D): what each node of the first site adds to x beyond its baseline."""
    path = toy.problem.sites[0].path
    nodes = toy.node_sets[kind][path]
    if kind == "neuron":
        return torch.stack([unit_d * (x_bpd - nodes.state) for unit_d in torch.eye(x_bpd.shape[-1]).to(x_bpd)])
    sae = toy.saes[path]
    codes = sae.encode(x_bpd)
    features = [(codes - nodes.features)[..., k, None] * sae.dictionary[k] for k in range(codes.shape[-1])]
    return torch.stack([*features, x_bpd - sae.decode(codes) - nodes.error])


def left(toy, kind: str, gradient_bpd: Tensor) -> Tensor:
    """(B, P, F + D): gradient of the objective over what :func:`downstream` gives."""
    if kind == "neuron":
        return gradient_bpd
    atoms = toy.saes[toy.problem.sites[1].path].dictionary
    return torch.cat([gradient_bpd @ atoms.T, gradient_bpd], dim=-1)


def by_node(toy, kind: str, values: Tensor) -> Tensor:
    """(..., F + D) → (..., N): numbers of the error summed."""
    n_features = toy.node_sets[kind][toy.problem.sites[1].path].dictionary.n_features
    if kind == "neuron":
        return values
    return torch.cat([values[..., :n_features], values[..., n_features:].sum(-1, keepdim=True)], dim=-1)


# A6: what the site passes on of a node is the node's effect, for features and for the error.


@pytest.mark.parametrize("sae", ["relu", "topk"])
def test_all_edges_of_a_node_add_up_to_its_effect(make_toy, nonlinear, baseline, kind, sae) -> None:
    toy = make_toy(nonlinear, sae=sae, baseline=baseline)
    edges, effects = edges_of(toy, kind), atp_of(toy, kind)[toy.problem.sites[0].path]
    close(edges.weight.sum(1), effects)
    close(edges.total, effects)
    close(edges.coverage[effects != 0], torch.ones(int((effects != 0).sum()), dtype=torch.float64))
    assert effects.abs().max() > 1e-3


def test_edges_out_of_an_error_node_are_there(make_toy, nonlinear) -> None:
    weight = edges_of(make_toy(nonlinear)).weight
    assert weight[-1, :-1].abs().sum() > 1e-3
    assert weight[-1, -1].abs() > 1e-6
    assert weight[:-1, -1].abs().sum() > 1e-3


class Block(nn.Module):
    """A residual block with two branches, the second reading what the first wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.before, self.after = nn.Identity(), nn.Identity()
        self.mix, self.up, self.down = nn.Linear(9, 9), nn.Linear(6, 8), nn.Linear(8, 6)
        self.attention, self.mlp, self.out = nn.Identity(), nn.Identity(), nn.Linear(6, 4)

    def forward(self, images_bchw: Tensor) -> Tensor:
        x = self.before(self.embed(images_bchw).flatten(2).transpose(1, 2))
        x = x + self.attention(self.mix(x.tanh().transpose(1, 2)).transpose(1, 2))
        x = x + self.mlp(self.down(nn.functional.gelu(self.up(x))))
        return self.out(self.after(x).square().mean(1))


PLACES = ("before", "attention", "mlp", "after")


@pytest.fixture
def branches(make_toy, make_sae, as_model):
    """The residual block with the neurons of four sites, and the SAE features of them."""
    toy = make_toy("tokens")
    sites = tuple(Site(path, "btd", 6, 9, (3, 3)) for path in PLACES)
    toy.problem = Problem(as_model(Block().double()), sites, logit)
    toy.saes = {path: make_sae("relu", x_bpd) for path, x_bpd in toy.clean()[1].items()}
    toy.__post_init__()
    return toy


def test_edges_over_parallel_branches_add_up_without_counting_twice(branches, kind) -> None:
    effects = atp_of(branches, kind)
    links = all_pairs(branches.problem.sites)
    assert len(links) == 6
    told = {path: torch.zeros_like(effects[path]) for path in PLACES[:-1]}
    twice = torch.zeros_like(effects["before"])
    for link in links:
        told[link.source.path] += edges_of(branches, kind, link=link).weight.sum(1)
        if link.source.path == "before":
            twice += edges_of(branches, kind, link=Link(link.source, link.target)).weight.sum(1)
    for path in PLACES[:-1]:
        close(told[path], effects[path])
    assert (twice - effects["before"]).abs().max() > 0.1 * effects["before"].abs().max()


def test_exact_edges_past_a_branch_hold_it(branches, kind) -> None:
    link = all_pairs(branches.problem.sites)[2]
    assert [site.path for site in (link.source, *link.stopped, link.target)] == list(PLACES)
    # Past both branches the way is the skip connection alone, which is linear; features at its end are not.
    exact, linear = (edges_of(branches, "neuron", method, link=link) for method in (EdgeMethod.exact, EdgeMethod.vjp))
    close(exact.weight, linear.weight)
    features = edges_of(branches, "feature", EdgeMethod.exact, link=link)
    x_bpd = branches.clean()[1]
    first, last = branches.node_sets["feature"]["before"], branches.saes["after"]
    gradient = site_gradients(branches.problem, branches.all_images, branches.targets_n)["after"] @ last.dictionary.T
    codes = branches.saes["before"].encode(x_bpd["before"])
    removed = (codes - first.features)[..., 5, None] * branches.saes["before"].dictionary[5]
    lost = (last.encode(x_bpd["after"]) - last.encode(x_bpd["after"] - removed)) * gradient
    close(features.weight[5, :-1], lost.sum(1).mean(0))


# A7, A8: against autograd at single positions, and against forward mode.


def test_one_pass_a_node_is_the_sum_over_its_positions_one_by_one(make_toy, nonlinear, kind) -> None:
    toy = make_toy(nonlinear, sae="topk", n=2)
    first, second = (site.path for site in toy.problem.sites)
    vectors = toy.clean()[1]
    gradient = left(toy, kind, site_gradients(toy.problem, toy.all_images, toy.targets_n)[second])
    x_bpd, between = vectors[first].clone(), Between(toy)
    delta_ubpd = deltas(toy, kind, x_bpd)
    expected = torch.zeros(len(delta_ubpd), gradient.shape[-1], dtype=torch.float64)
    for image in range(2):
        leaf = x_bpd[image : image + 1].clone().requires_grad_()
        rows = downstream(toy, kind, between(leaf))
        for position, d in product(range(rows.shape[1]), range(rows.shape[2])):
            row = torch.autograd.grad(rows[0, position, d], leaf, retain_graph=True)[0][0]
            expected[:, d] += gradient[image, position, d] * (delta_ubpd[:, image] * row).sum((1, 2)) / 2
    close(edges_of(toy, kind).weight, by_node(toy, kind, expected))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_edges_into_a_node_are_its_change_in_forward_mode(make_toy, nonlinear, baseline, kind) -> None:
    toy = make_toy(nonlinear, baseline=baseline)
    first, second = (site.path for site in toy.problem.sites)
    x_bpd, between = toy.clean()[1][first].clone(), Between(toy)
    gradient = left(toy, kind, site_gradients(toy.problem, toy.all_images, toy.targets_n)[second])
    change = x_bpd - toy.node_sets[kind][first].state
    _, moved = torch.func.jvp(lambda x: downstream(toy, kind, between(x)), (x_bpd,), (change,))
    close(edges_of(toy, kind).weight.sum(0), by_node(toy, kind, (gradient * moved).sum(1)).mean(0))


# A9: exact edges.


def test_exact_edges_are_ablations_one_by_one(make_toy, nonlinear, baseline, kind) -> None:
    toy = make_toy(nonlinear, baseline=baseline)
    first, second = (site.path for site in toy.problem.sites)
    vectors, between = toy.clean()[1], Between(toy)
    x_bpd, y_bpd = vectors[first].clone(), vectors[second].clone()
    of_site = site_gradients(toy.problem, toy.all_images, toy.targets_n)[second]
    gradient, clean = left(toy, kind, of_site), downstream(toy, kind, y_bpd)
    edges = edges_of(toy, kind, EdgeMethod.exact)
    assert edges.n_vjps == 0
    for u, delta_bpd in enumerate(deltas(toy, kind, x_bpd)):
        y_moved = between(x_bpd - delta_bpd)
        lost = (gradient * (clean - downstream(toy, kind, y_moved))).sum(1).mean(0)
        close(edges.weight[u], by_node(toy, kind, lost))
        close(edges.total[u], (of_site * (y_bpd - y_moved)).sum((1, 2)).mean())
    close(edges.weight.sum(1), edges.total)


def test_exact_edges_see_features_that_switch_on(make_toy) -> None:
    toy = make_toy("relu", baseline=zero)
    linear, exact = edges_of(toy), edges_of(toy, method=EdgeMethod.exact)
    codes = toy.saes["3"].encode(toy.clean()[1]["3"])
    off = ~codes.any(1).any(0)
    assert off.any()
    assert not linear.weight[:, :-1][:, off].any()
    assert (linear.weight - exact.weight).abs().max() > 1e-4


def test_linear_between_the_sites_linear_edges_are_exact(make_toy, baseline) -> None:
    toy = make_toy("linear", baseline=baseline)
    close(edges_of(toy, "neuron").weight, edges_of(toy, "neuron", EdgeMethod.exact).weight)
    features = {path: torch.arange(11) for path in ("1", "3")}
    for sae in toy.saes.values():  # without a nonlinearity at the downstream site
        sae.activation = lambda pre: pre
    toy.__post_init__()
    linear, exact = (edges_of(toy, method=method, chosen=features) for method in (EdgeMethod.vjp, EdgeMethod.exact))
    close(linear.weight, exact.weight)
    close(linear.standard_error, exact.standard_error)


# The gradient at the target may be the mean that node effects were made of; and edges may follow a path themselves.


def test_mean_gradients_of_the_effects_weigh_the_downstream_nodes(make_toy, nonlinear) -> None:
    toy = make_toy(nonlinear)
    path = InputPath(mean_image(toy.images), RULES[Quadrature.midpoint](3))
    second = toy.problem.sites[1].path

    def mean_gradients(problem, images_bchw, targets_b):
        return input_path_gradients(problem, images_bchw, targets_b, path)

    edges = edges_of(toy, "neuron", gradients=mean_gradients)
    of_site = mean_gradients(toy.problem, toy.all_images, toy.targets_n)[second]
    x_bpd, between = toy.clean()[1][toy.problem.sites[0].path].clone().requires_grad_(), Between(toy)
    y_bpd = between(x_bpd)
    change = (x_bpd - toy.node_sets["neuron"][toy.problem.sites[0].path].state).detach()
    for d in range(y_bpd.shape[-1]):
        row = torch.autograd.grad((of_site[..., d] * y_bpd[..., d]).sum(), x_bpd, retain_graph=True)[0]
        close(edges.weight[:, d], (row * change).sum(1).mean(0))


def test_a_path_of_one_right_step_is_the_derivative_at_the_image(make_toy, nonlinear, kind) -> None:
    toy = make_toy(nonlinear)
    close(edges_of(toy, kind, path=RULES[Quadrature.right](1)).weight, edges_of(toy, kind).weight)


class Suffix(nn.Module):
    """From codes and error of the first site to the logits, codes of the second behind a module of their own."""

    def __init__(self, toy) -> None:
        super().__init__()
        self.first, self.second = toy.saes.values()
        self.between, self.codes, self.tail = Between(toy), nn.Identity(), copy.deepcopy(toy.module[4])

    def forward(self, codes: Tensor, error: Tensor) -> Tensor:
        y_bpd = self.between(self.first.decode(codes) + error)
        error_y = (y_bpd - self.second(y_bpd).reconstruction).detach()  # no way round the codes
        y_bpd = self.second.decode(self.codes(self.second.encode(y_bpd))) + error_y
        return self.tail(y_bpd.transpose(1, 2).unflatten(2, (3, 3)).relu())


@pytest.mark.parametrize("n_steps", [2, 8])
def test_edges_along_a_path_are_captums_neuron_conductance(make_toy, baseline, n_steps) -> None:
    toy = make_toy("before_relu", baseline=baseline, n=2)
    suffix, nodes = Suffix(toy), toy.node_sets["feature"]["0"]
    x_bpd = toy.clean()[1]["0"].clone()
    codes = suffix.first.encode(x_bpd)
    error = x_bpd - suffix.first.decode(codes)
    found = edges_of(toy, path=RULES[Quadrature.midpoint](n_steps)).weight
    start = tuple(at.expand_as(like).contiguous() for at, like in ((nodes.features, codes), (nodes.error, error)))
    conductance = NeuronConductance(suffix, suffix.codes)
    for k in (2, 5, 9):
        expected = torch.zeros(12, dtype=torch.float64)
        for position in range(9):
            of_codes, of_error = conductance.attribute(
                (codes, error), (position, k), start, toy.targets_n, n_steps=n_steps, method="riemann_middle"
            )
            expected[:-1] += of_codes.detach().sum(1).mean(0)
            expected[-1] += of_error.detach().sum((1, 2)).mean()
        close(found[:, k], expected)


# A11: what must not matter, and what must be zero.


@pytest.mark.parametrize("method", [EdgeMethod.vjp, EdgeMethod.exact])
def test_batches_and_chunks_do_not_matter(make_toy, nonlinear, kind, method) -> None:
    toy = make_toy(nonlinear)
    expected = edges_of(toy, kind, method)
    for size, n_at_once in ((1, 1), (7, 8), (4, 1000)):
        found = edges_of(toy, kind, method, images=toy.all_images.split(size), n_at_once=n_at_once)
        close(found.weight, expected.weight)
        close(found.standard_error, expected.standard_error, atol=1e-9)
        close(found.total, expected.total)


@pytest.mark.parametrize("method", [EdgeMethod.vjp, EdgeMethod.exact])
def test_order_of_images_and_nodes_does_not_matter(make_toy, kind, method) -> None:
    toy = make_toy("relu", sae="topk")
    expected = edges_of(toy, kind, method)
    order, places = torch.randperm(7), {"1": torch.randperm(len(expected.sources)), "3": torch.tensor([6, 2, 4])}
    chosen = {"1": expected.sources[places["1"]], "3": expected.targets[places["3"]]}
    images, targets_n = toy.all_images[order].split(4), toy.targets_n[order]
    found = edges_of(toy, kind, method, chosen=chosen, images=images, targets_n=targets_n)
    close(found.weight, expected.weight[places["1"]][:, places["3"]])
    close(found.total, expected.total[places["1"]])
    # Nothing of one call reaches the next.
    assert torch.equal(edges_of(toy, kind, method).weight, expected.weight)


def test_relabelled_features_are_the_same_nodes(make_toy) -> None:
    toy = make_toy("relu")
    expected = edges_of(toy).weight
    order, sae = torch.randperm(11), copy.deepcopy(toy.saes["3"])
    for name in ("W_enc", "b_enc", "W_dec"):
        getattr(sae, name).data = getattr(sae, name).data[order]
    toy.saes = {**toy.saes, "3": sae}
    toy.__post_init__()
    close(edges_of(toy).weight, expected[:, torch.cat([order, torch.tensor([11])])])


@pytest.mark.parametrize("method", [EdgeMethod.vjp, EdgeMethod.exact])
def test_dead_features_have_no_edges_and_cost_no_pass(make_toy, baseline, method) -> None:
    toy = make_toy("relu", sae="topk", baseline=baseline)
    edges = edges_of(toy, method=method)
    assert not edges.weight[:2].any()
    assert not edges.total[:2].any()
    if method is EdgeMethod.vjp:
        assert not edges.weight[:, :2].any()
    else:
        assert edges.n_forwards <= 3 * (12 - 2)


def test_standard_errors_are_those_of_single_images(make_toy, kind) -> None:
    toy = make_toy("relu", n=4)
    edges = edges_of(toy, kind)
    alone = torch.stack(
        [
            edges_of(toy, kind, images=[toy.all_images[i : i + 1]], targets_n=toy.targets_n[i : i + 1]).weight
            for i in range(4)
        ]
    )
    close(edges.weight, alone.mean(0))
    close(edges.standard_error, alone.std(0) / 2, atol=1e-9)
    assert edges_of(toy, kind, images=[toy.all_images[:1]]).standard_error.isnan().all()


# A12: edges that are known.


class PlantedChain(nn.Module):
    """Hidden directions 1 and 4 of six feed directions 0 and 3 of the next site; the logit reads these two."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.first, self.second = nn.Linear(12, 6), nn.Identity(), nn.Identity()
        self.of_first, self.of_second = (nn.Parameter(torch.linalg.qr(torch.randn(6, 6).double()).Q) for _ in range(2))

    def forward(self, images_bchw: Tensor) -> Tensor:
        patches = nn.functional.unfold(images_bchw, 3, stride=3).transpose(1, 2)[..., :12]
        a = self.first(self.read(patches).relu() @ self.of_first) @ self.of_first.T
        b = torch.stack([a[..., 1] * a[..., 4], a[..., 2], a[..., 5], a[..., 4] ** 2, a[..., 0], a[..., 3]], -1)
        b = self.second(b.relu() @ self.of_second) @ self.of_second.T
        return torch.stack([(b[..., 0] + b[..., 3]).mean(1), torch.zeros(len(b)).to(b)], 1)


@pytest.mark.parametrize("method", [EdgeMethod.vjp, EdgeMethod.exact])
def test_planted_edges_are_found_and_no_others(make_toy, make_sae, as_model, baseline, method) -> None:
    toy, network = make_toy("relu", baseline=baseline), PlantedChain().double()
    sites = tuple(Site(path, "btd", 6, 4, (2, 2)) for path in ("first", "second"))
    toy.problem, toy.targets_n = Problem(as_model(network, 2), sites, logit), torch.zeros(7, dtype=torch.int64)
    toy.saes = {}
    for path, directions in (("first", network.of_first), ("second", network.of_second)):
        sae = make_sae("relu", torch.randn(50, 6).double(), n_features=6)
        for name in ("W_enc", "W_dec"):
            setattr(sae, name, nn.Parameter(directions.detach().clone(), requires_grad=False))
        sae.b_enc, sae.b_dec = (nn.Parameter(torch.zeros(6).double(), requires_grad=False) for _ in range(2))
        sae.scale.fill_(1)
        toy.saes[path] = sae
    toy.__post_init__()
    size = edges_of(toy, method=method).weight.abs()
    planted = torch.zeros_like(size, dtype=torch.bool)
    planted[[1, 4, 4], [0, 0, 3]] = True
    assert size[planted].min() > 1e-3
    assert size[~planted].max() < 1e-12


# How many passes.


def test_passes_are_at_most_one_a_downstream_node_and_auto_takes_the_fewer(make_toy) -> None:
    toy = make_toy("relu", sae="topk")
    few, many = torch.tensor([3, ERROR]), torch.arange(2, 11)
    edges = edges_of(toy, method=EdgeMethod.auto, chosen={"1": many, "3": few})
    assert edges.method is EdgeMethod.vjp
    assert edges.n_forwards == 0
    assert 3 <= edges.n_vjps <= 3 * (2 + 1)
    edges = edges_of(toy, method=EdgeMethod.auto, chosen={"1": few, "3": many})
    assert edges.method is EdgeMethod.exact
    assert edges.n_vjps == 0
    assert edges.n_forwards <= 3 * 2
    assert choose(EdgeMethod.auto, 5, 5) is EdgeMethod.vjp
    assert choose(EdgeMethod.exact, 9, 1) is EdgeMethod.exact


def test_images_share_passes_so_that_the_busiest_one_tells_their_number(make_toy) -> None:
    toy = make_toy("relu", sae="topk", n=6)
    toy.saes["3"].config.k = 1
    whole = edges_of(toy, images=[toy.all_images])
    codes = toy.saes["3"].encode(toy.clean()[1]["3"])
    active_bf = codes.any(1)
    assert whole.n_vjps == int(active_bf.sum(1).max()) + 2  # the error, and the whole site
    assert whole.n_vjps < int(active_bf.any(0).sum()) + 2


# A13: nothing is left behind.


@pytest.mark.parametrize("method", [EdgeMethod.vjp, EdgeMethod.exact])
def test_the_network_is_left_as_it_was(make_toy, method) -> None:
    toy = make_toy("tokens")
    toy.module.out.requires_grad_(True), toy.module.mix.requires_grad_(True)
    before, random = {name: value.clone() for name, value in toy.module.state_dict().items()}, torch.get_rng_state()
    edges_of(toy, method=method)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(not module._forward_hooks for module in toy.module.modules())
    assert {name for name, p in toy.module.named_parameters() if p.requires_grad} == {
        f"{module}.{name}" for module in ("out", "mix") for name in ("weight", "bias")
    }
    assert all(p.grad is None for p in toy.module.parameters())
    assert all(p.grad is None and not p.requires_grad for sae in toy.saes.values() for p in sae.parameters())
    assert not any(module.training for module in toy.module.modules())
    assert all(torch.equal(value, before[name]) for name, value in toy.module.state_dict().items())


@pytest.mark.parametrize("method", [EdgeMethod.vjp, EdgeMethod.exact])
def test_works_inside_no_grad_and_inference_mode(make_toy, nonlinear, method) -> None:
    toy = make_toy(nonlinear)
    expected = edges_of(toy, method=method)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            found = edges_of(toy, method=method)
        assert torch.equal(found.weight, expected.weight)


def test_float32_agrees_with_float64(make_toy, kind) -> None:
    toy = make_toy("relu")
    exact, linear = (edges_of(toy, kind, method).weight for method in (EdgeMethod.exact, EdgeMethod.vjp))
    single = copy.copy(toy)
    single.problem = replace(toy.problem, model=replace(toy.problem.model, module=copy.deepcopy(toy.module).float()))
    single.images = [batch.float() for batch in toy.images]
    single.saes = {path: copy.deepcopy(sae).float() for path, sae in toy.saes.items()}
    single.__post_init__()
    for method, expected in ((EdgeMethod.exact, exact), (EdgeMethod.vjp, linear)):
        found = edges_of(single, kind, method).weight
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


# What a user can get wrong.


def test_wrong_nodes_sites_and_numbers_are_told(make_toy) -> None:
    toy = make_toy("relu")
    both = {"1": torch.tensor([3]), "3": torch.tensor([4])}
    with pytest.raises(ConfigError, match=r"site 3 has no node 11; looked in 11 features, the error is -1"):
        edges_of(toy, chosen=both | {"3": torch.tensor([11])})
    with pytest.raises(ConfigError, match="site 1 has no node -1"):
        edges_of(toy, "neuron", chosen=both | {"1": torch.tensor([ERROR])})
    with pytest.raises(ConfigError, match="twice"):
        edges_of(toy, chosen=both | {"1": torch.tensor([3, 3])})
    with pytest.raises(ConfigError, match="site 1 of toy is reached before 3"):
        edges_of(toy, chosen=both, link=Link(*reversed(toy.problem.sites)))
    with pytest.raises(ConfigError, match="exact edges have no path"):
        edges_of(toy, chosen=both, method=EdgeMethod.exact, path=RULES[Quadrature.midpoint](2))
    stopped = Link(*toy.problem.sites, (Site("2", "bchw", 7, 9, (3, 3)),))
    with pytest.raises(ConfigError, match="not along a path"):
        edges_of(toy, chosen=both, link=stopped, path=RULES[Quadrature.midpoint](2))
    with pytest.raises(DataError, match="no images"):
        edges_of(toy, images=[], targets_n=toy.targets_n[:0])
    images = [batch.clone() for batch in toy.images]
    images[1][1] = torch.inf
    with pytest.raises(DataError, match="edges 1 → 3 are not finite"):
        edges_of(toy, images=images)


class Apart(nn.Module):
    """Two branches that do not meet before the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(108, 6), nn.Linear(108, 6), nn.Linear(6, 4)

    def forward(self, images_bchw: Tensor) -> Tensor:
        one, other = self.one(images_bchw.flatten(1)), self.other(images_bchw.flatten(1))
        return self.head(one * other)


def test_a_target_that_does_not_depend_on_the_source_is_told(as_model) -> None:
    sites = tuple(Site(path, "bd", 6, 1, (1, 1)) for path in ("one", "other"))
    problem = Problem(as_model(Apart()), sites, logit)
    images, chosen = [torch.randn(2, 3, 6, 6)], {"one": torch.arange(6), "other": torch.arange(6)}
    dictionaries = {"neuron": {site.path: Neurons.at(site, images[0]) for site in sites}}
    nodes = mean(problem, dictionaries, images)["neuron"]
    with pytest.raises(ConfigError, match="site other does not depend on one"):
        link_edges(problem, nodes, Link(*sites), chosen, images, torch.zeros(2, dtype=torch.int64))


def test_codes_without_a_derivative_are_refused_and_exact_edges_take_them(make_toy) -> None:
    toy = make_toy("relu")

    class Searched(type(toy.saes["3"])):
        def encode(self, x: Tensor) -> Tensor:
            return super().encode(x).detach()

    toy.saes["3"].__class__ = Searched
    with pytest.raises(ConfigError, match="codes of Searched have no derivative"):
        edges_of(toy)
    edges = edges_of(toy, method=EdgeMethod.exact)
    close(edges.weight.sum(1), edges.total)
    assert isinstance(toy.node_sets["feature"]["3"].dictionary, SaeFeatures)
