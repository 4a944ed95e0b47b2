"""The controller of the pairing weight: it follows the sign of what is not yet identified, within its bounds, and moves only when it is due."""

import pytest
import torch

from pairing.adaptive import PairingController

START, TARGET = 0.05, 0.7
STEP = START * 256 / 100_000  # 64 images times 4 batches, of the 100,000 in which it moves by its initial value


def controller(start=START, target=TARGET, interval=4):
    return PairingController(torch.tensor(start), target, interval)


def record(control, *accuracies):
    for accuracy in accuracies:
        control.record(torch.tensor(accuracy))


def alone(sums):
    """The sum over ranks where there is one rank."""
    return sums


@pytest.mark.parametrize(("accuracy", "direction"), [(0.0, 1), (0.69, 1), (0.71, -1), (1.0, -1)])
def test_rises_while_latents_are_not_identified_and_falls_otherwise(accuracy, direction):
    control = controller()
    record(control, accuracy)
    control.update(4, 64, alone)
    assert control.weight.item() == pytest.approx(START + direction * STEP, rel=1e-6)


def test_doubles_in_a_hundred_kimg_whatever_the_batch_and_the_interval():
    for batch_size, interval in ((500, 4), (1000, 10)):
        control = controller(interval=interval)
        for batch in range(1, 100_000 // batch_size + 1):
            record(control, 0.1)
            control.update(batch, batch_size, alone)
        assert control.weight.item() == pytest.approx(2 * START, rel=1e-5)  # 50 additions or 10 in float32


@pytest.mark.parametrize(("accuracy", "end"), [(0.0, 10 * START), (1.0, 0.0)])
def test_stays_between_nothing_and_ten_times_the_initial_weight(accuracy, end):
    control = controller()
    for batch in (4, 8):
        record(control, accuracy)
        control.update(batch, 10**6, alone)
        assert control.weight.item() == pytest.approx(end)


def test_stays_between_the_intervals_while_accuracies_are_collected():
    control = controller(interval=4)
    for batch in (1, 2, 3):
        record(control, 0.8)
        control.update(batch, 64, alone)
        assert control.weight == torch.tensor(START)
    record(control, 0.0)
    # The mean over the four batches is 0.6 and under the target, although three of the four lie over it.
    control.update(4, 64, alone)
    assert control.weight > START


def test_starts_to_collect_anew_after_an_adjustment():
    control = controller()
    record(control, *[0.0] * 100)
    control.update(4, 64, alone)
    raised = control.weight.item()
    record(control, 1.0)
    control.update(8, 64, alone)
    assert control.weight.item() < raised


def test_stays_without_accuracies_and_at_the_target():
    control = controller(target=0.75)
    control.update(4, 64, alone)
    assert control.weight == torch.tensor(START)
    record(control, 0.5, 1.0)
    control.update(4, 64, alone)
    assert control.weight == torch.tensor(START)


def test_all_rounds_of_a_batch_count_alike():
    control = controller()
    record(control, 0.25, 0.5, 1.0)
    assert control.accuracies.tolist() == [1.75, 3]


def test_ranks_adjust_alike_by_their_common_mean():
    ranks = [controller(), controller()]
    record(ranks[0], *[1.0] * 4)
    record(ranks[1], 0.25)
    common = ranks[0].accuracies + ranks[1].accuracies
    for rank in ranks:
        rank.update(4, 64, lambda _: common.clone())
    # The common mean 0.85 lies over the target, though that of the second rank does not.
    assert ranks[0].weight == ranks[1].weight < START


def test_the_weight_is_moved_where_it_lies():
    """The loss and CUDA graphs hold the same tensor."""
    weight = torch.tensor(START)
    control = PairingController(weight, TARGET, 4)
    record(control, 0.0)
    control.update(4, 64, alone)
    assert control.weight is weight and weight > START


def test_state_resumes_in_the_middle_of_an_interval():
    control = controller()
    record(control, 0.0)
    control.update(4, 10**5, alone)
    record(control, 0.75, 1.0, 1.0, 1.0)
    state = control.state_dict()
    record(control, 0.0)
    resumed = controller()
    resumed.load_state_dict(state)
    record(resumed, 0.0)
    for each in (control, resumed):
        each.update(8, 64, alone)
    # From five times the initial weight on, by a step of the initial one: down, though the last round alone would have it rise.
    assert resumed.weight == control.weight and resumed.weight.item() == pytest.approx(5 * START - STEP)
    assert state["weight"].item() == pytest.approx(5 * START) and state["accuracies"].tolist() == [3.75, 4]


def test_accuracies_keep_their_graph_and_the_weight_gets_none():
    control = controller()
    control.record(torch.tensor(0.5, requires_grad=True) * 1)
    control.update(4, 64, alone)
    assert not control.weight.requires_grad and not control.accuracies.requires_grad
