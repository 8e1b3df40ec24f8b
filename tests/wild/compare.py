"""Compares what a suite said without unstale and with it: `compare.py postgres|django WITHOUT WITH [--all]`.

Prints each difference that `allowed.txt` does not explain, and fails if there is one. With --all it prints the explained ones, too.
"""

import difflib
import fnmatch
import pathlib
import re
import sys

# How psql lists a table's triggers: by lines that are ours alone.
OURS = re.compile(r"^\s+unstale_\d+_\w+ AFTER |^Triggers firing (always|on replica only):$")


def allowed():
    """The list: paragraphs of a reason (#) and entries, each a pattern of files and a regular expression of lines that differ."""
    entries, reason = [], ""
    for line in (pathlib.Path(__file__).parent / "allowed.txt").read_text().splitlines():
        if not line:
            reason = ""
        elif line.startswith("#"):
            reason = f"{reason} {line[1:].strip()}".strip()
        else:
            files, expression = line.split(maxsplit=1)
            assert reason, f"{line}: no reason above it"
            entries.append([files, re.compile(expression), reason, 0])
    return entries


def postgres(path):
    """A test's output, as lines that no wider column changes."""
    raw, lines = path.read_text(errors="replace").splitlines(), []
    for i, line in enumerate(raw):
        rest = [after for after in raw[i + 1 : i + 20] if not OURS.search(after)]
        if OURS.search(line) or (line == "Triggers:" and rest and not rest[0].startswith("    ")):
            continue
        line = re.sub(r"-{2,}", "--", re.sub(r"\s+", " ", line)).rstrip()
        lines.append(line.rstrip("+ ") if line.endswith(" +") else line)
    return lines


def django(path):
    """A piece's outcomes: test and outcome, in the order of their names."""
    return sorted(path.read_text().splitlines())


def main():
    suite, without, with_ = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    read, pattern = {"postgres": (postgres, "results/*.out"), "django": (django, "*.outcomes")}[suite]
    entries, failed, explained = allowed(), 0, 0
    for file in sorted(path.relative_to(without) for path in without.glob(pattern)):
        name = f"{suite}/{file.with_suffix('').name}"
        one, other = read(without / file), read(with_ / file) if (with_ / file).exists() else []
        shown = False
        for hunk in hunks(one, other):
            unexplained = False
            for line in hunk:
                if line[0] in "+-":
                    entry = next((e for e in entries if fnmatch.fnmatch(name, e[0]) and e[1].search(line)), None)
                    if entry:
                        entry[3] += 1
                        explained += 1
                    else:
                        unexplained = True
                        failed += 1
            if unexplained or "--all" in sys.argv:
                print(f"--- {name}" if not shown else "...", *hunk, sep="\n")
                shown = True
    print(f"{failed} differences, {explained} explained by tests/wild/allowed.txt")
    sys.exit(1 if failed else 0)


def hunks(one, other):
    hunk = []
    for line in difflib.unified_diff(one, other, n=3, lineterm=""):
        if line.startswith(("@@", "---", "+++")) and (line.startswith("@@") or not hunk):
            if hunk:
                yield hunk
            hunk = []
        else:
            hunk.append(line)
    if hunk:
        yield hunk


main()
