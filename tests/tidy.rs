//! Rules of the house style that no lint checks: which module may use which, the length of files, and that each
//! script documents its replies.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use files::{files, root};

/// Each module, and the modules it may use. `docs/ARCHITECTURE.md` describes what each owns.
const MODULES: [(&str, &[&str]); 27] = [
    ("domain", &[]),
    ("tls", &[]),
    ("config", &["domain", "tls"]),
    ("telemetry", &["config"]),
    ("crash_point", &[]),
    ("tasks", &[]),
    ("redis", &["domain", "telemetry", "tls"]),
    ("stock", &["domain", "redis", "tasks", "telemetry"]),
    ("lifecycle", &["domain", "redis"]),
    ("stream", &["domain", "redis", "telemetry"]),
    ("ledger", &["domain", "telemetry", "tls"]),
    ("ack", &["domain", "redis", "ledger", "tasks", "telemetry"]),
    ("catalogue", &["stock", "ledger", "redis", "domain", "tasks"]),
    (
        "recovery",
        &["lifecycle", "stream", "ledger", "redis", "domain", "crash_point", "tasks", "telemetry"],
    ),
    ("dead_letters", &["stock", "stream", "ledger", "redis", "domain", "crash_point"]),
    ("audit", &["stream", "ledger", "redis", "domain", "tasks", "telemetry"]),
    ("auth", &["domain", "ledger", "tasks", "telemetry", "tls"]),
    ("durability", &["ledger", "redis"]),
    (
        "worker",
        &[
            "ack",
            "stock",
            "stream",
            "ledger",
            "dead_letters",
            "recovery",
            "lifecycle",
            "redis",
            "domain",
            "crash_point",
            "tasks",
            "telemetry",
        ],
    ),
    (
        "grpc",
        &[
            "ack",
            "domain",
            "stock",
            "stream",
            "ledger",
            "redis",
            "catalogue",
            "dead_letters",
            "audit",
            "auth",
            "telemetry",
            "tls",
        ],
    ),
    ("load", &["grpc", "tls"]),
    ("servers", &[]),
    (
        "app",
        &[
            "ack",
            "domain",
            "config",
            "telemetry",
            "redis",
            "stock",
            "lifecycle",
            "stream",
            "ledger",
            "catalogue",
            "recovery",
            "dead_letters",
            "audit",
            "auth",
            "durability",
            "tasks",
            "worker",
            "grpc",
            "tls",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "config",
            "servers",
            "audit",
            "auth",
            "catalogue",
            "dead_letters",
            "domain",
            "grpc",
            "ledger",
            "load",
            "stream",
            "telemetry",
            "tls",
        ],
    ),
    (OF_TESTS, &[]),
    ("lib", &[]),
    ("main", &["cli"]),
];

/// Random inputs, which the tests of every module may use.
const OF_TESTS: &str = "mutated";

/// The most lines of a file.
const LINES_MAX: usize = 420;

fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that a file's paths name: `crate::module` and every `module` in `crate::{module, …}`.
fn used_modules(source: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in source.match_indices("crate::") {
        let rest = &source[at + "crate::".len()..];
        let word = |text: &str| -> String {
            text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
        };
        let Some(group) = rest.strip_prefix('{') else {
            used.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if c.is_whitespace() => {}
                _ if start => {
                    used.insert(word(&group[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    used
}

#[test]
fn modules_use_only_the_modules_in_the_table() {
    let modules: BTreeMap<&str, &[&str]> = MODULES.into_iter().collect();
    for path in files("src", "rs") {
        let module = module_of(&path);
        let may = modules
            .get(module.as_str())
            .unwrap_or_else(|| panic!("{} is in no module", path.display()));
        // Examples in comments may use any module.
        let source = fs::read_to_string(&path).unwrap().replace("yoink::", "crate::");
        let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
        let source = code.collect::<Vec<_>>().join("\n");
        for used in used_modules(&source) {
            let known = modules.contains_key(used.as_str());
            let allowed = [module.as_str(), OF_TESTS].contains(&used.as_str())
                || may.contains(&used.as_str());
            assert!(!known || allowed, "{}: {module} may not use {used}", path.display());
            assert!(known || module == "grpc", "{}: there is no module {used}", path.display());
        }
    }
}

#[test]
fn module_scan_finds_every_form_of_path() {
    let source = "use crate::{audit::A, domain::{B, C}, stock::D}; crate::telemetry::E";
    let found: Vec<String> = used_modules(source).into_iter().collect();
    assert_eq!(found, ["audit", "domain", "stock", "telemetry"]);
}

#[test]
fn status_codes_are_used_only_by_the_modules_of_errors() {
    let modules = ["grpc/error.rs", "grpc/reason.rs", "grpc/status.rs"];
    for path in files("src", "rs") {
        let source = fs::read_to_string(&path).unwrap();
        let word = |at: usize| !source[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
        let uses_codes = source.match_indices("Code::").any(|(at, _)| word(at));
        let allowed = modules.iter().any(|module| path.ends_with(module));
        assert!(!uses_codes || allowed, "{} uses status codes", path.display());
    }
}

#[test]
fn no_file_exceeds_the_line_limit() {
    for path in files("src", "rs").into_iter().chain(files("tests", "rs")) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
    }
}

#[test]
fn no_module_has_a_vague_name() {
    for path in files("src", "rs") {
        let name = path.file_stem().unwrap().to_str().unwrap();
        for vague in ["utils", "util", "common", "helpers", "types", "models", "misc"] {
            assert_ne!(name, vague, "{}", path.display());
        }
    }
}

#[test]
fn every_file_starts_with_a_module_comment() {
    for path in files("src", "rs").into_iter().chain(files("tests", "rs")) {
        let source = fs::read_to_string(&path).unwrap();
        assert!(
            source.starts_with("//! "),
            "{} does not start with a module comment",
            path.display()
        );
    }
}

/// The integration tests, by their whole path as `cargo test` prints it.
fn tests() -> BTreeSet<String> {
    let root = root().join("tests/it");
    let mut names = BTreeSet::new();
    for path in files("tests/it", "rs") {
        let module = path.strip_prefix(&root).unwrap().with_extension("");
        let module: Vec<&str> = module.iter().map(|part| part.to_str().unwrap()).collect();
        let module: Vec<&str> = module.into_iter().filter(|part| *part != "mod").collect();
        let source = fs::read_to_string(path).unwrap();
        for (at, _) in source.match_indices("fn ") {
            let before = source[..at].trim_end_matches("async ").trim_end();
            let attribute = before.rsplit('\n').next().unwrap().trim();
            if attribute == "#[test]" || attribute.starts_with("#[tokio::test") {
                let name = source[at + 3..].split('(').next().unwrap();
                names.insert(format!("{}::{name}", module.join("::")));
            }
        }
    }
    names
}

#[test]
fn reliability_page_names_existing_tests_and_every_fault_and_bug() {
    let root = root();
    let page = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let tests = tests();
    let mut named = 0;
    let words = page.split('`').skip(1).step_by(2);
    for word in words.clone().filter(|word| word.contains("::") && !word.contains(' ')) {
        let module = root.join("tests/it").join(word.replace("::", "/")).with_extension("rs");
        assert!(tests.contains(word) || module.exists(), "{word} is not a test");
        named += 1;
    }
    assert!(named > 50, "{named}");
    let matrix = page.split("## The loops").next().unwrap();
    for row in 1..=42 {
        let line = matrix.lines().find(|line| line.starts_with(&format!("| {row} |")));
        assert!(line.is_some_and(|line| line.contains("::")), "row {row} has no test");
    }
    let patches = files("tests/bugs", "patch");
    assert_eq!(patches.len(), 12);
    for patch in patches {
        let name = patch.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(words.clone().any(|word| word == name), "{name} is not on the page");
        let text = fs::read_to_string(&patch).unwrap();
        let header = |word: &str| text.lines().find_map(|line| line.strip_prefix(word)).unwrap();
        let test = header("test: ");
        assert!(tests.contains(test), "{name}: {test} is not a test");
        assert!(!header("fails: ").is_empty(), "{name} does not state what fails");
    }
}

#[test]
fn every_script_documents_its_keys_arguments_and_replies() {
    for path in files("lua", "lua") {
        if path.ends_with("fence.lua") {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let header: Vec<&str> = source.lines().take_while(|line| line.starts_with("--")).collect();
        let header = header.join("\n");
        for part in ["KEYS", "ARGV", "Returns"] {
            assert!(header.contains(part), "{} does not document its {part}", path.display());
        }
        // Every status that it returns is in its header.
        for (at, _) in source.match_indices("return { '") {
            let status: String = source[at + 10..].chars().take_while(|c| *c != '\'').collect();
            let named = header.contains(&format!("{{'{status}'"));
            assert!(named, "{} returns {status} without documenting it", path.display());
        }
        // It checks the fence, unless it opens or reads a partition, or changes nothing.
        let fenced = source.contains("fence(KEYS[1], ARGV[1])")
            || source.contains("rebuild_fence(KEYS[1], ARGV[1])");
        let opens = ["open.lua", "read_meta.lua", "begin_rebuild.lua", "permissions.lua"]
            .iter()
            .any(|name| path.ends_with(name));
        assert!(fenced != opens, "{}", path.display());
    }
}

/// The name of a key in a header: `DeadIndex` is `dead_index`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// The keys of a script's header: the word after each number; `given` where only a call knows the key.
fn header_keys(source: &str) -> Vec<String> {
    let header = source.split("-- KEYS").nth(1).unwrap().split("-- ARGV").next().unwrap();
    let words: Vec<&str> = header.split_whitespace().collect();
    let numbered = words.windows(2).filter(|pair| pair[0].parse::<u32>().is_ok());
    numbered.map(|pair| pair[1].trim_matches(['(', ')', ',']).to_owned()).collect()
}

#[test]
fn each_script_is_declared_once_with_the_keys_of_its_header() {
    let mut declared = BTreeSet::new();
    for path in files("src", "rs").into_iter().filter(|path| !path.ends_with("redis/script.rs")) {
        let source = fs::read_to_string(&path).unwrap();
        for declaration in source.split("script!(").skip(1) {
            let name = declaration.split('"').nth(1).unwrap();
            let (file, keys) = declaration.split_once("/lua/").unwrap().1.split_once('"').unwrap();
            assert_eq!(file, format!("{name}.lua"));
            assert!(declared.insert(file.to_owned()), "{file} is declared twice");
            let lua = root().join("lua").join(file);
            let header = header_keys(&fs::read_to_string(lua).unwrap());
            let keys = keys.split(['[', ']']).nth(1).unwrap().split(',').map(str::trim);
            let mut keys: Vec<String> = keys.map(snake_case).collect();
            // Keys that only a call knows follow those of the declaration.
            keys.resize(header.len().max(keys.len()), "given".to_owned());
            assert_eq!(header, keys, "{file}");
        }
    }
    let scripts = files("lua", "lua");
    let scripts = scripts.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    let scripts: BTreeSet<String> = scripts.filter(|name| name != "fence.lua").collect();
    assert_eq!(declared, scripts);
}

#[test]
fn every_bug_patch_applies() {
    let patches = fs::read_dir("tests/bugs").unwrap().map(|entry| entry.unwrap().path());
    let patches: Vec<_> =
        patches.filter(|path| path.extension() == Some("patch".as_ref())).collect();
    assert_eq!(patches.len(), 12);
    for patch in patches {
        let mut apply = Command::new("patch");
        apply.args(["--dry-run", "--quiet", "-p1", "-i"]).arg(&patch);
        let applies = apply.output().unwrap();
        let message = String::from_utf8_lossy(&applies.stdout);
        assert!(
            applies.status.success(),
            "does not apply, update it: {}: {message}",
            patch.display()
        );
    }
}

#[test]
fn every_crate_comes_from_crates_io_with_a_checksum() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let packages = lock.split("[[package]]").skip(1);
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim_matches([' ', '=', '"']).to_owned()
    };
    let mut crates = 0;
    for package in packages.filter(|package| value(package, "name") != "yoink") {
        let name = value(package, "name");
        let source = value(package, "source");
        let crates_io = "registry+https://github.com/rust-lang/crates.io-index";
        assert_eq!(source, crates_io, "{name}");
        assert_eq!(value(package, "checksum").len(), 64, "{name}");
        crates += 1;
    }
    assert!(crates > 200, "{crates}");
}
