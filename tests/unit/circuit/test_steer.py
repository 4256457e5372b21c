"""A steered network is the network with codes put by hand; removing is what circuits do, adding a step on the atom."""

from __future__ import annotations

import math

import pytest
import torch

from mis_lab.circuit.baselines import zero
from mis_lab.circuit.splice import ablations
from mis_lab.circuit.steer import How, Steer, Steered, dose_response, steered, steered_each, strengths
from mis_lab.core.errors import ConfigError, DataError

FIRST, SECOND = "1", "3"


def codes_at(toy, path, kind="feature"):
    """(n, P, F) codes of the undisturbed network, and its vectors there."""
    x_bpd = toy.clean()[1][path]
    return toy.node_sets[kind][path].dictionary.encode(x_bpd), x_bpd


def by_hand(toy, path, codes_bpf, kind="feature"):
    """Logits with the site written anew from these codes, its own error and nothing else."""
    dictionary = toy.node_sets[kind][path].dictionary
    codes, x_bpd = codes_at(toy, path, kind)
    with torch.no_grad():
        if kind == "feature":
            error = x_bpd - toy.saes[path].decode(codes)
            put = toy.saes[path].decode(codes_bpf) + error
        else:
            put = codes_bpf
    assert put.shape[-1] == dictionary.offset.shape[0]
    return toy.problem.logits(toy.all_images, {path: lambda _x: put})


def active_feature(toy, path=FIRST, kind="feature"):
    """The feature that is not zero at most places, but not at all."""
    codes, _ = codes_at(toy, path, kind)
    share = (codes != 0).double().mean((0, 1))
    return int(torch.where(share < 1, share, -1).argmax())


@pytest.mark.parametrize("only_active", [False, True])
@pytest.mark.parametrize(("how", "value"), [(How.set, 1.7), (How.scale, -2.5), (How.remove, 0.0), (How.add, 0.8)])
@pytest.mark.parametrize("path", [FIRST, SECOND])
def test_logits_are_those_of_codes_put_by_hand(make_toy, kind, path, how, value, only_active):
    toy = make_toy(baseline=zero)
    feature = active_feature(toy, path, kind)
    codes, _ = codes_at(toy, path, kind)
    wanted = codes.clone()
    old = codes[..., feature]
    new = {How.set: torch.full_like(old, value), How.scale: value * old, How.remove: 0 * old, How.add: old + value}[how]
    wanted[..., feature] = torch.where(old != 0, new, old) if only_active else new
    found = steered(toy.problem, toy.node_sets[kind], [Steer(path, feature, how, value, only_active)], toy.images)
    expected = by_hand(toy, path, wanted, kind)
    assert (found.after_nc - found.before_nc).abs().max() > 1e-6
    torch.testing.assert_close(found.after_nc, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.before_nc, toy.problem.logits(toy.all_images), rtol=1e-11, atol=1e-12)


def test_to_remove_is_to_ablate_as_circuits_do(make_toy, nonlinear, kind, baseline):
    toy = make_toy(nonlinear, baseline=baseline)
    path = toy.problem.sites[0].path
    features = [2, 4]
    kept = toy.kept(kind)
    kept[path][features] = False
    expected = toy.problem.logits(toy.all_images, ablations(toy.node_sets[kind], kept))
    change = [Steer(path, feature, How.remove) for feature in features]
    found = steered(toy.problem, toy.node_sets[kind], change, toy.images)
    torch.testing.assert_close(found.after_nc, expected, rtol=1e-11, atol=1e-12)


