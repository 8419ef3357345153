//! `scripts/reproducible.sh` with a program in place of cargo: which builds it accepts. The real builds take minutes.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
};

use crate::harness::scratch_dir;

/// Runs it with a cargo whose program has this content, as the shell expands it. Returns where it keeps the program, too.
fn run(program: &str) -> (Output, PathBuf) {
    let dir = scratch_dir("reproducible");
    let cargo = dir.join("cargo");
    let script = format!(
        "#!/bin/sh\nset -eu\ntest -f Cargo.lock\nmkdir -p target/release\necho \"{program}\" > target/release/yoink\n"
    );
    fs::write(&cargo, script).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("scripts/reproducible.sh");
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env("CARGO", &cargo).env("WORK", dir.join("work")).env("OUT", dir.join("out"));
    (command.output().unwrap(), dir.join("out/yoink"))
}

#[test]
fn builds_are_accepted_if_they_are_equal_and_have_no_path_of_the_machine() {
    // The flags replace the directory of each build and that of the crates.
    for (program, why) in [
        ("$YOINK_COMMIT", ""),
        ("$(basename \"$PWD\")", "differ"),
        ("$PWD", "has the path"),
        ("${CARGO_HOME:-$HOME/.cargo}/registry", "has the path"),
    ] {
        let (done, _) = run(program);
        let printed = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.success(), why.is_empty(), "{program}: {printed}");
        assert!(printed.contains(why), "{program}: {printed}");
    }
    for (flags, flag) in [("$RUSTFLAGS", "--remap-path-prefix"), ("$CFLAGS", "-ffile-prefix-map")] {
        let replaced = r#"s|=$PWD=/yoink||; s|=${CARGO_HOME:-$HOME/.cargo}=/cargo||"#;
        let (done, kept) = run(&format!("$(echo \"{flags}\" | sed \"{replaced}\")"));
        assert!(done.status.success(), "{flags}: {}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(fs::read_to_string(kept).unwrap(), format!("{flag} {flag}\n"));
    }
}
