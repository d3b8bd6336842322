"""What `report` is made of, without results of a bench.

    python3 benches/test_report.py
"""

import unittest
import xml.etree.ElementTree as xml

from chart import (
    BLUE, Axis, Bar, Group, Line, bar_chart, coordinate, decades, duration, line_chart,
    linear_ticks, scale,
)
from common import Failed
from tables import (
    Results, figures_table, lanes_table, named_table, noise_table, source, table, with_tables,
)

FLOOR = {
    "case": "replay", "lane": "floor", "base": "floor", "min_ns": 987.6, "median_ns": 1890.4,
    "ratio": 1, "ratio_lower": 1, "ratio_upper": 1, "ratio_of_means": 1,
}
OURS = {
    "case": "replay", "lane": "ours", "base": "floor", "min_ns": 2795.6, "median_ns": 3158.6,
    "ratio": 1.664, "ratio_lower": 1.6154, "ratio_upper": 1.7306, "ratio_of_means": 1.6678,
}
MISSED = {
    "case": "replay", "figure": "replay: ours to floor", "at_most": 1.25, "median": 1.664,
    "lower": 1.6154, "upper": 1.7306, "is_met": False,
}


def results(**files):
    return Results(files.get)


class Numbers(unittest.TestCase):
    def test_a_time_has_the_unit_that_fits_it(self):
        shown = [duration(ns) for ns in (0, 597.3, 9999.4, 12_504, 559_000, 12_340_000)]
        self.assertEqual(shown, ["0 ns", "597 ns", "9,999 ns", "12.5 µs", "559 µs", "12.3 ms"])

    def test_coordinates_have_one_digit_at_the_most(self):
        self.assertEqual([coordinate(x) for x in (3, 2.04, 2.26, 100)], ["3", "2", "2.3", "100"])


class Scales(unittest.TestCase):
    def test_ticks_are_round_and_reach_the_most(self):
        self.assertEqual(linear_ticks(3.8), [0, 1, 2, 3, 4])
        self.assertEqual(linear_ticks(2636), [0, 500, 1000, 1500, 2000, 2500, 3000])
        self.assertEqual(linear_ticks(1.2), [0, 0.2, 0.4, 0.6, 0.8, 1, 1.2])
        for most in (0.07, 1, 5.0001, 6, 97, 1e6):
            ticks = linear_ticks(most)
            self.assertGreaterEqual(ticks[-1], most)
            self.assertLess(ticks[-2], most)
            self.assertLessEqual(len(ticks), 8)

    def test_decades_enclose_what_is_shown(self):
        self.assertEqual(decades(597, 568_000), [100, 1000, 10_000, 100_000, 1_000_000])
        self.assertEqual(decades(100, 1000), [100, 1000])

    def test_a_scale_reaches_from_the_first_tick_to_the_last(self):
        linear = scale(Axis("", [(0, "0"), (4, "4")], False), 100, 500)
        self.assertEqual([linear(0), linear(1), linear(4)], [100, 200, 500])
        # Upwards, as on paper.
        logarithmic = scale(Axis("", [(10, "10"), (1000, "1000")], True), 300, 100)
        self.assertEqual([logarithmic(10), logarithmic(100), logarithmic(1000)], [300, 200, 100])


