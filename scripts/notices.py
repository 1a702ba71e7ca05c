#!/usr/bin/env python3
"""Prints the licences of everything that is linked into the binary, each text once."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LICENCE = re.compile(r"(licen[sc]e|copying|copyright|notice|unlicense)", re.IGNORECASE)

BESIDE = """\
Lua 5.4, compiled into it, is under the MIT licence: Copyright (C) 1994-2025 Lua.org, PUC-Rio
(https://www.lua.org/license.html). SQLite is in the public domain.

The static binary also holds the GNU C Library, which is under the LGPL 2.1 or later
(https://www.gnu.org/licenses/lgpl-2.1.html); its source is Debian's package glibc. The source of
LLMProxy and of all that is named below is public: with scripts/dist.sh the binary can be linked
anew, also with a changed C library.
"""


def cargo(*arguments):
    """The output of cargo."""
    command = [os.environ.get("CARGO", "cargo"), *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def linked():
    """The crates in the binary for this machine: (name, version), without macros and build scripts."""
    tree = ("tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}")
    crates = {tuple(line.split()[:2]) for line in cargo(*tree).splitlines() if line}
    return {(name, version.removeprefix("v")) for name, version in crates} - {("llmproxy", own_version())}


def own_version():
    """The version of LLMProxy."""
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]


def texts(package):
    """The licence files of a crate, also those of the C libraries that it carries."""
    folder = pathlib.Path(package["manifest_path"]).parent
    files = [f for f in sorted(folder.rglob("*")) if LICENCE.match(f.name) and f.suffix in ("", ".md", ".txt", ".rst")]
    # Where one may choose, the Apache licence is not chosen: the others are shorter.
    shorter = [f for f in files if "apache" not in f.name.lower()]
    if " OR " in (package["license"] or "") and shorter:
        files = shorter
    for file in filter(pathlib.Path.is_file, files):
        text = file.read_text(errors="replace").strip()
        if len(text) > 100:  # Not a line that names a licence.
            yield text


def main():
    """Prints the list, then the texts."""
    wanted = linked()
    packages = json.loads(cargo("metadata", "--locked", "--format-version", "1"))["packages"]
    found = sorted((p for p in packages if (p["name"], p["version"]) in wanted), key=lambda p: p["name"])
    if len(found) != len(wanted):
        sys.exit("notices: cargo tree and cargo metadata tell of different crates")
    users, wordings = collections.defaultdict(list), {}
    print("What is linked into llmproxy, and under which licences.\n")
    print(BESIDE)
    for package in found:
        print(f"{package['name']} {package['version']}: {package['license'] or 'see its text'}")
        for text in texts(package):
            # Texts that differ in their line breaks are one.
            users[wordings.setdefault(" ".join(text.split()), text)].append(package["name"])
    for text, names in users.items():
        print(f"\n{'=' * 80}\n{', '.join(dict.fromkeys(names))}\n\n{text}")


main()
