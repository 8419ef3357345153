//! The documents: links lead somewhere, the glossary is sorted, and the same Rust version is named everywhere.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Every file with this ending below a directory, sorted.
fn files(dir: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "{dir} has no {ending} file");
    found.sort();
    found
}

fn documents() -> Vec<PathBuf> {
    let pages = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md"];
    pages.iter().map(|page| root().join(page)).chain(files("docs", "md")).collect()
}

/// What a link to a heading ends with.
fn anchor(heading: &str) -> String {
    let lower = heading.trim().to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn links_between_documents_lead_to_files_and_headings() {
    let mut links = 0;
    for page in documents() {
        let text = fs::read_to_string(&page).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.starts_with("http") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file =
                if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(file.exists(), "{}: {target} does not exist", page.display());
            if !heading.is_empty() {
                let exists = anchors(&file).iter().any(|anchor| anchor == heading);
                assert!(exists, "{}: {target} has no such heading", page.display());
            }
            links += 1;
        }
    }
    assert!(links > 30, "only {links} links were found");
}

#[test]
fn glossary_defines_each_term_once_in_alphabetical_order() {
    let glossary = read("docs/GLOSSARY.md");
    let rows = glossary.lines().filter_map(|line| line.strip_prefix("| **"));
    let terms: Vec<String> =
        rows.map(|row| row.split("**").next().unwrap().to_lowercase()).collect();
    assert!(terms.len() > 60, "{}", terms.len());
    for pair in terms.windows(2) {
        assert!(pair[0] < pair[1], "{} is before {}", pair[0], pair[1]);
    }
}

#[test]
fn architecture_page_has_a_section_for_each_rule() {
    let page = read("docs/ARCHITECTURE.md");
    for rule in 1..=10 {
        assert!(page.contains(&format!("\n### R{rule}. ")), "R{rule}");
    }
}

#[test]
fn one_rust_version_is_named_everywhere() {
    let value = |file: &str, key: &str| {
        let text = read(file);
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_matches([' ', '=', '"']).to_owned()
    };
    let pinned = value("rust-toolchain.toml", "channel");
    let oldest = value("Cargo.toml", "rust-version");
    assert!(pinned.starts_with(&format!("{oldest}.")), "{pinned} is no release of {oldest}");
    for file in ["Dockerfile", ".github/workflows/ci.yml"] {
        assert!(read(file).contains(&format!("rust:{pinned}-")), "{file} uses another Rust");
    }
}
