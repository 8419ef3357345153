#!/usr/bin/env python3
"""Writes a bill of materials of the program, in the format CycloneDX 1.6 (JSON): each crate that a build of the binary
uses, with its version, licence, checksum and dependencies. Cargo itself resolves the features, so a crate that only tests
use is not in it. The same sources give the same file: it has no time and no random number.
  sbom.py FILE"""

import json
import re
import subprocess
import sys
import uuid

TARGET = "x86_64-unknown-linux-gnu"
# A crate of crates.io in Cargo.lock.
LOCKED = re.compile(r'name = "(.+)"\nversion = "(.+)"\nsource = "registry.+"\nchecksum = "([0-9a-f]{64})"')


def cargo(*arguments):
    command = ["cargo", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def crates(edges):
    """Names and versions of the crates that the binary reaches over these edges."""
    lines = cargo("tree", "--locked", "--target", TARGET, "--edges", edges, "--prefix", "none", "--format", "{p}")
    words = (line.split() for line in lines.splitlines() if line)
    return {(name, version.removeprefix("v")) for name, version, *_ in words}


def purl(name, version):
    return f"pkg:cargo/{name}@{version}"


def component(package, checksums, linked):
    name, version = package["name"], package["version"]
    described = {
        "type": "library",
        "bom-ref": purl(name, version),
        "name": name,
        "version": version,
        # A crate that only the build runs is not in the program.
        "scope": "required" if (name, version) in linked else "excluded",
        "hashes": [{"alg": "SHA-256", "content": checksums[(name, version)]}],
        # Crates of before 2018 write MIT/Apache-2.0, which is not SPDX.
        "licenses": [{"expression": package["license"].replace("/", " OR ")}],
        "purl": purl(name, version),
    }
    if package["description"]:
        described["description"] = " ".join(package["description"].split())
    if package["repository"]:
        described["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return described


def main(path):
    with open("Cargo.lock", encoding="utf-8") as file:
        checksums = {(name, version): checksum for name, version, checksum in LOCKED.findall(file.read())}
    metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET))
    root_id = metadata["resolve"]["root"]
    packages = {it["id"]: it for it in metadata["packages"]}
    root = packages[root_id]
    key = {id: (it["name"], it["version"]) for id, it in packages.items()}
    linked, used = crates("normal,no-proc-macro"), crates("normal,build")
    components = [component(it, checksums, linked) for id, it in packages.items() if id != root_id and key[id] in used]
    components.sort(key=lambda it: it["bom-ref"])
    dependencies = []
    for node in metadata["resolve"]["nodes"]:
        if key[node["id"]] not in used:
            continue
        kinds = lambda dependency: {it["kind"] for it in dependency["dep_kinds"]}
        on = {dep["pkg"] for dep in node["deps"] if kinds(dep) - {"dev"}}
        dependencies.append({
            "ref": purl(*key[node["id"]]),
            "dependsOn": sorted(purl(*key[id]) for id in on if key[id] in used),
        })
    dependencies.sort(key=lambda it: it["ref"])
    name, version = root["name"], root["version"]
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": purl(name, version),
                "name": name,
                "version": version,
                "licenses": [{"expression": root["license"]}],
                "purl": purl(name, version),
            },
        },
        "components": components,
        "dependencies": dependencies,
    }
    content = json.dumps(bom, sort_keys=True)
    bom["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(bom, file, indent=2, ensure_ascii=False)
        file.write("\n")
    in_program = sum(it["scope"] == "required" for it in components)
    print(f"{path}: {in_program} crates in the program, {len(components) - in_program} that only its build uses")


if __name__ == "__main__":
    main(sys.argv[1])
