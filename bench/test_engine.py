"""What bench/engine.py makes of figures: python3 -m unittest discover bench"""
import json, tempfile, unittest

import engine, table

LIMITS = dict(what="limits", bytes_per_second=100.0, flop_per_second=100.0)


def results(*rows):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for row in rows:
            file.write(json.dumps(dict(side="ours", dtype="bf16", threads=1) | row) + "\n")
        file.flush()
        return table.Results(file.name)


def decode(ours, cpp, batch=1):
    """The row of a decode whose limit is 10 tokens per second and sequence."""
    own = dict(what=f"decode {batch}", tokens_per_second=ours, bytes_per_step=10.0, experts_per_layer=2.0)
    peer = dict(side="llama.cpp", what=f"decode {batch}", tokens_per_second=cpp)
    (row,) = table.decode(results(LIMITS, own, *([peer] if cpp else [])), 1, "bf16", batch)
    return row


class Figures(unittest.TestCase):
    def test_the_best_of_the_rounds_counts(self):
        best = results(dict(what="a", seconds=2, tokens_per_second=2), dict(what="a", seconds=1, tokens_per_second=1))
        self.assertEqual((best.get("seconds", "ours", "a", "bf16", 1), best.get("tokens_per_second", "ours", "a", "bf16", 1)), (1, 2))

    def test_a_goal_that_cannot_be_asked_is_not_met(self):
        self.assertEqual(decode(9, None).met, "not measured")
        self.assertEqual(decode(50, None, batch=8).met, "no", "below its share of the limit whoever the peer is")

    def test_who_is_near_the_bandwidth_needs_to_be_reached_only(self):
        self.assertEqual([decode(ours, cpp).met for ours, cpp in ((8.3, 8), (8.8, 8), (9, 9), (8.9, 9))], ["no", "yes", "yes", "no"])

    def test_batches_are_held_to_the_bytes_and_to_the_peer(self):
        self.assertEqual([decode(ours, 50, batch=8).met for ours in (67, 69, 76)], ["no", "no", "yes"])

    def test_threads_without_a_core_each_compare_nothing(self):
        run, limits = dict(side="run", what="options", dtype="", threads=0, cores=2), LIMITS | dict(threads=2)
        own = dict(what="prefill 512", tokens_per_second=9.0, flop_per_token=10.0, threads=2)
        for first, second, met in ((1.0, 1.0, "busy"), (1.0, 0.1, "not measured"), (0.1, 1.0, "busy")):
            rounds = [own | dict(others=first), own | dict(others=second, tokens_per_second=9.5)]
            (row,) = table.rows(results(run, limits, *rounds))
            self.assertEqual(row.met, met, "what other work had while the best was measured counts")

    def test_a_verdict_is_doubted_by_what_could_change_it(self):
        run, limits = dict(side="run", what="options", dtype="", threads=0, cores=1), LIMITS
        own = dict(what="decode 1", bytes_per_step=10.0, experts_per_layer=2.0)
        peer = dict(side="llama.cpp", what="decode 1", tokens_per_second=5.0)
        cases = ((9.0, 1.0, 0.0, "yes"), (9.0, 0.0, 1.0, "busy"), (4.0, 1.0, 0.0, "busy"), (4.0, 0.0, 1.0, "no"))
        for rate, ours, theirs, met in cases:
            rows = table.rows(results(run, limits, own | dict(tokens_per_second=rate, others=ours), peer | dict(others=theirs)))
            self.assertEqual([row.met for row in rows], [met], (rate, ours, theirs))

    def test_round_trips_of_any_size(self):
        text = """| 12288 B out and back | p50 us | p90 us |
|---|---|---|
| raw TCP echo | 30 | 39 |
| dispatch | 114 | 162 |

| 786,432 B out and back | p50 us | p90 us |
|---|---|---|
| dispatch | 900.5 | 962 |
ratio of medians 3.8"""
        self.assertEqual(list(engine.round_trips(text)), [("echo", 12288, 30e-6), ("dispatch", 12288, 114e-6), ("dispatch", 786432, 900.5e-6)])


if __name__ == "__main__":
    unittest.main()
