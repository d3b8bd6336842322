"""Results as tables in Markdown, and the places in a document where they belong."""

import re

from common import Failed, read_results

# What writes each file of results.
MADE_BY = {
    "in_process": "cargo bench --bench in_process",
    "peers": "cargo run --release --ignore-rust-version --manifest-path benches/peers/Cargo.toml",
    "sockets": "benches/sockets/run",
    "sockets-shared": "WORKERS=2 benches/sockets/run",
    "memory": "benches/sockets/run memory",
    "instructions": "benches/instructions/run",
}
PEERS = "peers: "
# How the lanes begin that are a second instance of another.
AGAIN = "ours again"
FIGURES = "figures: "

BEGIN = re.compile(r"<!-- table: (.+) -->")
END = "<!-- end -->"


class Results:
    """What the benches wrote, read when it is asked for."""

    def __init__(self, read=read_results):
        self.read = read
        self.files = {}

    def lines(self, file):
        if file not in self.files:
            self.files[file] = self.read(file)
        if not self.files[file]:
            raise Failed(f"there are no results in {file}.jsonl; it is written by: {MADE_BY[file]}")
        return self.files[file]

    def lanes(self, file, case):
        """The lanes of a case by their names."""
        lines = self.lines(file)
        lanes = {line["lane"]: line for line in lines if line["case"] == case and "lane" in line}
        if not lanes:
            raise Failed(f"there is no case {case!r} in {file}.jsonl")
        return lanes

    def lane(self, file, case, lane):
        lanes = self.lanes(file, case)
        if lane not in lanes:
            raise Failed(f"the case {case!r} in {file}.jsonl has no lane {lane!r}")
        return lanes[lane]

    def figures(self, file):
        """Those that are held to targets."""
        figures = [line for line in self.lines(file) if "figure" in line]
        if not figures:
            raise Failed(f"there is no figure in {file}.jsonl")
        return figures


def whole(number):
    return f"{number:,.0f}"


def spread(median, lower, upper):
    return f"**{median:.3f}** ({lower:.3f}–{upper:.3f})"


def table(heads, rows):
    """Each head with how its column is aligned before it: `<` or `>`."""
    lines = [
        [head[1:] for head in heads],
        ["---" if head[0] == "<" else "--:" for head in heads],
        *rows,
    ]
    return "".join(
        "|" + "".join(f" {cell} |" if cell else " |" for cell in line) + "\n" for line in lines
    )


def lanes_table(lanes):
    heads = [
        "<lane", ">min ns", ">median ns", "<to", "<ratio (quartiles)", ">ratio of means",
    ]
    rows = []
    for lane in lanes.values():
        row = [lane["lane"], whole(lane["min_ns"]), whole(lane["median_ns"])]
        if lane["base"] == lane["lane"]:
            row += ["", "", ""]
        else:
            ratio = spread(lane["ratio"], lane["ratio_lower"], lane["ratio_upper"])
            row += [lane["base"], ratio, f"{lane['ratio_of_means']:.3f}"]
        rows.append(row)
    return table(heads, rows)


def figures_table(figures):
    rows = [
        [
            figure["figure"],
            f"≤ {figure['at_most']:g}",
            spread(figure["median"], figure["lower"], figure["upper"]),
            "met" if figure["is_met"] else "**missed**",
        ]
        for figure in figures
    ]
    return table(["<figure", ">target", "<median (quartiles)", "<"], rows)


def noise_table(lines):
    """How far from 1 the ratios of the second instances are, by case."""
    again = {}
    for line in lines:
        if line.get("lane", "").startswith(AGAIN):
            again.setdefault(line["case"], []).append(line)
    if not again:
        raise Failed(f"no case has a lane {AGAIN!r}")
    rows = []
    for case, lanes in again.items():
        medians = [lane["ratio"] for lane in lanes]
        lower = min(lane["ratio_lower"] for lane in lanes)
        upper = max(lane["ratio_upper"] for lane in lanes)
        rows.append([
            case, str(len(lanes)), f"{min(medians):.3f}", f"{max(medians):.3f}",
            f"{lower:.3f}–{upper:.3f}",
        ])
    heads = ["<case", ">lanes", ">least median", ">greatest median", "<quartiles within"]
    return table(heads, rows)


