//! The documents: links lead somewhere, the glossary is sorted, and the same Rust version is named everywhere.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;

use std::{
    fs,
    path::{Path, PathBuf},
};

use files::{files, root};

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
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

#[test]
fn case_study_and_readme_show_the_table_of_the_report() {
    let table = read("docs/case-study/table.md");
    assert!(table.lines().count() > 10, "{table}");
    for page in ["README.md", "docs/case-study.md"] {
        let shown = format!("<!-- table -->\n{table}<!-- end -->\n");
        assert!(read(page).contains(&shown), "{page} shows another table: run `make case-study`");
    }
}

/// Words that a reader must guess at, or that have several meanings here. `docs/STYLE.md` states the rule, and
/// `docs/GLOSSARY.md` has the words to use.
const REFUSED_WORDS: &[&str] = &[
    "anybody",
    "buried",
    "buries",
    "burial",
    "bury",
    "conclude",
    "concluded",
    "concludes",
    "crowd",
    "desk",
    "disguise",
    "disguised",
    "disguises",
    "foresee",
    "forgetful",
    "honour",
    "honoured",
    "honours",
    "judge",
    "judged",
    "judgement",
    "judges",
    "judging",
    "mend",
    "mended",
    "mending",
    "mends",
    "nobody",
    "replay",
    "replayed",
    "replays",
    "rooms",
    "said",
    "seize",
    "seized",
    "seizes",
    "somebody",
    "stranger",
    "strangers",
    "stroll",
    "survey",
    "tells",
    "told",
    "untold",
    "weather",
    "whoever",
    "workshop",
    "yard",
];
/// The user `nobody` of the operating system.
const EXCEPT: (&str, &str) = ("src/servers/child.rs", "nobody");
const REFUSED_PHRASES: &[&str] = &["is none of", "is not well", "not well:", "well again"];
/// What is written where a text is still missing, as a whole word. So is a single word in capitals after a bold beginning.
const PLACEHOLDERS: &[&str] = &["FIXME", "PLACEHOLDER", "REPRODUCIBLE", "TBD", "TODO", "XXX"];

/// The words of a line, in lower case. Names are split at `_` and before capitals.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for c in line.chars() {
        if !c.is_ascii_alphabetic() || (c.is_ascii_uppercase() && after_lower) {
            words.push(String::new());
        }
        if c.is_ascii_alphabetic() {
            words.last_mut().unwrap().push(c.to_ascii_lowercase());
        }
        after_lower = c.is_ascii_lowercase();
    }
    words
}

#[test]
fn names_are_split_into_words() {
    let found = words("let told_by = WhoTold::new(\"so\"); // told");
    let told = found.iter().filter(|word| *word == "told").count();
    assert_eq!((told, found.contains(&"who".to_owned())), (3, true));
}

#[test]
fn sources_and_documents_use_no_refused_word() {
    let sources = [("src", "rs"), ("lua", "lua"), ("proto/yoink", "proto")];
    let sources = sources.into_iter().flat_map(|(dir, ending)| files(dir, ending));
    let mut refused = Vec::new();
    for path in sources.chain(documents()) {
        for (number, line) in (1..).zip(fs::read_to_string(&path).unwrap().lines()) {
            let of_line = words(line);
            let bad = REFUSED_WORDS.iter().filter(|bad| of_line.iter().any(|word| word == *bad));
            let phrases = REFUSED_PHRASES.iter().filter(|phrase| line.contains(**phrase));
            let file = path.strip_prefix(root()).unwrap().to_str().unwrap();
            let bad = bad.chain(phrases).filter(|bad| (file, **bad) != EXCEPT);
            refused.extend(bad.map(|bad| format!("{file}:{number}: {bad}")));
        }
    }
    assert!(refused.is_empty(), "{} refused words:\n{}", refused.len(), refused.join("\n"));
}