def test_removed_nodes_become_what_they_are_on_the_partner(make_toy, kind):
    toy = make_toy()
    places = [3, 4, 5, 0, 1, 2, 6]
    codes, _ = codes_at(toy, FIRST, kind)
    wanted = codes.clone()
    wanted[..., 3] = codes[places][..., 3]
    found = steered(toy.problem, toy.patched(kind, places), [Steer(FIRST, 3, How.remove)], toy.images)
    torch.testing.assert_close(found.after_nc, by_hand(toy, FIRST, wanted, kind), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scale_of_one_and_a_step_of_zero_change_nothing_to_the_bit(make_toy, kind, dtype):
    toy = make_toy(dtype=dtype)
    for change in (
        [Steer(FIRST, 3, How.scale, 1.0), Steer(SECOND, 4, How.scale, 1.0)],
        [Steer(FIRST, 3, How.add, 0.0)],
    ):
        found = steered(toy.problem, toy.node_sets[kind], change, toy.images)
        assert torch.equal(found.after_nc, found.before_nc)
        assert not found.kl.any()
        assert not found.changed.any()


def test_to_add_moves_the_vectors_along_the_atom(make_toy):
    toy = make_toy()
    feature, step = active_feature(toy), 1.3
    atom_d = toy.saes[FIRST].dictionary[feature]
    expected = toy.problem.logits(toy.all_images, {FIRST: lambda x_bpd: x_bpd + step * atom_d})
    found = steered(toy.problem, toy.node_sets["feature"], [Steer(FIRST, feature, How.add, step)], toy.images)
    torch.testing.assert_close(found.after_nc, expected, rtol=1e-12, atol=1e-13)


def test_several_nodes_change_at_once_and_later_sites_see_earlier_changes(make_toy):
    toy = make_toy()
    one, two = (
        Steer(FIRST, active_feature(toy), How.scale, 3.0),
        Steer(SECOND, active_feature(toy, SECOND), How.scale, 2.0),
    )
    nodes = toy.node_sets["feature"]

    def moved(path, change):
        sae = toy.saes[path]
        return lambda x: x + (change.value - 1) * sae.encode(x)[..., [change.feature]] * sae.dictionary[change.feature]

    with torch.no_grad():
        put = {FIRST: moved(FIRST, one), SECOND: moved(SECOND, two)}
        expected = toy.problem.logits(toy.all_images, put)
    found = steered(toy.problem, nodes, [two, one], toy.images)
    torch.testing.assert_close(found.after_nc, expected, rtol=1e-11, atol=1e-12)
    alone = steered(toy.problem, nodes, [one], toy.images)
    assert (found.after_nc - alone.after_nc).abs().max() > 1e-6


def test_doses_are_the_single_changes(make_toy, kind):
    toy = make_toy()
    change, values = [Steer(FIRST, 3, How.set), Steer(FIRST, 4, How.set)], [0.0, 1.0, 4.0]
    doses = dose_response(toy.problem, toy.node_sets[kind], change, values, toy.images)
    for value, dose in zip(values, doses, strict=True):
        single = [Steer(FIRST, 3, How.set, value), Steer(FIRST, 4, How.set, value)]
        assert torch.equal(dose.after_nc, steered(toy.problem, toy.node_sets[kind], single, toy.images).after_nc)
    assert len({tuple(dose.after_nc.flatten().tolist()) for dose in doses}) == len(values)


def test_answers_do_not_depend_on_the_batches(make_toy):
    toy = make_toy()
    change = [Steer(FIRST, 3, How.set, 2.0)]
    some = steered(toy.problem, toy.node_sets["feature"], change, toy.images)
    whole = steered(toy.problem, toy.node_sets["feature"], change, [toy.all_images])
    torch.testing.assert_close(some.after_nc, whole.after_nc, rtol=1e-12, atol=1e-13)


def test_what_an_answer_tells_is_as_defined():
    before = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    after = torch.tensor([[0.0, 3.0, 0.0], [0.0, 2.0, 0.5]])
    found = Steered(before, after)

    def softmax(row):
        powers = [math.exp(value) for value in row]
        return [power / sum(powers) for power in powers]

    p, q = ([softmax(row) for row in logits.tolist()] for logits in (before, after))
    assert found.top_before.tolist() == [0, 1]
    assert found.top_after.tolist() == [1, 1]
    assert found.changed.tolist() == [True, False]
    own = [q[0][0] - p[0][0], q[1][1] - p[1][1]]
    assert found.probability_change().tolist() == pytest.approx(own, rel=1e-12)
    other = [q[0][1] - p[0][1], q[1][2] - p[1][2]]
    assert found.probability_change(torch.tensor([1, 2])).tolist() == pytest.approx(other, rel=1e-12)
    kl = [sum(a * math.log(a / b) for a, b in zip(one, two, strict=True)) for one, two in zip(p, q, strict=True)]
    assert found.kl.tolist() == pytest.approx(kl, rel=1e-12)


def test_strengths_are_the_largest_and_the_mean_active_code(make_toy, kind):
    toy = make_toy()
    codes, _ = codes_at(toy, FIRST, kind)
    found = strengths(toy.problem, toy.problem.sites[0], toy.node_sets[kind][FIRST].dictionary, toy.images)
    assert len(found) == codes.shape[-1]
    for feature, strength in enumerate(found):
        of_feature = codes[..., feature]
        active = of_feature[of_feature != 0]
        assert strength.largest == pytest.approx(float(of_feature.max()), abs=1e-12)
        assert strength.mean_if_active == pytest.approx(float(active.mean()) if len(active) else 0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([Steer("9", 0, How.remove)], "no nodes at site 9"),
        ([Steer(FIRST, 11, How.remove)], "no feature 11.*0 to 10"),
        ([Steer(FIRST, -1, How.remove)], "no feature -1"),
        ([Steer(FIRST, 1, How.set, math.nan)], "finite"),
        ([Steer(FIRST, 1, How.set, 1.0), Steer(FIRST, 1, How.remove)], "changed twice"),
    ],
)
def test_a_change_that_cannot_be_made_is_told(make_toy, change, message):
    toy = make_toy()
    with pytest.raises(ConfigError, match=message):
        steered_each(toy.problem, toy.node_sets["feature"], [change], toy.images)


def test_without_images_there_is_no_answer(make_toy):
    toy = make_toy()
    with pytest.raises(DataError, match="no images"):
        steered(toy.problem, toy.node_sets["feature"], [Steer(FIRST, 1, How.remove)], [])
    with pytest.raises(DataError, match="no images"):
        strengths(toy.problem, toy.problem.sites[0], toy.node_sets["feature"][FIRST].dictionary, [])
