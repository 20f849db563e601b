#!/usr/bin/env python3
"""Writes the dashboards as JSON, one file each; with --check says whether those that are there are current."""

import argparse
import json
import pathlib
import sys

from dashboards import ALL

HERE = pathlib.Path(__file__).parent / "json"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file is not current")
    check = parser.parse_args().check
    stale = []
    for name, make in ALL.items():
        path = HERE / f"{name}.json"
        text = json.dumps(make(), indent=1) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.name)
        if not check:
            HERE.mkdir(exist_ok=True)
            path.write_text(text)
    if check and stale:
        sys.exit(f"not current: {', '.join(stale)}; run deploy/grafana/build.py")
    print(f"{len(ALL)} dashboards, {len(stale)} written" if not check else f"{len(ALL)} dashboards are current")


if __name__ == "__main__":
    main()