/// What stands for a missing text in a line, if anything does.
fn placeholder(line: &str) -> Option<&str> {
    let mut words = line.split(|c: char| !c.is_ascii_alphanumeric());
    let after_bold = line.strip_prefix("**").and_then(|rest| rest.split_once("**"));
    let rest = after_bold.map_or("", |(_, rest)| rest.trim());
    let is_alone = rest.len() > 1 && rest.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    words.find(|word| PLACEHOLDERS.contains(word)).or(is_alone.then_some(rest))
}

#[test]
fn no_document_has_a_placeholder() {
    assert_eq!(placeholder("**Builds.** RESULT"), Some("RESULT"));
    assert_eq!(placeholder("a TODO: b"), Some("TODO"));
    assert_eq!(placeholder("**Builds.** The result is NOT_FOUND."), None);
    let mut found = Vec::new();
    for page in documents().into_iter().chain([root().join("CHANGELOG.md")]) {
        for (number, line) in (1..).zip(fs::read_to_string(&page).unwrap().lines()) {
            let word = placeholder(line);
            found.extend(word.map(|word| format!("{}:{number}: {word}", page.display())));
        }
    }
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn files_that_documents_name_exist() {
    let top = ["src/", "lua/", "docs/", "tests/", "scripts/", "deploy/", "proto/", "examples/"];
    let mut named = 0;
    for page in documents() {
        let text = fs::read_to_string(&page).unwrap();
        for word in text.split('`').skip(1).step_by(2) {
            let is_path = top.iter().any(|dir| word.starts_with(dir));
            if !is_path || word.contains(['<', '*', ' ', ',', '…']) {
                continue;
            }
            assert!(root().join(word).exists(), "{}: {word} does not exist", page.display());
            named += 1;
        }
    }
    assert!(named > 50, "only {named} files are named");
}

/// The tests of a directory or file, by the names that `cargo test` prints, each with a prefix.
fn tests_under(root_dir: &str, prefix: &str, path: &Path) -> Vec<String> {
    let inside = path.strip_prefix(root().join(root_dir)).unwrap().with_extension("");
    let parts = inside.iter().map(|part| part.to_str().unwrap());
    let parts = parts.filter(|part| !["mod", "lib"].contains(part));
    let module = std::iter::once(prefix).filter(|prefix| !prefix.is_empty()).chain(parts);
    let module = module.collect::<Vec<_>>().join("::");
    let source = fs::read_to_string(path).unwrap();
    let inner = source.find("\nmod tests {").unwrap_or(source.len());
    let mut names = Vec::new();
    for (at, _) in source.match_indices("fn ") {
        let before = source[..at].trim_end_matches("async ").trim_end();
        let attribute = before.rsplit('\n').next().unwrap().trim();
        if attribute == "#[test]" || attribute.starts_with("#[tokio::test") {
            let name = source[at + 3..].split('(').next().unwrap();
            let tests = if at > inner { "tests::" } else { "" };
            names.push(format!("{module}::{tests}{name}"));
        }
    }
    names
}

#[test]
fn each_row_of_the_threat_model_names_tests_that_exist() {
    let mut tests = Vec::new();
    for (dir, prefix) in [("tests/it", ""), ("tests/tools", "tools"), ("src", "yoink")] {
        tests.extend(files(dir, "rs").iter().flat_map(|path| tests_under(dir, prefix, path)));
    }
    for file in ["tests/tidy.rs", "tests/documents.rs", "tests/permissions.rs"] {
        tests.extend(tests_under("tests", "", &root().join(file)));
    }
    let page = read("docs/security.md");
    let mut named = 0;
    for section in page.split("\n## ") {
        let Some((_, rows)) = section.split_once("| threat | answer | held by |\n|---|---|---|\n")
        else {
            continue;
        };
        for row in rows.lines().take_while(|line| line.starts_with('|')) {
            let held_by = row.trim_end_matches('|').rsplit('|').next().unwrap();
            let words: Vec<&str> = held_by.split('`').skip(1).step_by(2).collect();
            assert!(!words.is_empty(), "no test holds: {row}");
            for word in words {
                assert!(tests.iter().any(|test| test == word), "{word} is not a test");
                named += 1;
            }
        }
    }
    assert!(named > 80, "only {named} tests are named");
}
