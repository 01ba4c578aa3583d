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