class Tables(unittest.TestCase):
    def test_columns_are_aligned_as_their_heads_say(self):
        made = table(["<lane", ">ns", "<"], [["ours", "12", ""]])
        self.assertEqual(made, "| lane | ns | |\n| --- | --: | --- |\n| ours | 12 | |\n")

    def test_a_lane_has_its_ratio_unless_it_is_the_unit(self):
        rows = lanes_table({"floor": FLOOR, "ours": OURS}).splitlines()[2:]
        self.assertEqual(rows, [
            "| floor | 988 | 1,890 | | | |",
            "| ours | 2,796 | 3,159 | floor | **1.664** (1.615–1.731) | 1.668 |",
        ])

    def test_a_figure_that_misses_its_target_says_so(self):
        met = {**MISSED, "at_most": 2, "is_met": True}
        rows = figures_table([MISSED, met]).splitlines()[2:]
        self.assertEqual(rows, [
            "| replay: ours to floor | ≤ 1.25 | **1.664** (1.615–1.731) | **missed** |",
            "| replay: ours to floor | ≤ 2 | **1.664** (1.615–1.731) | met |",
        ])

    def test_noise_is_the_range_of_a_cases_second_instances(self):
        again = {**OURS, "lane": "ours again", "ratio": 1.01, "ratio_lower": 0.9,
                 "ratio_upper": 1.1}
        small = {**again, "case": "sizes", "lane": "ours again, 1 KB"}
        large = {**small, "lane": "ours again, 1 MB", "ratio": 0.95, "ratio_lower": 0.94,
                 "ratio_upper": 1.2}
        rows = noise_table([FLOOR, OURS, again, MISSED, small, large]).splitlines()[2:]
        self.assertEqual(rows, [
            "| replay | 1 | 1.010 | 1.010 | 0.900–1.100 |",
            "| sizes | 2 | 0.950 | 1.010 | 0.900–1.200 |",
        ])
        with self.assertRaisesRegex(Failed, "ours again"):
            noise_table([FLOOR, OURS, MISSED])

    def test_a_name_says_of_which_results_its_table_is_made(self):
        names = ("replay", "noise", "figures: in_process", "peers: replay", "figures: peers",
                 "sockets", "memory")
        self.assertEqual([source(name) for name in names], [
            "in_process", "in_process", "in_process", "peers", "peers", "sockets", "memory",
        ])

    def test_a_name_finds_its_results(self):
        peer = {**OURS, "lane": "peer"}
        slow = {**MISSED, "figure": "to the best peer"}
        again = {**OURS, "lane": "ours again"}
        found = results(in_process=[FLOOR, OURS, again, MISSED], peers=[peer, slow])
        lanes = lanes_table({"a": FLOOR, "b": OURS, "c": again})
        self.assertEqual(named_table("replay", found), lanes)
        self.assertEqual(named_table("peers: replay", found), lanes_table({"a": peer}))
        self.assertEqual(named_table("figures: in_process", found), figures_table([MISSED]))
        self.assertEqual(named_table("figures: peers", found), figures_table([slow]))
        self.assertEqual(named_table("noise", found), noise_table([again]))

    def test_an_unknown_name_and_missing_results_fail(self):
        found = results(in_process=[FLOOR])
        for name, why in (
            ("replays", "no case 'replays'"),
            ("peers: replay", "no results in peers.jsonl"),
            ("figures: peers", "no results in peers.jsonl"),
            ("figures: in_process", "no figure in in_process.jsonl"),
            ("figures: others", "no bench 'others'"),
            ("noise", "no case has a lane 'ours again'"),
            ("sockets", "benches/sockets/run"),
        ):
            with self.assertRaisesRegex(Failed, f"table '{name}'.*{why}"):
                named_table(name, found)


class Markers(unittest.TestCase):
    def test_what_stands_between_markers_is_replaced(self):
        begin, end = "<!-- table: {} -->\n", "<!-- end -->\n"
        document = f"a\n{begin.format('x, 1')}old\n{end}b\n{begin.format('y')}{end}"
        made = with_tables(document, lambda name: f"| {name} |\n\nmore\n")
        self.assertEqual(
            made,
            f"a\n{begin.format('x, 1')}\n| x, 1 |\n\nmore\n\n{end}"
            f"b\n{begin.format('y')}\n| y |\n\nmore\n\n{end}",
        )
        self.assertEqual(with_tables(made, lambda name: f"| {name} |\n\nmore\n"), made)

    def test_what_is_not_made_is_left_as_it_is(self):
        begin, end = "<!-- table: {} -->\n", "<!-- end -->\n"
        document = f"{begin.format('x')}old\n{end}{begin.format('y')}old\n{end}a\n"
        made = with_tables(document, lambda name: "new\n" if name == "y" else None)
        self.assertEqual(
            made, f"{begin.format('x')}old\n{end}{begin.format('y')}\nnew\n\n{end}a\n",
        )
        for broken in (begin, begin + "# head\n" + end):
            with self.assertRaises(Failed):
                with_tables(broken, lambda name: None)

    def test_markers_that_do_not_pair_fail(self):
        begin, end = "<!-- table: x -->\n", "<!-- end -->\n"
        for document in (
            begin, end, begin + begin + end, begin + "# head\n" + end, begin + end + end,
        ):
            with self.assertRaises(Failed):
                with_tables(document, lambda name: "")


class Charts(unittest.TestCase):
    def test_charts_are_well_formed_and_say_in_words_what_they_show(self):
        bars = [Bar("ours", 2, BLUE, "2 & more", 1.9, 2.1), Bar("floor", 1, BLUE, "1")]
        lines = [Line("ours", BLUE, [(1, 100), (10, 1000)], 1)]
        sizes = Axis("size", [(1, "1 B"), (10, "10 B")], True)
        times = Axis("time", [(100, "100 ns"), (1000, "1 µs")], True)
        for chart, told in (
            (bar_chart("A", ["b."], [Group("g", bars)], "x", str, 1), "g: ours 2 & more, floor 1."),
            (line_chart("A", ["b."], lines, sizes, times), "ours: 1 B 100 ns, 10 B 1,000 ns."),
        ):
            title, description = list(xml.fromstring(chart))[:2]
            self.assertEqual((title.text, description.text), ("A", f"b. {told}"))


if __name__ == "__main__":
    unittest.main()
