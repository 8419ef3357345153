//! `deploy/redis.acl` permits exactly the commands that are used.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;

use std::{collections::BTreeSet, fs};

use files::{files, root};

/// The commands that the client library sends by itself: a database other than 0, and a script that Redis does not know.
const OF_LIBRARY: [&str; 2] = ["select", "script|load"];

/// The commands of a user, such as `xlen` and `xgroup|create`.
fn permitted(user: &str) -> BTreeSet<String> {
    let users = fs::read_to_string(root().join("deploy/redis.acl")).unwrap();
    let line = users.lines().find(|line| line.starts_with(&format!("user {user} on "))).unwrap();
    assert!(line.contains(" -@all "), "{line}");
    let commands: Vec<&str> = line.split(' ').filter_map(|rule| rule.strip_prefix('+')).collect();
    let set: BTreeSet<String> = commands.iter().map(|command| (*command).to_owned()).collect();
    assert_eq!(set.len(), commands.len(), "{user} has a command twice");
    set
}

/// The commands that a script calls after each of these texts, which end in a quotation mark.
fn called(script: &str, before: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for before in before {
        for (at, _) in script.match_indices(before) {
            let words = &script[at + before.len()..];
            let mut quoted = words.split('\'');
            let name = quoted.next().unwrap().to_lowercase();
            let subcommand = quoted.nth(1).unwrap_or_default().to_lowercase();
            found.insert(match name.as_str() {
                "xgroup" | "xinfo" | "script" | "cluster" => format!("{name}|{subcommand}"),
                _ => name,
            });
        }
    }
    found
}

/// The commands of the scripts.
fn of_scripts() -> BTreeSet<String> {
    let scripts = files("lua", "lua").into_iter().filter(|path| !path.ends_with("permissions.lua"));
    let of = |path| called(&fs::read_to_string(path).unwrap(), &["redis.call('", "redis.pcall('"]);
    scripts.flat_map(of).collect()
}

#[test]
fn start_checks_every_command_of_the_scripts() {
    let script = fs::read_to_string(root().join("lua/permissions.lua")).unwrap();
    assert_eq!(called(&script, &["  { '"]), of_scripts());
}

#[test]
fn start_checks_every_command_that_the_user_of_the_service_may_run() {
    let source = fs::read_to_string(root().join("src/lifecycle/permissions.rs")).unwrap();
    let plain = called(&source.replace('"', "'"), &["    &['"]);
    let mut checked = of_scripts();
    for command in &plain {
        assert!(checked.insert(command.clone()), "{command} is checked twice");
    }
    // The library calls the first only for a database other than 0, and the others may be refused.
    checked.extend(["select", "config|get", "acl|dryrun"].map(str::to_owned));
    assert_eq!(permitted("yoink"), checked);
}

#[test]
fn user_of_the_service_may_run_every_command_of_the_scripts_and_none_that_is_unused() {
    let (permitted, scripts) = (permitted("yoink"), of_scripts());
    let missing: Vec<&String> = scripts.difference(&permitted).collect();
    assert!(missing.is_empty(), "not permitted: {missing:?}");
    let sources = files("src", "rs").into_iter().map(|path| fs::read_to_string(path).unwrap());
    let sources: Vec<String> = sources.collect();
    for command in permitted.difference(&scripts) {
        let (name, subcommand) = command.split_once('|').unwrap_or((command, ""));
        // In a command of its own, or as a method of the client library.
        let quoted = format!("(\"{}\")", name.to_uppercase());
        let argument = format!("arg(\"{}\")", subcommand.to_uppercase());
        let method = format!(".{}(", command.replace('|', "_"));
        let is_used = sources.iter().any(|source| {
            let by_text =
                source.contains(&quoted) && (subcommand.is_empty() || source.contains(&argument));
            by_text || source.contains("AsyncCommands") && source.contains(&method)
        });
        let is_used = is_used || OF_LIBRARY.contains(&command.as_str());
        assert!(is_used, "{command} is permitted and not used");
    }
}

#[test]
fn reader_may_run_a_part_of_what_the_service_may() {
    let (reader, service) = (permitted("yoink_read"), permitted("yoink"));
    assert!(reader.is_subset(&service), "{:?}", reader.difference(&service));
}
