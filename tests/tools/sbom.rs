//! The bill of materials of the program.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value as Json;

use crate::harness::scratch_dir;

fn written(path: &Path) -> Json {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut command = Command::new("python3");
    command.arg("scripts/sbom.py").arg(path).current_dir(root).env("CARGO_NET_OFFLINE", "true");
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn bill_of_materials_has_each_crate_of_the_program_and_none_of_its_tests() {
    let dir = scratch_dir("sbom");
    let bom = written(&dir.join("one.json"));
    assert_eq!(bom["bomFormat"], "CycloneDX");
    assert_eq!(bom["metadata"]["component"]["name"], "yoink");
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let components = bom["components"].as_array().unwrap();
    for component in components {
        let checksum = component["hashes"][0]["content"].as_str().unwrap();
        assert!(lock.contains(&format!("checksum = \"{checksum}\"")), "{component}");
        let licence = component["licenses"][0]["expression"].as_str().unwrap();
        assert!(!licence.is_empty() && !licence.contains('/'), "{component}");
        assert!(component["purl"].as_str().unwrap().starts_with("pkg:cargo/"), "{component}");
    }
    let of_scope = |scope: &str| -> BTreeSet<&str> {
        let found = components.iter().filter(|component| component["scope"] == scope);
        found.map(|component| component["name"].as_str().unwrap()).collect()
    };
    let (linked, built) = (of_scope("required"), of_scope("excluded"));
    for name in ["redis", "rustls", "ring", "tokio-postgres", "tonic"] {
        assert!(linked.contains(name), "{name} is in the program");
    }
    for name in ["protox", "serde_derive"] {
        assert!(built.contains(name), "{name} is used by the build only");
    }
    for name in ["proptest", "criterion", "rcgen", "yoink"] {
        assert!(!linked.contains(name) && !built.contains(name), "{name} is not in the program");
    }
    // Each reference leads to a component.
    let known: BTreeSet<&str> =
        components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
    let dependencies = bom["dependencies"].as_array().unwrap();
    assert_eq!(dependencies.len(), components.len() + 1, "the program and each crate");
    for on in dependencies.iter().flat_map(|dependency| dependency["dependsOn"].as_array().unwrap())
    {
        assert!(known.contains(on.as_str().unwrap()), "{on}");
    }
    assert_eq!(written(&dir.join("two.json")), bom, "the same sources give the same file");
}
