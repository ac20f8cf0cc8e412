"""What is sent next, and when, without threads or sockets."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Mapping

from replicator_client.answers import Fault, Problem
from replicator_client.board import Board, LazyRow, View
from replicator_client.errors import BadAnswer, Refused, ReplicatorError, Unreachable
from replicator_client.outbox import Outbox, Pending


class Clock:
    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def refused(code: str, status: int, *, epoch: int | None = None, path: str = "", after: float | None = None) -> Refused:
    faults = (Fault(path, "wrong"),) if path else ()
    return Refused(Problem(code, status, "no", epoch, faults), after)


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = Clock(1000)
        self.board = Board(self.clock)
        self.outbox = Outbox(jitter=lambda: 1.0)

    def put(self, layers: Mapping[int, LazyRow], *, full: bool = False, ranks: int = 2, experts: int = 2) -> None:
        self.clock.now += 10
        self.board.put(layers, ranks=ranks, logical_experts=experts, full=full)

    def view(self) -> View:
        view = self.board.view()
        assert view is not None
        return view

    def next(self) -> Pending | None:
        return self.outbox.next(self.view())

    def pending(self) -> Pending:
        pending = self.next()
        assert pending is not None
        return pending

    def take(self) -> Pending:
        pending = self.pending()
        self.outbox.taken(pending)
        return pending


class Order(Case):
    def test_nothing_yet(self) -> None:
        self.assertIsNone(self.board.view())

    def test_a_full_map_first_then_what_changed(self) -> None:
        self.put({0: [0, 1], 1: [0, 1]}, full=True)
        first = self.take()
        self.assertEqual((first.full, first.layers, first.epoch), (True, {0: [0, 1], 1: [0, 1]}, 1010))
        self.assertIsNone(self.next())
        self.put({1: [1, 0]})
        second = self.take()
        self.assertEqual((second.full, second.layers, second.epoch), (False, {1: [1, 0]}, 1020))
        self.assertIsNone(self.next())

    def test_of_a_layer_only_the_newest_is_sent(self) -> None:
        self.put({0: [0, 1], 1: [0, 1]}, full=True)
        self.take()
        self.put({0: [1, 0]})
        self.put({1: [1, 0]})
        self.put({0: [0, 0, 1, 1]})
        pending = self.take()
        self.assertEqual((pending.layers, pending.epoch), ({0: [0, 0, 1, 1], 1: [1, 0]}, 1040))

    def test_what_came_while_a_request_was_under_way_is_next(self) -> None:
        self.put({0: [0, 1], 1: [0, 1]}, full=True)
        under_way = self.pending()
        self.put({1: [1, 0]})
        self.outbox.taken(under_way)
        self.assertEqual(self.take().layers, {1: [1, 0]})

    def test_what_failed_goes_with_what_came_since(self) -> None:
        self.put({0: [0, 1], 1: [0, 1]}, full=True)
        self.take()
        self.put({0: [1, 0]})
        self.outbox.failed(self.pending(), Unreachable("gone"))
        self.put({1: [1, 0]})
        self.assertEqual(self.take().layers, {0: [1, 0], 1: [1, 0]})

    def test_another_number_of_ranks_forgets_the_layers_of_before(self) -> None:
        # Four slots would do for four ranks, too, but they were those of two.
        self.put({0: [0, 1, 0, 1], 1: [0, 1, 0, 1]}, full=True)
        self.take()
        self.put({1: [0, 1, 1, 0]}, ranks=4)
        pending = self.take()
        self.assertEqual((pending.full, pending.layers), (True, {1: [0, 1, 1, 0]}))
        self.assertEqual(self.view().ranks, 4)

    def test_a_full_map_takes_the_place_of_layers_that_it_has_not(self) -> None:
        self.put({0: [0, 1], 1: [0, 1]}, full=True)
        self.take()
        self.put({1: [1, 0]}, full=True)
        pending = self.take()
        self.assertEqual((pending.full, pending.layers), (True, {1: [1, 0]}))

    def test_layers_without_an_expert_wait_until_they_are_complete(self) -> None:
        self.put({0: [0, 1], 1: [0, -1], 2: [-1, -1]}, full=True)
        pending = self.take()
        self.assertEqual(pending.layers, {0: [0, 1]})
        self.assertEqual(sorted(pending.left_out), [1, 2])
        self.put({1: [0, 1, -1, -1]})
        self.assertEqual(self.take().layers, {1: [0, 1, -1, -1]})

    def test_where_nothing_is_complete_the_full_map_is_still_due(self) -> None:
        self.put({0: [0, -1]}, full=True)
        pending = self.pending()
        self.assertEqual(pending.layers, {})
        self.outbox.skipped(pending)
        self.assertIsNone(self.next())
        self.put({0: [0, 1]})
        self.assertTrue(self.pending().full)

    def test_rows_under_way_are_waited_for_once_they_are_sent(self) -> None:
        asked = []

        def row() -> list[int]:
            asked.append(1)
            return [0, 1]

        waiting: Callable[[], list[int]] = row
        self.put({0: waiting}, full=True)
        self.assertEqual(asked, [])
        self.assertEqual(self.take().layers, {0: [0, 1]})

    def test_numbers_that_no_layer_has(self) -> None:
        for number in (-1, 2048):
            with self.assertRaises(ValueError):
                self.put({number: [0, 1]})
        self.assertEqual(self.board.commit, 0)


class Epochs(Case):
    def test_they_ascend_though_the_clock_stands_or_goes_back(self) -> None:
        epochs = []
        for now in (1000, 1000, 500, 2000):
            self.clock.now = now - 10
            self.put({0: [0, 1]})
            epochs.append(self.take().epoch)
        self.assertEqual(epochs, [1000, 1001, 1002, 2000])

    def test_a_stale_one_goes_on_from_the_one_in_force(self) -> None:
        self.put({0: [0, 1]}, full=True)
        self.assertEqual(self.outbox.failed(self.pending(), refused("stale-epoch", 409, epoch=5000)), 0.0)
        self.assertEqual(self.take().epoch, 5001)
        self.put({0: [1, 0]})
        self.assertEqual(self.take().epoch, 5002)
        self.clock.now = 9000
        self.put({0: [1, 0]})
        self.assertEqual(self.take().epoch, 9010)

    def test_endless_stale_ones_are_answered_slowly(self) -> None:
        self.put({0: [0, 1]}, full=True)
        stale = [self.outbox.failed(self.pending(), refused("stale-epoch", 409, epoch=5000 + i)) for i in range(5)]
        self.assertEqual(stale, [0.0, 0.0, 0.0, 0.5, 1.0])


class Failures(Case):
    def test_delays_double_up_to_a_limit_and_start_anew_after_success(self) -> None:
        self.put({0: [0, 1]}, full=True)
        errors: list[ReplicatorError] = [Unreachable("gone"), refused("ending", 503), refused("storage", 507)]
        errors += [refused("internal", 500), BadAnswer("no JSON"), refused("timeout", 408), Unreachable("gone")] * 4
        delays = [self.outbox.failed(self.pending(), error) for error in errors]
        self.assertEqual(delays[:8], [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0])
        self.assertEqual(set(delays[8:]), {30.0})
        self.take()
        self.put({0: [1, 0]})
        self.assertEqual(self.outbox.failed(self.pending(), Unreachable("gone")), 0.5)

    def test_jitter_takes_up_to_half(self) -> None:
        self.outbox = Outbox(jitter=lambda: 0.0)
        self.put({0: [0, 1]}, full=True)
        self.assertEqual(self.outbox.failed(self.pending(), Unreachable("gone")), 0.25)

    def test_retry_after_is_kept(self) -> None:
        self.put({0: [0, 1]}, full=True)
        self.assertEqual(self.outbox.failed(self.pending(), refused("no-room", 503, after=17.0)), 18.0)
        self.assertEqual(self.outbox.failed(self.pending(), refused("no-room", 503, after=1e9)), 301.0)

    def test_refusals_that_last_are_tried_again_slowly(self) -> None:
        self.put({0: [0, 1]}, full=True)
        for error in (
            refused("configured", 409),
            refused("unauthorized", 401),
            refused("invalid-map", 422, path="ranks[1].node"),
            refused("too-large", 413),
            refused("not-found", 404),
            refused("unknown-model", 404),
        ):
            self.assertEqual(self.outbox.failed(self.pending(), error), 72.0)
        self.assertTrue(self.take().full)

    def test_what_a_partial_map_cannot_do_a_full_one_does(self) -> None:
        for error in (
            refused("unknown-model", 404),
            refused("invalid-map", 422, path="ranks"),
            refused("invalid-map", 422, path="logical_experts"),
            refused("invalid-map", 422, path="first_table"),
        ):
            with self.subTest(str(error)):
                self.setUp()
                self.put({0: [0, 1], 1: [0, 1]}, full=True)
                self.take()
                self.put({1: [1, 0]})
                self.assertEqual(self.outbox.failed(self.pending(), error), 0.0)
                pending = self.take()
                self.assertEqual((pending.full, pending.layers), (True, {0: [0, 1], 1: [1, 0]}))
                self.put({1: [0, 1]})
                self.assertFalse(self.take().full)

    def test_a_fault_in_a_layer_is_no_reason_for_a_full_map(self) -> None:
        self.put({0: [0, 1]})
        error = refused("invalid-map", 422, path="layers.0.physical_to_logical_map[1]")
        self.assertEqual(self.outbox.failed(self.pending(), error), 72.0)
        self.assertFalse(self.pending().full)