def sockets_table(lines):
    values = ["requests/s", "cpu", "p50", "p99", "p99.9"]
    rows = []
    for line in lines:
        row = [line["case"]]
        for value in values:
            shown = whole(line["median"][value])
            if line["case"] != "bare":
                shown += f" (**{line['to_bare'][value]:.2f}**)"
            row.append(shown)
        rows.append([*row, f"{line['median']['busy']:.0%}"])
    return table(["<case", *(f">{value}" for value in values), ">busy"], rows) + (
        f"\nMedians of {lines[0]['rounds']} rounds of {lines[0]['seconds']} s, with "
        f"{workers(lines[0])}; in brackets the ratio to bare in the same round.\n"
        "`cpu` is processor time of the server for a request; it and the latencies are in "
        "microseconds.\n"
    )


def memory_table(lines):
    mib = 2**20
    rows = [
        [
            line["stack"],
            whole(line["requests/s"]),
            f"{line['refused']:.1%}",
            f"{line['idle'] / mib:.1f}",
            f"{line['most_over_idle'] / mib:.1f}",
            f"**{line['most_over_idle'] / line['budget']:.2f}**",
            f"{line['late_over_idle'] / line['budget']:.2f}",
        ]
        for line in lines
    ]
    heads = [
        "<store", ">requests/s", ">refused", ">idle MiB", ">at most, MiB over idle",
        ">to the budget", ">in the last quarter",
    ]
    return table(heads, rows) + (
        f"\nA budget of {lines[0]['budget'] // mib} MiB, fresh keys for {lines[0]['seconds']} s, "
        f"{workers(lines[0])}.\n"
    )


def workers(line):
    return "1 worker" if line["workers"] == 1 else f"{line['workers']} workers"


def instructions_table(lines):
    rows = [
        [
            line["path"],
            whole(line["instructions"]),
            whole(line["over_bare"]) if line["over_bare"] else "",
            f"**{line['to_bare']:.2f}**" if line["over_bare"] else "",
        ]
        for line in lines
    ]
    return table(["<path", ">instructions", ">over bare", ">to bare"], rows)


OF_FILE = {
    "sockets": sockets_table,
    "sockets-shared": sockets_table,
    "memory": memory_table,
    "instructions": instructions_table,
}


def source(name):
    """The results that a table is made of."""
    if name in OF_FILE:
        return name
    if name.startswith(FIGURES):
        return name[len(FIGURES):]
    return "peers" if name.startswith(PEERS) else "in_process"


def named_table(name, results):
    """The table that a marker asks for: by a word, or by a case."""
    file = source(name)
    try:
        if file not in MADE_BY:
            raise Failed(f"there is no bench {file!r}")
        if name in OF_FILE:
            return OF_FILE[name](results.lines(file))
        if name == "noise":
            return noise_table(results.lines(file))
        if name.startswith(FIGURES):
            return figures_table(results.figures(file))
        return lanes_table(results.lanes(file, name.removeprefix(PEERS)))
    except Failed as failed:
        raise Failed(f"table {name!r}: {failed}")


def with_tables(document, render):
    """The document with what `render` makes of each name between the markers, or with what stands
    there when it makes `None`."""
    lines, open_name, kept = [], None, False
    for line in document.splitlines():
        begins = BEGIN.fullmatch(line)
        if open_name and (begins or line.startswith("#")):
            raise Failed(f"table {open_name!r} has no {END}")
        if begins:
            open_name = begins[1]
            made = render(open_name)
            kept = made is None
            lines += [line] if kept else [line, "", *made.splitlines(), ""]
        elif line == END:
            if not open_name:
                raise Failed(f"there is an {END} where no table began")
            open_name = None
            lines.append(line)
        elif kept or not open_name:
            lines.append(line)
    if open_name:
        raise Failed(f"table {open_name!r} has no {END}")
    return "\n".join(lines) + "\n"
