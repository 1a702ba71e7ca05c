#!/usr/bin/env python3
"""Generates the chart's README.md from README.md.gotmpl and the comments of values.yaml.

As in helm-docs, a comment that begins with `# --` describes the key below it, including its continuation lines. Every
value needs such a comment, or one on a map that contains it. With `--check`: fails if README.md is out of date. Needs
PyYAML.
"""

import json
import re
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[1] / "helm/llmproxy"


def described(text: str) -> dict[tuple[str, ...], str]:
    """The description of each key, by its path."""
    found, path, comment = {}, [], None
    for line in text.splitlines():
        if told := re.fullmatch(r"\s*# -- (.*)", line):
            comment = [told[1]]
        elif comment and (more := re.fullmatch(r"\s*# ?(.*)", line)):
            comment.append(more[1])
        elif key := re.match(r"( *)([A-Za-z]\w*):(\s|$)", line):
            del path[len(key[1]) // 2 :]
            path.append(key[2])
            if comment:
                found[tuple(path)] = " ".join(comment)
            comment = None
        else:
            comment = None
    return found


def rows(node, path, told, covered):
    """A row for each value with a comment. A value without one must be below one with a comment."""
    for key, value in node.items():
        here = (*path, key)
        below = covered or here in told
        if here in told:
            has_more = isinstance(value, dict) and any(len(p) > len(here) and p[: len(here)] == here for p in told)
            shown = "" if has_more else f"`{json.dumps(value)}`".replace("|", "\\|")
            yield f"| `{'.'.join(here)}` | {shown} | {told[here].replace('|', chr(92) + '|')} |"
        if isinstance(value, dict):
            yield from rows(value, here, told, below)
        elif not below:
            sys.exit(f"values.yaml: {'.'.join(here)} has no comment that begins with `# --`")


def made() -> str:
    text = (CHART / "values.yaml").read_text()
    told, values = described(text), yaml.safe_load(text)
    table = ["| value | default | description |", "|---|---|---|", *rows(values, (), told, False)]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    page = (CHART / "README.md.gotmpl").read_text()
    fill = {
        "values": "\n".join(table),
        "version": chart["version"],
        "appVersion": chart["appVersion"],
        "description": chart["description"],
    }
    for name, content in fill.items():
        page = page.replace("{{ " + name + " }}", content)
    return page


readme = CHART / "README.md"
if "--check" not in sys.argv:
    readme.write_text(made())
elif not readme.exists() or readme.read_text() != made():
    sys.exit(f"{readme} is out of date; run {sys.argv[0]}")
