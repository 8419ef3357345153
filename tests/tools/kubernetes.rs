//! The manifests of `deploy/kubernetes`, built by kustomize and decoded into the types of Kubernetes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::harness::scratch_dir;

fn manifests(directories: &[PathBuf]) -> Output {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin/manifests");
    Command::new(program).args(directories).output().unwrap()
}

fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copied(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn manifests_have_the_fields_of_kubernetes_and_broken_ones_are_refused() {
    let deployed = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes");
    let directories = ["base", "migrate", "example", "example/migrate"];
    let output = manifests(&directories.map(|directory| deployed.join(directory)));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("example: 17 objects\n"), "{printed}");

    let broken = scratch_dir("manifests");
    copied(&deployed, &broken);
    let of = |file: &str, old: &str, new: &str| {
        let path = broken.join(file);
        let text = fs::read_to_string(&path).unwrap();
        let changed = text.replacen(old, new, 1);
        assert_ne!(changed, text, "{file} has no {old}");
        fs::write(&path, changed).unwrap();
        let output = manifests(&[broken.join("example")]);
        fs::write(&path, text).unwrap();
        assert!(!output.status.success(), "{new} is accepted");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (file, old, new) in [
        ("base/api.yaml", "enableServiceLinks:", "enableServiceLink:"),
        ("base/worker.yaml", "replicas: 2", "replicas: two"),
        ("base/network.yaml", "podSelector:", "podSelectors:"),
        ("monitoring/service-monitor.yaml", "scrapeTimeout:", "scrapeTimeouts:"),
    ] {
        let error = of(file, old, new);
        assert!(error.contains("example: "), "{error}");
    }
}
